// Owns the shape of every identifier: how it is made and the pattern that admits it.
// Invariant: an id that fits its pattern is safe in a path, a key, a host name and a command argument.
import { randomBytes } from 'node:crypto';

export const functionNamePattern = /^[a-z][a-z0-9-]{0,62}$/;
export const versionPattern = /^[1-9][0-9]{0,8}$/;
export const snapshotIdPattern = /^snap-[0-9a-f]{24}$/;
/** One DNS label without '-': hosts of the form PORT-ID.DOMAIN are split at the dash. */
export const sandboxIdPattern = /^i[0-9a-z]{20}$/;
/** Of snapshots and templates: `namespace/alias:tag`. Never a path. */
export const snapshotNamePattern = /^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}$/;
export const templateIdPattern = /^t[0-9a-z]{20}$/;
export const vmIdPattern = /^vm-[0-9a-f]{12}$/;
export const requestIdPattern = /^[A-Za-z0-9_-]{1,64}$/;
export const apiKeyPattern = /^e2b_[0-9a-f]{40}$/;

const base36 = '0123456789abcdefghijklmnopqrstuvwxyz';

export const newVmId = (): string => `vm-${randomBytes(6).toString('hex')}`;
export const newSnapshotId = (): string => `snap-${randomBytes(12).toString('hex')}`;
/** The id of a snapshot whose content is decided by its inputs. `digest` is at least 24 hex characters. */
export const snapshotIdOf = (digest: string): string => `snap-${digest.slice(0, 24)}`;
export const newRequestId = (): string => randomBytes(12).toString('base64url');
export const newApiKey = (): string => `e2b_${randomBytes(20).toString('hex')}`;
export const newSecret = (): string => randomBytes(32).toString('hex');

export const newSandboxId = (): string => newLabel('i');
export const newTemplateId = (): string => newLabel('t');

function newLabel(prefix: string): string {
  let id = prefix;
  // 256 is not a multiple of 36: bytes above 251 would favour the first letters.
  while (id.length < 21)
    for (const byte of randomBytes(32)) if (byte < 252 && id.length < 21) id += base36[byte % 36];
  return id;
}

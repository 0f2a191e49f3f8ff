// Owns who may call: the sandbox's access token, signed file links, and the user a call names.
// Refuses to own what a caller may do afterwards. Invariant: secrets are compared in constant time and never echoed.
import { createHash } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { equalSecrets } from '../../shared/secrets.ts';

export const hasAccessToken = (request: IncomingMessage, token: string | undefined): boolean =>
  equalSecrets(request.headers['x-access-token'], token);

/**
 * A file link carries `v1_` + base64 of SHA-256 over `path:operation:user:token[:expiry]` in place of the token.
 * @returns undefined when it is valid, else what is wrong with it.
 */
export function signatureFault(
  query: URLSearchParams,
  operation: 'read' | 'write',
  token: string | undefined,
): string | undefined {
  const signature = query.get('signature');
  if (signature === null) return 'missing or wrong access token, and no signature';
  const expiry = query.get('signature_expiration');
  const signed = [
    query.get('path') ?? '',
    operation,
    query.get('username') ?? '',
    token ?? '',
    ...(expiry ? [expiry] : []),
  ];
  const digest = createHash('sha256').update(signed.join(':')).digest('base64');
  if (token === undefined || !equalSecrets(signature, `v1_${digest.replace(/=+$/, '')}`))
    return 'invalid signature';
  if (expiry && !(Number(expiry) * 1000 >= Date.now())) return 'signature is already expired';
  return undefined;
}

/** The user part of `Authorization: Basic`, '' when there is none. There is no password. */
export function basicUser(request: IncomingMessage): string {
  const [scheme, value] = request.headers.authorization?.split(' ') ?? [];
  if (scheme?.toLowerCase() !== 'basic' || value === undefined) return '';
  return Buffer.from(value, 'base64').toString('utf8').split(':')[0] ?? '';
}

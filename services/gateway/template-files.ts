// Owns files that clients upload for builds: checked archives by the hash that the client gave them, and the links to
// upload them by. Refuses to own what is done with them. Invariant: a link is for one hash and ends; nothing under a
// hash is ever half an upload; all of them together keep to a limit, and what a build works with is not taken from it.
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { mkdir, readdir, rm, stat, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { ThawError } from '../../shared/errors.ts';
import { receiveArchive } from './bundle.ts';
import type { GatewayConfig } from './gateway-config.ts';

/** As long as clients give an upload. */
const linkLifeMs = 3_600_000;
export const filesHashPattern = /^[0-9a-f]{64}$/;

export class TemplateFiles {
  readonly #config: GatewayConfig;
  readonly #dir: string;
  /** Links end with this gateway: an upload would end with it too. */
  readonly #secret = randomBytes(32);
  readonly #inUse = new Map<string, number>();

  constructor(config: GatewayConfig) {
    this.#config = config;
    this.#dir = join(config.bundleDir, 'template-files');
  }

  pathOf(hash: string): string {
    return join(this.#dir, `${hash}.tar`);
  }

  async has(hash: string): Promise<boolean> {
    return stat(this.pathOf(hash)).then(
      () => true,
      () => false,
    );
  }

  /** What authorises one upload, as a query. */
  linkQuery(hash: string): string {
    const expiresAtMs = Date.now() + linkLifeMs;
    return `expires=${expiresAtMs}&signature=${this.#sign(hash, String(expiresAtMs))}`;
  }

  /** @throws ThawError `forbidden`. */
  requireLink(hash: string, query: { expires?: string; signature?: string }): void {
    const { expires = '', signature = '' } = query;
    const expected = Buffer.from(this.#sign(hash, expires));
    const given = Buffer.from(signature);
    const valid = given.length === expected.length && timingSafeEqual(given, expected);
    if (!valid || !(Number(expires) > Date.now()))
      throw new ThawError('forbidden', 'the upload link is wrong or too old; ask for another one');
  }

  #sign(hash: string, expires: string): string {
    return createHmac('sha256', this.#secret).update(`${hash}:${expires}`).digest('hex');
  }

  /** @throws ThawError `bad-bundle` | `body-too-large` | `no-space`. */
  async receive(hash: string, upload: Readable): Promise<void> {
    await mkdir(this.#dir, { recursive: true });
    await receiveArchive(upload, this.pathOf(hash), this.#config);
    await this.#evict(hash);
  }

  /** Keeps files until `release`. @throws ThawError `bad-request` for what was not uploaded. */
  async take(hashes: readonly string[]): Promise<{ release(): void }> {
    for (const hash of hashes) this.#inUse.set(hash, (this.#inUse.get(hash) ?? 0) + 1);
    const release = () => {
      for (const hash of hashes) {
        const left = this.#inUse.get(hash)! - 1;
        if (left > 0) this.#inUse.set(hash, left);
        else this.#inUse.delete(hash);
      }
    };
    const now = new Date();
    for (const hash of hashes)
      await utimes(this.pathOf(hash), now, now).catch(() => {
        release();
        throw new ThawError('bad-request', `the files ${hash} have not been uploaded; build again`);
      });
    return { release };
  }

  /** Those that no link can be about any more. @returns bytes that went. */
  async dropOld(): Promise<number> {
    const oldestMs = Date.now() - linkLifeMs;
    const old = (await this.#leastRecentlyUsedFirst()).filter(({ usedAtMs }) => usedAtMs < oldestMs);
    let bytes = 0;
    for (const { hash, sizeBytes } of old) if (await this.#drop(hash)) bytes += sizeBytes;
    return bytes;
  }

  async #evict(newest: string): Promise<void> {
    const rows = await this.#leastRecentlyUsedFirst();
    let totalBytes = rows.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    for (const { hash, sizeBytes } of rows) {
      if (totalBytes <= this.#config.maxTemplateFilesBytes) return;
      if (hash !== newest && (await this.#drop(hash))) totalBytes -= sizeBytes;
    }
  }

  /** @returns whether it went: not while a build works with it. */
  async #drop(hash: string): Promise<boolean> {
    if (this.#inUse.has(hash)) return false;
    await rm(this.pathOf(hash), { force: true });
    return true;
  }

  async #leastRecentlyUsedFirst(): Promise<{ hash: string; sizeBytes: number; usedAtMs: number }[]> {
    const entries = await readdir(this.#dir).catch(() => []);
    const names = entries.filter((name) => name.endsWith('.tar'));
    const rows = await Promise.all(
      names.map(async (name) => {
        const facts = await stat(join(this.#dir, name)).catch(() => undefined);
        return {
          hash: name.slice(0, -'.tar'.length),
          sizeBytes: facts?.size ?? 0,
          usedAtMs: facts?.mtimeMs ?? 0,
        };
      }),
    );
    return rows.sort((a, b) => a.usedAtMs - b.usedAtMs);
  }
}

// Owns having each pinned client on this machine: one directory for each version in the cache, installed by npm and pip.
// Invariant: a directory holds a finished installation or is not there; one that is there is never asked for again.
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, rename, rm, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const installTimeoutMs = 300_000;

export type ClientKind = 'npm' | 'pypi';

export interface Client {
  kind: ClientKind;
  version: string;
}

export const labelOf = ({ kind, version }: Client): string =>
  `${kind === 'npm' ? 'JavaScript' : 'Python'} ${version}`;

/** @returns the directory to load the client from. @throws Error with the installer's own words. */
export async function installClient({ kind, version }: Client): Promise<string> {
  const cacheDir = join(process.env.THAW_CACHE_DIR ?? join(homedir(), '.cache/thaw'), 'e2b-clients');
  const dir = join(cacheDir, `${kind}-${version}`);
  if (await stat(dir).catch(() => undefined)) return dir;
  await mkdir(cacheDir, { recursive: true });
  const partial = await mkdtemp(join(cacheDir, 'partial-'));
  try {
    const options = ['--no-audit', '--no-fund', '--ignore-scripts'];
    const [program, ...args] =
      kind === 'npm'
        ? ['npm', 'install', '--prefix', partial, ...options, `e2b@${version}`]
        : ['python3', '-m', 'pip', 'install', '--quiet', '--target', partial, `e2b==${version}`];
    await run(program!, args, { timeout: installTimeoutMs });
    await rename(partial, dir);
    return dir;
  } catch (error) {
    await rm(partial, { recursive: true, force: true });
    const { stderr, message } = error as { stderr?: string; message: string };
    throw new Error(stderr?.trim().split('\n').at(-1) || message);
  }
}

// Owns a real S3 server for one test file: versitygw over a directory of its own, on loopback. Builds it once with Go
// into the cache directory where it is not there yet. Invariant: `stop` leaves neither process nor directory.
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { access, mkdir, mkdtemp, rename, rm, stat } from 'node:fs/promises';
import { createServer } from 'node:net';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { withDeadline } from '../../shared/deadline.ts';

const run = promisify(execFile);
const version = 'v1.8.0';
const buildTimeoutMs = 600_000;
const startTimeoutMs = 20_000;
const startTries = 3;

export const testCredentials = { accessKeyId: 'thaw-tests', secretAccessKey: 'not-a-secret' };

export interface S3ForTests {
  endpoint: string;
  port: number;
  /** Exists and is empty. */
  bucket: string;
  /** Each object of the bucket is a file in it, under its key. */
  objectsDir: string;
  /** Ends the server and starts it again on the same port and objects. */
  restart(): Promise<void>;
  kill(): Promise<void>;
  stop(): Promise<void>;
}

/** Why there is no S3 server here, for `skip`; undefined when there is one. */
export async function s3Missing(): Promise<string | undefined> {
  if (await exists(binaryPath())) return undefined;
  try {
    await run('go', ['version']);
    return undefined;
  } catch {
    return 'Go is not installed, which builds the S3 server of these tests: apt-get install golang';
  }
}

export async function startS3(): Promise<S3ForTests> {
  const binary = await builtBinary();
  const dir = await mkdtemp(join(tmpdir(), 'thaw-s3-'));
  const bucket = 'thaw-test';
  for (const name of [join('objects', bucket), 'sidecar']) await mkdir(join(dir, name), { recursive: true });
  let { server, port } = await launchAnywhere(binary, dir);
  const kill = () => endOf(server);
  return {
    endpoint: `http://127.0.0.1:${port}`,
    port,
    bucket,
    objectsDir: join(dir, 'objects', bucket),
    kill,
    restart: async () => {
      await kill();
      server = await launch(binary, dir, port);
    },
    stop: async () => {
      await kill();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

/** Another program may take the port between our look and the server's: then the next one. */
async function launchAnywhere(binary: string, dir: string): Promise<{ server: ChildProcess; port: number }> {
  for (let left = startTries; ; left--) {
    const port = await freePort();
    try {
      return { server: await launch(binary, dir, port), port };
    } catch (error) {
      if (left === 1) throw error;
    }
  }
}

async function launch(binary: string, dir: string, port: number): Promise<ChildProcess> {
  const args = ['--port', `127.0.0.1:${port}`, '--quiet', '--keep-alive'];
  // Not every file system under a temporary directory has extended attributes.
  args.push('posix', '--sidecar', join(dir, 'sidecar'), join(dir, 'objects'));
  const { accessKeyId, secretAccessKey } = testCredentials;
  const env = { ...process.env, ROOT_ACCESS_KEY: accessKeyId, ROOT_SECRET_KEY: secretAccessKey };
  const server = spawn(binary, args, { stdio: ['ignore', 'ignore', 'pipe'], env });
  let stderr = '';
  server.stderr?.on('data', (text) => {
    stderr += text;
  });
  await withDeadline(
    'starting the S3 server',
    startTimeoutMs,
    answers(server, port, () => stderr),
  );
  return server;
}

async function answers(server: ChildProcess, port: number, stderr: () => string): Promise<void> {
  for (;;) {
    if (server.exitCode !== null) throw new Error(`the S3 server ended with ${server.exitCode}: ${stderr()}`);
    const response = await fetch(`http://127.0.0.1:${port}/`).catch(() => undefined);
    await response?.body?.cancel();
    if (response) return;
    await delay(20);
  }
}

async function endOf(server: ChildProcess): Promise<void> {
  if (server.exitCode !== null || server.signalCode !== null) return;
  const ended = new Promise((resolve) => server.once('exit', resolve));
  server.kill('SIGKILL');
  await ended;
}

const toolsDir = () => join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'thaw', 'tools');
const binaryPath = () => join(toolsDir(), `versitygw-${version}`);

/** Of several test files that start at once on a new machine one builds, and the others wait for it. */
async function builtBinary(): Promise<string> {
  const path = binaryPath();
  const lockPath = `${path}.building`;
  await mkdir(toolsDir(), { recursive: true });
  for (;;) {
    if (await exists(path)) return path;
    const mine = await mkdir(lockPath).then(
      () => true,
      () => false,
    );
    if (mine) break;
    // Left by a build that was killed: no build takes longer.
    const { mtimeMs } = await stat(lockPath).catch(() => ({ mtimeMs: Date.now() }));
    if (Date.now() - mtimeMs > buildTimeoutMs) await rm(lockPath, { recursive: true, force: true });
    await delay(200);
  }
  try {
    await build(path);
    return path;
  } finally {
    await rm(lockPath, { recursive: true, force: true });
  }
}

async function build(path: string): Promise<void> {
  const module = `github.com/versity/versitygw/cmd/versitygw@${version}`;
  console.log(`installing ${module} into ${toolsDir()}: tests of the S3 store talk to a real server`);
  const scratchDir = await mkdtemp(join(toolsDir(), 'build-'));
  try {
    const env = { ...process.env, GOBIN: scratchDir, GOFLAGS: '' };
    await run('go', ['install', module], { env, timeout: buildTimeoutMs, maxBuffer: 16 * 1024 * 1024 });
    await rename(join(scratchDir, 'versitygw'), path);
  } finally {
    await rm(scratchDir, { recursive: true, force: true });
  }
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );

// Owns a whole Thaw for one benchmark: `thaw up` as users start it, in a process and data directory of its own, on free
// ports, with the guest image of the user's cache. Invariant: it is told to stop and has ended before the run ends.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { defaultCacheDir } from '../../images/image.ts';
import { pathsOf } from '../../pool/host/paths.ts';
import { withDeadline } from '../../shared/deadline.ts';
import type { FunctionManifest } from '../../shared/function-manifest.ts';
import { packTar } from '../../test/vm/pack-tar.ts';
import type { Bench, Outcome } from './benchmark.ts';

/** The base template boots once, emulated perhaps; a first start builds the guest image as well. */
const startTimeoutMs = 20 * 60_000;
const stopTimeoutMs = 60_000;
const deployWaitSeconds = 240;

export interface RunningThaw {
  url: string;
  apiKey: string;
  dataDir: string;
  /** Of the program that serves. */
  pid: number;
  facts: Pick<Outcome, 'hypervisor' | 'accelerator'>;
  /** Deploys file contents by name, and returns when the version serves. */
  deploy(manifest: FunctionManifest, files: Record<string, string>): Promise<void>;
}

/** @param args further arguments of `thaw up`. */
export async function startThaw(bench: Bench, args: string[]): Promise<RunningThaw> {
  const dataDir = await mkdtemp(join(tmpdir(), 'thaw-bench-'));
  bench.cleanup.defer('data directory', () => rm(dataDir, { recursive: true, force: true }));
  await shareChoice(dataDir, 'before');
  bench.progress('starting Thaw');
  const program = join(import.meta.dirname, '../../bin/thaw');
  const own = ['--data-dir', dataDir, '--port', '0', '--admin-port', '0'];
  // A group of its own: a Ctrl-C reaches the benchmark, which stops it in order.
  const child = spawn(program, ['up', '--json', ...own, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  });
  bench.cleanup.defer('Thaw', () => stop(child));
  createInterface({ input: child.stderr! }).on('line', (line) => bench.progress(`  ${line}`));
  const { url, hypervisor } = await announcement(child);
  await shareChoice(dataDir, 'after');
  const apiKey = (await readFile(pathsOf(dataDir).apiKey, 'utf8')).trim();
  return {
    url,
    apiKey,
    dataDir,
    pid: child.pid!,
    facts: { hypervisor, accelerator: acceleratorOf(hypervisor) },
    deploy: (manifest, files) => deploy(url, apiKey, manifest, files),
  };
}

/** Trying KVM can take seconds: its answer is kept beside the guest image, between runs. */
async function shareChoice(dataDir: string, when: 'before' | 'after'): Promise<void> {
  const kept = join(defaultCacheDir(), 'bench-hypervisor.json');
  const used = pathsOf(dataDir).hypervisorChoice;
  await (when === 'before' ? copyFile(kept, used) : copyFile(used, kept)).catch(() => {});
}

/** `thaw up --json` writes one object when it serves. */
async function announcement(child: ChildProcess): Promise<{ url: string; hypervisor: string }> {
  const ended = once(child, 'exit').then(([code, signal]) => {
    throw new Error(`thaw up ended with ${signal ?? `exit code ${code}`}; see above`);
  });
  const announced = new Promise<{ url: string; hypervisor: string }>((resolve, reject) => {
    let output = '';
    child.stdout!.setEncoding('utf8').on('data', (chunk: string) => {
      output += chunk;
      if (!output.trimEnd().endsWith('}')) return;
      const said = JSON.parse(output);
      // A failed start says why in the same place.
      if ('url' in said) resolve(said);
      else reject(new Error(`thaw up: ${output.trim()}`));
    });
  });
  ended.catch(() => {});
  return withDeadline('the start of Thaw', startTimeoutMs, Promise.race([announced, ended]));
}

const acceleratorOf = (hypervisor: string): string => {
  if (hypervisor.includes('KVM')) return 'kvm';
  return hypervisor.includes('emulation') ? 'tcg' : 'none';
};

async function deploy(
  url: string,
  apiKey: string,
  manifest: FunctionManifest,
  files: Record<string, string>,
): Promise<void> {
  const bundle = await packTar({ 'thaw.json': JSON.stringify(manifest), ...files });
  const response = await fetch(`${url}/v1/functions/${manifest.name}/versions`, {
    method: 'POST',
    headers: {
      'content-type': 'application/x-tar',
      'x-api-key': apiKey,
      prefer: `wait=${deployWaitSeconds}`,
    },
    body: new Uint8Array(bundle),
  });
  const answer = (await response.json()) as { state?: string };
  if (response.status !== 201) throw new Error(`deploying ${manifest.name}: ${JSON.stringify(answer)}`);
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGTERM');
  await withDeadline('the end of Thaw', stopTimeoutMs, ended).catch(() => child.kill('SIGKILL'));
}

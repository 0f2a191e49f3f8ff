// Owns what runs in the nested machine and for how long: tests of Cloud Hypervisor, the main job on it, its figures.
// Refuses to own counting (scripts/test-stages.mjs reads what the runs inside print).
// Invariant: every step has a deadline; the machine and its disks go whatever step fails.
// Options: names of steps run just those; --keep-console FILE keeps what the machine's kernel says.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { defaultCacheDir, ensureImage } from '../../images/image.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { withDeadline } from '../../shared/deadline.ts';
import type { CommandRequest } from './command-server.ts';
import { ensureMachineRoot, makeDisks } from './machine-disks.ts';
import { NestedMachine } from './nested-machine.ts';

interface Step {
  name: string;
  title: string;
  args: readonly string[];
  timeoutMs: number;
}

const minuteMs = 60_000;
const test = (name: string) => ['--test', '--test-reporter=spec', `test/vm/${name}.vm.test.ts`];

/** Small numbers: everything is some fifty times slower in there. */
const bench = (...args: string[]) => ['loadtest/bench/main.ts', ...args];

const steps: readonly Step[] = [
  {
    name: 'conformance',
    title: 'conformance suite on Cloud Hypervisor',
    args: test('cloud-hypervisor-conformance'),
    timeoutMs: 12 * minuteMs,
  },
  {
    name: 'main-job',
    title: 'the main job on Cloud Hypervisor',
    args: test('cloud-hypervisor-main-job'),
    timeoutMs: 12 * minuteMs,
  },
  {
    name: 'rows',
    title: 'rows of the failure matrix on Cloud Hypervisor',
    args: test('cloud-hypervisor-rows'),
    timeoutMs: 15 * minuteMs,
  },
  {
    name: 'figures',
    title: 'figures: against what Cloud Hypervisor does by itself',
    args: bench('metal', '--n', '3'),
    timeoutMs: 15 * minuteMs,
  },
  {
    name: 'density',
    title: 'figures: memory of 8 idle clones',
    args: bench('density', '--n', '8'),
    timeoutMs: 10 * minuteMs,
  },
  {
    name: 'burst',
    title: 'figures: 32 clones at once',
    args: bench('burst', '--n', '32', '--rounds', '1'),
    timeoutMs: 10 * minuteMs,
  },
];

const inside = {
  node: '/payload/thaw/node_modules/.bin/node',
  project: '/payload/thaw',
  binary: '/payload/bin/cloud-hypervisor',
  temporary: '/payload/tmp',
};
const prepareTimeoutMs = 15 * minuteMs;

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    options: { 'keep-console': { type: 'string' } },
    allowPositionals: true,
  });
  const wanted = steps.filter(({ name }) => positionals.length === 0 || positionals.includes(name));
  if (wanted.length === 0) throw new Error(`steps are: ${steps.map(({ name }) => name).join(', ')}`);
  const binaryPath = process.env.THAW_CLOUD_HYPERVISOR;
  if (!binaryPath) throw new Error('THAW_CLOUD_HYPERVISOR names no binary');
  await using cleanup = new Cleanup();
  endOnSignals(cleanup);
  const machine = await startMachine(resolve(binaryPath), values['keep-console'], cleanup);
  let failures = 0;
  for (const step of wanted) if (!(await passes(machine, step))) failures += 1;
  return failures === 0 ? 0 : 1;
}

async function startMachine(
  binaryPath: string,
  consolePath: string | undefined,
  cleanup: Cleanup,
): Promise<NestedMachine> {
  const runDir = await mkdtemp(join(tmpdir(), 'thaw-metal-'));
  cleanup.defer('disks of the machine', () => rm(runDir, { recursive: true, force: true }));
  const prepared = async () => {
    const root = await ensureMachineRoot(join(defaultCacheDir(), 'metal'), say);
    return makeDisks(root, runDir, { binaryPath, image: await ensureImage({ onProgress: say }) }, say);
  };
  const disks = await withDeadline('preparing the nested machine', prepareTimeoutMs, prepared());
  say('starting the nested machine');
  const machine = await NestedMachine.start({ ...disks, ...(consolePath ? { consolePath } : {}) });
  cleanup.defer('nested machine', () => machine[Symbol.asyncDispose]());
  return machine;
}

async function passes(machine: NestedMachine, { title, args, timeoutMs }: Step): Promise<boolean> {
  say(title);
  const request: CommandRequest = {
    argv: [inside.node, ...args],
    cwd: inside.project,
    env: { THAW_CLOUD_HYPERVISOR: inside.binary, TMPDIR: inside.temporary },
  };
  const onOutput = (text: string, stream: 'stdout' | 'stderr') => void process[stream].write(text);
  try {
    return (await machine.run(request, { timeoutMs, onOutput })) === 0;
  } catch (error) {
    say(`✗ ${title}: ${(error as Error).message}`);
    return false;
  }
}

function endOnSignals(cleanup: Cleanup): void {
  for (const [signal, exitCode] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)
    process.once(signal, () => void cleanup.run().then(() => process.exit(exitCode)));
}

const startMs = performance.now();
function say(what: string): void {
  process.stdout.write(`${((performance.now() - startMs) / 1000).toFixed(1).padStart(6)} s  ${what}\n`);
}

process.exitCode = await main();

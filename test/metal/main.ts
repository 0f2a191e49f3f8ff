// Owns what runs in the nested machine and for how long: tests of Cloud Hypervisor, the main job on it, its figures.
// Refuses to own counting (scripts/test-stages.mjs reads what the runs inside print).
// Invariant: every step has a deadline; the machine and its disks go whatever step fails.
// Options: names of steps run just those; --rounds N makes and ends so many clones in the step of that name (100);
// --keep-console FILE keeps what the machine's kernel says.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { defaultCacheDir, ensureImage } from '../../images/image.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { withDeadline } from '../../shared/deadline.ts';
import type { CommandRequest } from './command-server.ts';
import { ensureMachineRoot, type MachineDisks, makeDisks } from './machine-disks.ts';
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
    name: 'figures',
    title: 'figures: against what Cloud Hypervisor does by itself',
    args: bench('metal', '--n', '5'),
    timeoutMs: 15 * minuteMs,
  },
  {
    name: 'density',
    title: 'figures: memory of 8 idle clones',
    args: bench('density', '--n', '8', '--stored', 'no'),
    timeoutMs: 10 * minuteMs,
  },
  {
    name: 'burst',
    title: 'figures: 32 clones at once',
    args: bench('burst', '--n', '32', '--rounds', '1', '--timeout-s', '240'),
    timeoutMs: 10 * minuteMs,
  },
  {
    name: 'rows',
    title: 'rows of the failure matrix on Cloud Hypervisor',
    args: test('cloud-hypervisor-rows'),
    timeoutMs: 15 * minuteMs,
  },
  {
    name: 'stored',
    title: 'snapshots that come from a store, on Cloud Hypervisor',
    args: test('cloud-hypervisor-stored'),
    timeoutMs: 15 * minuteMs,
  },
  {
    name: 'large',
    title: 'a guest of more than 3 GiB with two CPUs',
    args: test('cloud-hypervisor-large'),
    timeoutMs: 12 * minuteMs,
  },
  {
    name: 'rounds',
    title: 'many rounds of making and ending clones',
    args: test('cloud-hypervisor-rounds'),
    timeoutMs: 25 * minuteMs,
  },
];

const inside = {
  node: '/payload/thaw/node_modules/.bin/node',
  project: '/payload/thaw',
  binary: '/payload/bin/cloud-hypervisor',
  temporary: '/payload/tmp',
};
const prepareTimeoutMs = 15 * minuteMs;
const maxAttempts = 3;
/** It starts a program in a second, and in ten when all clones start at once. */
const answerTimeoutMs = 60_000;
const answerEveryMs = 10_000;

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    options: { 'keep-console': { type: 'string' }, rounds: { type: 'string', default: '100' } },
    allowPositionals: true,
  });
  const wanted = steps.filter(({ name }) => positionals.length === 0 || positionals.includes(name));
  if (wanted.length === 0) throw new Error(`steps are: ${steps.map(({ name }) => name).join(', ')}`);
  const binaryPath = process.env.THAW_CLOUD_HYPERVISOR;
  if (!binaryPath) throw new Error('THAW_CLOUD_HYPERVISOR names no binary');
  await using cleanup = new Cleanup();
  endOnSignals(cleanup);
  const disks = await prepare(resolve(binaryPath), values['keep-console'], cleanup);
  const metal = new Metal(disks, values.rounds);
  cleanup.defer('nested machine', () => metal[Symbol.asyncDispose]());
  let failures = 0;
  for (const step of wanted) if (!(await metal.passes(step))) failures += 1;
  return failures === 0 ? 0 : 1;
}

async function prepare(
  binaryPath: string,
  consolePath: string | undefined,
  cleanup: Cleanup,
): Promise<MachineDisks> {
  const runDir = await mkdtemp(join(tmpdir(), 'thaw-metal-'));
  cleanup.defer('disks of the machine', () => rm(runDir, { recursive: true, force: true }));
  const prepared = async () => {
    const root = await ensureMachineRoot(join(defaultCacheDir(), 'metal'), say);
    return makeDisks(root, runDir, { binaryPath, image: await ensureImage({ onProgress: say }) }, say);
  };
  const disks = await withDeadline('preparing the nested machine', prepareTimeoutMs, prepared());
  return { ...disks, ...(consolePath ? { consolePath } : {}) };
}

/**
 * The machine, started again when it hangs, as it did with two emulated CPUs. A step that this happened to is run again;
 * one that failed is not.
 */
class Metal implements AsyncDisposable {
  readonly #disks: MachineDisks;
  readonly #rounds: string;
  #machine: NestedMachine | undefined;

  constructor(disks: MachineDisks, rounds: string) {
    this.#disks = disks;
    this.#rounds = rounds;
  }

  async passes(step: Step): Promise<boolean> {
    for (let attempt = 1; ; attempt++) {
      say(step.title);
      const outcome = await this.#run(step);
      if (outcome !== 'hung') return outcome === 'passed';
      await this[Symbol.asyncDispose]();
      say(`the nested machine hung, attempt ${attempt} of ${maxAttempts} at: ${step.title}`);
      if (attempt === maxAttempts) return false;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const machine = this.#machine;
    this.#machine = undefined;
    await machine?.[Symbol.asyncDispose]();
  }

  async #run({ title, args, timeoutMs }: Step): Promise<'passed' | 'failed' | 'hung'> {
    const ended = new AbortController();
    try {
      this.#machine ??= await this.#start();
      const machine = this.#machine;
      const request: CommandRequest = {
        argv: [inside.node, ...args],
        cwd: inside.project,
        env: {
          THAW_CLOUD_HYPERVISOR: inside.binary,
          TMPDIR: inside.temporary,
          CLONE_ROUNDS: this.#rounds,
        },
      };
      const onOutput = (text: string, stream: 'stdout' | 'stderr') => void process[stream].write(text);
      const running = machine.run(request, { timeoutMs, onOutput });
      const outcome = await Promise.race([running, hung(machine, ended.signal)]);
      return outcome === 'hung' ? 'hung' : outcome === 0 ? 'passed' : 'failed';
    } catch (error) {
      say(`✗ ${title}: ${(error as Error).message}`);
      return 'failed';
    } finally {
      ended.abort();
    }
  }

  async #start(): Promise<NestedMachine> {
    say('starting the nested machine');
    const machine = await NestedMachine.start(this.#disks);
    // Of an attempt before: nothing reads it, and the disk is finite.
    await machine.run({ argv: ['sh', '-c', `rm -rf ${inside.temporary}/*`] }, { timeoutMs: answerTimeoutMs });
    return machine;
  }
}

/** Resolves when the machine answers no longer. */
async function hung(machine: NestedMachine, signal: AbortSignal): Promise<'hung'> {
  while (!signal.aborted) {
    const answer = await machine
      .run({ argv: ['true'] }, { timeoutMs: answerTimeoutMs })
      .catch(() => undefined);
    if (answer !== 0) return 'hung';
    await delay(answerEveryMs, undefined, { signal }).catch(() => {});
  }
  return new Promise(() => {});
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

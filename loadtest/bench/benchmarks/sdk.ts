// Owns what Thaw's own SDK costs: a command through it against the same call straight to the guest's agent, a large file
// each way with the memory it takes on host and guest, and a long list of sandboxes.
// Invariant: both ways of a command alternate in one run; the list is of a gateway whose sandboxes have no VM, because
// none is asked for it.
import { readFile, writeFile } from 'node:fs/promises';
import { request } from 'undici';
import { Sandbox } from '../../../sdk/typescript/index.ts';
import { startGateway } from '../../../services/gateway/gateway-for-tests.ts';
import { encodeFrame, FrameDecoder } from '../../../shared/connect-frames.ts';
import type { Bench, Benchmark, Metric, Outcome } from '../benchmark.ts';
import { findGuest } from '../listening-ports.ts';
import { median, percentilesMs } from '../percentile.ts';
import { type RunningThaw, startThaw } from '../running-thaw.ts';

const warmUps = 10;
const listings = 50;
const bytesPerMb = 1_000_000;
const maxFrameBytes = 1024 * 1024;
const requestTimeoutMs = 600_000;
/** What proc(5) makes of it: the peak of resident memory starts again from what there is. */
const resetPeak = '5';

export const sdk: Benchmark = {
  name: 'sdk',
  summary: 'commands, a large file and a long list through the TypeScript SDK',
  n: { default: 50, description: 'commands through the SDK, and as many straight to the agent' },
  options: {
    hypervisor: { default: 'auto', description: 'as for thaw up' },
    megabytes: { default: 100, description: 'size of the file' },
    sandboxes: { default: 200, description: 'sandboxes to list' },
  },
  run,
};

async function run(bench: Bench): Promise<Outcome> {
  const listing = await measureListing(bench);
  const thaw = await startThaw(bench, ['--hypervisor', bench.text('hypervisor'), '--base-warm', '1']);
  const sandbox = await Sandbox.create({ apiUrl: thaw.url, apiKey: thaw.apiKey, requestTimeoutMs });
  const transfer = await measureTransfer(bench, thaw, sandbox);
  const commands = await measureCommands(bench, thaw, sandbox);
  await sandbox.kill();
  return { n: bench.n, ...thaw.facts, metrics: [...commands, ...transfer, ...listing] };
}

async function timedMs(call: () => Promise<unknown>): Promise<number> {
  const startMs = performance.now();
  await call();
  return performance.now() - startMs;
}

// --- A command ---

async function measureCommands(bench: Bench, thaw: RunningThaw, sandbox: Sandbox): Promise<Metric[]> {
  const through = () => sandbox.commands.run('true');
  const straight = await straightCommand(thaw, sandbox);
  bench.progress(`${warmUps} commands each way to warm up, then ${bench.n}`);
  const [sdkMs, straightMs]: [number[], number[]] = [[], []];
  for (let turn = -warmUps; turn < bench.n; turn++) {
    const pair = [await timedMs(straight), await timedMs(through)] as const;
    if (turn < 0) continue;
    straightMs.push(pair[0]);
    sdkMs.push(pair[1]);
  }
  const ratio = median(sdkMs) / median(straightMs);
  return [
    ...percentilesMs('commandMs', sdkMs, ['p50', 'p99']),
    ...percentilesMs('straightMs', straightMs, ['p50', 'p99']),
    { key: 'commandVsStraight', value: ratio, unit: 'ratio', n: bench.n, goal: { max: 1.3 } },
  ];
}

/** The SDK's message to the agent's own port, and the answer read to its end. */
async function straightCommand(thaw: RunningThaw, { sandboxId }: Sandbox): Promise<() => Promise<void>> {
  const shown = await fetch(`${thaw.url}/sandboxes/${sandboxId}`, { headers: { 'x-api-key': thaw.apiKey } });
  const { envdAccessToken } = (await shown.json()) as { envdAccessToken: string };
  const post = async (origin: string, path: string, contentType: string, body: Uint8Array | string) => {
    const headers = { 'content-type': contentType, 'x-access-token': envdAccessToken };
    const answer = await request(`${origin}${path}`, { method: 'POST', headers, body });
    return { status: answer.statusCode, bytes: Buffer.from(await answer.body.arrayBuffer()) };
  };
  const origin = await findGuest(thaw.dataDir, async (candidate) => {
    const asked = post(candidate, '/process.Process/List', 'application/json', '{}');
    return await asked.then(
      ({ status }) => status === 200,
      () => false,
    );
  });
  const start = encodeFrame({ process: { cmd: '/bin/bash', args: ['-l', '-c', 'true'] }, stdin: false });
  return async () => {
    const { bytes } = await post(origin, '/process.Process/Start', 'application/connect+json', start);
    const frames = new FrameDecoder(maxFrameBytes).push(bytes);
    if (frames.length !== 3) throw new Error(`the agent answered ${bytes.toString('utf8')}`);
  };
}

// --- A large file ---

async function measureTransfer(bench: Bench, thaw: RunningThaw, sandbox: Sandbox): Promise<Metric[]> {
  const megabytes = bench.number('megabytes');
  bench.progress(`${megabytes} MB up and down, once to warm up`);
  // The heaps take their size; and what is asked for next is the peak since now.
  await transferOnce(sandbox, megabytes);
  await Promise.all([hostPeakBytes(thaw), guestPeakBytes(sandbox)]);
  const before = await Promise.all([hostPeakBytes(thaw), guestPeakBytes(sandbox)]);
  const { writeMs, readMs } = await transferOnce(sandbox, megabytes);
  const after = await Promise.all([hostPeakBytes(thaw), guestPeakBytes(sandbox)]);
  await sandbox.files.remove('large');
  const grown = (key: string, which: 0 | 1): Metric => ({
    key,
    value: (after[which] - before[which]) / bytesPerMb,
    unit: 'MB',
    n: 1,
    // Garbage of chunks on their way, but not the file.
    goal: { max: 20 },
  });
  return [
    { key: 'fileWriteMs', value: writeMs, unit: 'ms', n: 1 },
    { key: 'fileReadMs', value: readMs, unit: 'ms', n: 1 },
    grown('hostGrowthMb', 0),
    grown('guestAgentGrowthMb', 1),
  ];
}

async function transferOnce(sandbox: Sandbox, megabytes: number) {
  const chunk = new Uint8Array(bytesPerMb).fill(7);
  let left = megabytes;
  const content = new ReadableStream<Uint8Array>({
    pull: (controller) => (left-- > 0 ? controller.enqueue(chunk) : controller.close()),
  });
  const writeMs = await timedMs(() => sandbox.files.write('large', content, { requestTimeoutMs }));
  let readBytes = 0;
  const readMs = await timedMs(async () => {
    const stream = await sandbox.files.read('large', { format: 'stream', requestTimeoutMs });
    for await (const part of stream as ReadableStream<Uint8Array>) readBytes += part.length;
  });
  if (readBytes !== megabytes * bytesPerMb) throw new Error(`${readBytes} bytes came back`);
  return { writeMs, readMs };
}

/** Begins a new peak with each call: of the memory there is now. */
async function hostPeakBytes({ pid }: RunningThaw): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  await writeFile(`/proc/${pid}/clear_refs`, resetPeak);
  return peakBytesOf(status);
}

/** A command's parent is the agent. */
async function guestPeakBytes(sandbox: Sandbox): Promise<number> {
  const ask = `cat /proc/$PPID/status; echo ${resetPeak} > /proc/$PPID/clear_refs`;
  return peakBytesOf((await sandbox.commands.run(ask, { user: 'root' })).stdout);
}

function peakBytesOf(status: string): number {
  const found = /^VmHWM:\s+(\d+) kB$/m.exec(status);
  if (found === null) throw new Error(`no peak of memory in ${JSON.stringify(status.slice(0, 200))}`);
  return Number(found[1]) * 1024;
}

// --- A long list ---

async function measureListing(bench: Bench): Promise<Metric[]> {
  const count = bench.number('sandboxes');
  const gateway = await startGateway();
  bench.cleanup.defer('gateway', () => gateway.close());
  const connection = { apiUrl: gateway.url, apiKey: gateway.apiKey };
  bench.progress(`${count} sandboxes without VMs, listed ${listings} times`);
  for (let made = 0; made < count; made++)
    await Sandbox.create({ ...connection, metadata: { made: `${made}` } });
  const list = async () => {
    const { length } = await Sandbox.list(connection);
    if (length !== count) throw new Error(`${length} sandboxes were listed, not ${count}`);
  };
  for (let turn = 0; turn < warmUps; turn++) await list();
  const timesMs: number[] = [];
  for (let turn = 0; turn < listings; turn++) timesMs.push(await timedMs(list));
  return percentilesMs('listMs', timesMs, ['p50', 'p99'], { p50: 50 });
}

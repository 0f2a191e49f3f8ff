// Holds the guest agent to what only a real guest shows: a disk that is full, users with rights of their own, many streams
// of one sandbox at once, memory on both sides of a large file. Refuses to own what an agent on the host shows as well
// (services/guest-agent). Invariant: one sandbox for all of it; each test leaves it as it was.
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { after, before, describe, it, type TestContext } from 'node:test';
import { CommandExitError, NoSpaceError, Sandbox } from '../../sdk/typescript/index.ts';
import { newDataDir, removeDir, startThaw, type ThawProcess } from './thaw-process.ts';

const requestTimeoutMs = 120_000;
const streams = 50;
const linesOfEach = 100;
const mib = 1024 * 1024;
const largeBytes = 100 * mib;
/** A fraction of the file, and more than what a collector of garbage lets grow. */
const flatMb = 60;

let thaw: ThawProcess;
let dataDir: string;
let sbx: Sandbox;
before(async () => {
  dataDir = await newDataDir();
  thaw = await startThaw(dataDir);
  sbx = await Sandbox.create({ apiUrl: thaw.url, apiKey: thaw.apiKey, requestTimeoutMs });
  // Where sandboxes are processes, the disk that is filled would be the host's.
  assert.equal((await sbx.commands.run('id -un')).stdout, 'user\n', 'the sandbox must be a VM');
});
after(async () => {
  await sbx?.kill();
  await thaw?.end();
  await removeDir(dataDir);
});

const asRoot = (command: string) => sbx.commands.run(command, { user: 'root', timeoutMs: requestTimeoutMs });

/** Takes what is free, in halves: the last blocks are found only by trying. */
const fillDisk = `
size=$(($(stat -f -c '%f * %S' /home/user)))
while [ $size -ge 4096 ]; do
  fallocate -l $size /home/user/filler-$size 2> /dev/null
  size=$((size / 2))
done
`;

const peakIn = (status: string): number => Number(/VmHWM:\s+(\d+)/.exec(status)![1]) / 1024;

/** The most memory that Thaw and the agent have had since `forgetPeaks`, in MB. */
async function peaksMb(): Promise<{ host: number; guest: number }> {
  const host = peakIn(await readFile(`/proc/${thaw.pid}/status`, 'utf8'));
  // A command's parent is the agent.
  return { host, guest: peakIn((await asRoot('cat /proc/$PPID/status')).stdout) };
}

async function forgetPeaks(): Promise<void> {
  await writeFile(`/proc/${thaw.pid}/clear_refs`, '5');
  await asRoot('echo 5 > /proc/$PPID/clear_refs');
}

function chunksOf(sizeBytes: number): ReadableStream<Uint8Array> {
  const chunk = Buffer.alloc(mib, 'thaw');
  let leftBytes = sizeBytes;
  return new ReadableStream({
    pull(controller) {
      if (leftBytes === 0) return controller.close();
      controller.enqueue(chunk);
      leftBytes -= chunk.length;
    },
  });
}

/** There and back. */
async function carry(sizeBytes: number): Promise<{ writeMs: number; readMs: number }> {
  const startMs = performance.now();
  await sbx.files.write('large', chunksOf(sizeBytes), { requestTimeoutMs });
  const writtenMs = performance.now();
  let readBytes = 0;
  const reading = await sbx.files.read('large', { format: 'stream', requestTimeoutMs });
  for await (const part of reading) readBytes += part.length;
  const endMs = performance.now();
  assert.equal(readBytes, sizeBytes);
  await sbx.files.remove('large');
  return { writeMs: writtenMs - startMs, readMs: endMs - writtenMs };
}

describe('the agent of a real guest', () => {
  it('carries 100 MB each way with flat memory on the host and in the guest', async (context: TestContext) => {
    // What a first transfer compiles and lets a heap grow to is not what the file takes.
    await carry(largeBytes / 2);
    await forgetPeaks();
    const before = await peaksMb();
    const { writeMs, readMs } = await carry(largeBytes);
    const after = await peaksMb();
    context.diagnostic(
      `written in ${writeMs.toFixed(0)} ms, read in ${readMs.toFixed(0)} ms; peak before and ` +
        `after in MB: host ${before.host.toFixed(0)}, ${after.host.toFixed(0)}; guest ${before.guest.toFixed(0)}, ${after.guest.toFixed(0)}`,
    );
    for (const side of ['host', 'guest'] as const)
      assert.ok(after[side] - before[side] < flatMb, `${side}: ${before[side]} → ${after[side]} MB`);
  });

  it('says 507 when its disk is full, and goes on when it is not any more', async () => {
    await sbx.files.write('before', 'kept');
    await asRoot(fillDisk);
    const body = new Uint8Array(4_000_000);
    await assert.rejects(sbx.files.write('large', body, { requestTimeoutMs }), NoSpaceError);
    assert.equal(await sbx.files.exists('large'), false, 'what could not be written whole is gone');
    assert.equal(await sbx.files.read('before'), 'kept');
    await asRoot('rm /home/user/filler-*');
    await sbx.files.write('large', body, { requestTimeoutMs });
    assert.equal((await sbx.files.getInfo('large')).sizeBytes, body.length);
    await sbx.files.remove('large');
  });

  it('acts as the user who is named, with that user’s rights and groups', async () => {
    const whoIs = async (user?: string) =>
      (await sbx.commands.run('echo $(id -un) $(id -gn) $HOME $USER $LOGNAME', { user })).stdout;
    assert.equal(await whoIs(), 'user user /home/user user user\n');
    assert.equal(await whoIs('root'), 'root root /root root root\n');
    await sbx.files.write('secret', 'x', { user: 'root' });
    assert.equal((await sbx.files.getInfo('/root/secret', { user: 'root' })).owner, 'root');
    await assert.rejects(sbx.commands.run('cat /root/secret'), CommandExitError);
    assert.equal((await sbx.commands.run('sudo -n cat /root/secret')).stdout, 'x');
    await sbx.files.write('own/file', 'x');
    assert.equal((await sbx.files.getInfo('own')).owner, 'user');
    await asRoot('groupadd extra && usermod -aG extra user');
    assert.match((await sbx.commands.run('id -nG')).stdout, /\bextra\b/);
    await asRoot('gpasswd -d user extra && groupdel extra && rm /root/secret');
    await assert.rejects(sbx.commands.run('true', { user: 'nobody-of-that-name' }), /no such user/);
  });

  it(`carries ${streams} streams at once and drops nothing`, async (context: TestContext) => {
    const startMs = performance.now();
    const run = (index: number) =>
      sbx.commands.run(`for i in $(seq ${linesOfEach}); do echo ${index}-$i; done`, {
        timeoutMs: requestTimeoutMs,
      });
    const results = await Promise.all(Array.from({ length: streams }, (_, index) => run(index)));
    for (const [index, { stdout }] of results.entries()) {
      const lines = Array.from({ length: linesOfEach }, (_, line) => `${index}-${line + 1}\n`);
      assert.ok(stdout === lines.join(''), `stream ${index}: ${stdout.length} characters`);
    }
    context.diagnostic(`${streams} streams in ${(performance.now() - startMs).toFixed(0)} ms`);
  });
});

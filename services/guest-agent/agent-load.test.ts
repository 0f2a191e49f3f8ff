// Tests the agent under load through the real E2B client: many streams, a large file, the price of the client.
// The figures are printed: they are of this machine, the limits are not.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, describe, it, type TestContext } from 'node:test';
import { encodeFrame, FrameDecoder } from '../../shared/connect-frames.ts';
import { AgentFixture } from './agent-fixture.ts';

let agent: AgentFixture;
before(async () => {
  agent = await AgentFixture.start();
});
after(() => agent?.[Symbol.asyncDispose]());

const median = (values: number[]) => values.toSorted((one, other) => one - other)[values.length >> 1]!;
const mib = 1024 * 1024;

describe('the agent under load', () => {
  it('runs 50 commands at once and drops nothing of their output', async (context: TestContext) => {
    const client = await agent.client();
    const startedAtMs = performance.now();
    const runs = Array.from({ length: 50 }, (_, index) =>
      client.commands.run(`for i in $(seq 2000); do echo ${index}-$i; done; seq 2000 >&2`, {
        timeoutMs: 60_000,
      }),
    );
    for (const [index, { stdout, stderr }] of (await Promise.all(runs)).entries()) {
      const lines = stdout.split('\n');
      assert.deepEqual([lines.length, lines[0], lines[1999]], [2001, `${index}-1`, `${index}-2000`]);
      assert.equal(stderr.split('\n').length, 2001);
    }
    context.diagnostic(`50 commands in ${(performance.now() - startedAtMs).toFixed(0)} ms`);
  });

  it('shows one command to 50 listeners, each all of it', async () => {
    const client = await agent.client();
    const command = await client.commands.run('read go; seq 200000; echo end', {
      background: true,
      stdin: true,
    });
    const texts = await Promise.all(
      Array.from({ length: 50 }, async () => await client.commands.connect(command.pid)),
    ).then(async (listeners) => {
      await client.commands.sendStdin(command.pid, '\n');
      return await Promise.all(listeners.map(async (listener) => (await listener.wait()).stdout));
    });
    const digests = new Set(texts.map((text) => createHash('sha1').update(text).digest('hex')));
    assert.equal(digests.size, 1);
    assert.equal(texts[0]!.split('\n').length, 200_002);
  });

  it('holds 50 terminals and 20 watches at once', async () => {
    const client = await agent.client();
    await client.files.makeDir('watched');
    let told = 0;
    const watches = await Promise.all(
      // The kernel counts them over all that this user runs.
      Array.from({ length: 20 }, () =>
        client.files.watchDir('watched', ({ name, type }) => {
          if (name === 'mark' && type === 'create') told++;
        }),
      ),
    );
    let shown = 0;
    const terminals = await Promise.all(
      Array.from({ length: 50 }, () => client.pty.create({ cols: 80, rows: 24, onData: () => void shown++ })),
    );
    await client.files.write('watched/mark', 'x');
    await agent.eventually('every watch told', () => told === 20);
    for (const terminal of terminals) assert.equal(await terminal.kill(), true);
    assert.ok(shown >= 50);
    for (const watch of watches) await watch.stop();
  });

  it('carries 100 MB each way with flat memory', async (context: TestContext) => {
    const { files } = await agent.client();
    const chunk = Buffer.alloc(mib, 'thaw');
    let left = 100;
    const body = new ReadableStream({
      pull(controller) {
        if (left-- > 0) controller.enqueue(chunk);
        else controller.close();
      },
    });
    const idleMb = await agent.memoryMb('VmRSS');
    const startedAtMs = performance.now();
    await files.write('large', body, { requestTimeoutMs: 60_000 });
    const writtenAtMs = performance.now();
    let sizeBytes = 0;
    for await (const part of await files.read('large', { format: 'stream' })) sizeBytes += part.length;
    const readAtMs = performance.now();
    assert.equal(sizeBytes, 100 * mib);
    const peakMb = await agent.memoryMb('VmHWM');
    context.diagnostic(
      `written in ${(writtenAtMs - startedAtMs).toFixed(0)} ms, read in ${(readAtMs - writtenAtMs).toFixed(0)} ms; ` +
        `${idleMb.toFixed(0)} MB before, ${peakMb.toFixed(0)} MB at most`,
    );
    assert.ok(peakMb - idleMb < 60, `the agent grew from ${idleMb.toFixed(0)} to ${peakMb.toFixed(0)} MB`);
  });

  it('costs little more through the client than straight', async (context: TestContext) => {
    const client = await agent.client();
    const through = () => client.commands.run('true');
    const request = encodeFrame({ process: { cmd: '/bin/bash', args: ['-l', '-c', 'true'] }, stdin: false });
    const straight = async () => {
      const response = await agent.fetch('/process.Process/Start', {
        method: 'POST',
        headers: { 'content-type': 'application/connect+json' },
        body: new Uint8Array(request),
      });
      const frames = new FrameDecoder(mib).push(Buffer.from(await response.arrayBuffer()));
      assert.equal(frames.length, 3);
    };
    const timed = async (call: () => Promise<unknown>) => {
      const startedAtMs = performance.now();
      await call();
      return performance.now() - startedAtMs;
    };
    for (let count = 0; count < 10; count++) await Promise.all([through(), straight()]);
    const [ours, theirs]: [number[], number[]] = [[], []];
    // In turn: what else this machine does meets both alike.
    for (let count = 0; count < 60; count++) {
      ours.push(await timed(straight));
      theirs.push(await timed(through));
    }
    const ratio = median(theirs) / median(ours);
    context.diagnostic(
      `n=60, straight ${median(ours).toFixed(2)} ms, client ${median(theirs).toFixed(2)} ms, ratio ${ratio.toFixed(2)}`,
    );
    assert.ok(ratio <= 1.3, `ratio ${ratio.toFixed(2)}`);
  });
});

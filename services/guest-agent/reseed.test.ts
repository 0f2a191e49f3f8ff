// Tests that a reseed changes every generator of Node and Python processes, and that one who does not confirm is told.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, it } from 'node:test';
import { ReseedServer } from './reseed-server.ts';
import { runnerDir, runnerFile } from './settings.ts';

const deadlineMs = 20_000;

/** A process that has joined `reseeds`, with the lines it reports. */
class Program {
  readonly child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(reseeds: ReseedServer, argv: string[]) {
    this.child = spawn(argv[0]!, argv.slice(1), {
      stdio: ['pipe', 'pipe', 'inherit'],
      env: {
        ...process.env,
        THAW_RESEED_SOCKET: reseeds.address,
        NODE_OPTIONS: `--require=${JSON.stringify(runnerFile('node-reseed'))}`,
        PYTHONPATH: runnerDir,
      },
    });
    this.#lines = createInterface({ input: this.child.stdout! })[Symbol.asyncIterator]();
  }

  async report<T>(): Promise<T> {
    const { value, done } = await this.#lines.next();
    assert.equal(done, false, 'the program ended without a report');
    return JSON.parse(value) as T;
  }

  tell(): void {
    this.child.stdin!.write('\n');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      const gone = once(this.child, 'exit');
      this.child.kill('SIGKILL');
      await gone;
    }
  }
}

const nodeProgram = (reseeds: ReseedServer, ...args: string[]) =>
  new Program(reseeds, [process.execPath, join(runnerDir, 'random-fixture.ts'), ...args]);

/** Reports before and after a reseed with `seed`. */
async function around<T>(seed: Buffer, start: (reseeds: ReseedServer) => Program): Promise<[T, T]> {
  const reseeds = await ReseedServer.listen();
  try {
    await using program = start(reseeds);
    const before = await program.report<T>();
    assert.ok(reseeds.memberCount > 0, 'the program did not join');
    await reseeds.reseedAll(seed, deadlineMs);
    program.tell();
    return [before, await program.report<T>()];
  } finally {
    reseeds.close();
  }
}

const seedA = Buffer.alloc(32, 1);
const seedB = Buffer.alloc(32, 2);

describe('reseeding a Node process', () => {
  it('makes Math.random of main thread and workers a function of the seed', async () => {
    type Draws = { main: number[]; worker: number[] };
    const run = (seed: Buffer) => around<Draws>(seed, (reseeds) => nodeProgram(reseeds, 'math'));
    const [[before1, after1], [before2, after2], [, other]] = [
      await run(seedA),
      await run(seedA),
      await run(seedB),
    ];
    assert.deepEqual(after1, after2, 'the same seed gives the same values');
    assert.notDeepEqual(before1, before2, 'unseeded processes differ');
    const values = [before1, before2, after1, other].flatMap(({ main, worker }) => [...main, ...worker]);
    assert.equal(new Set(values).size, values.length, 'no value twice');
    for (const value of values) assert.ok(value >= 0 && value < 1);
  });

  it("reseeds OpenSSL's generators", async () => {
    const [before, after] = await around<number[]>(seedA, (reseeds) => nodeProgram(reseeds, 'openssl'));
    assert.ok(after[0]! > before[0]!, `primary: ${before[0]} then ${after[0]}`);
    assert.ok(after[1]! > before[1]!, `public: ${before[1]} then ${after[1]}`);
  });

  // One source at a time as well: one must not rely on another's call to empty a cache they share.
  const sources = ['randomUUID', 'webRandomUUID', 'randomInt', 'randomUUIDv7'];
  const cases = [`${sources.join(',')},randomBytes,getRandomValues`, ...sources];
  for (const names of cases)
    it(`returns no value that was cached before: ${names}`, async () => {
      type Draws = Record<string, string[]>;
      const [before, after] = await around<Draws>(seedA, (reseeds) => nodeProgram(reseeds, 'epoch', names));
      for (const name of names.split(',')) {
        const digits = (value: string) =>
          value
            .replace(/-[48]/g, '-')
            .replace(/-[9ab]/g, '-')
            .replaceAll('-', '');
        for (const value of before[name]!) assert.match(digits(value), /^1+$/, `${name} before`);
        for (const value of after[name]!) assert.match(digits(value), /^2+$/, `${name} after`);
        assert.equal(after[name]!.length, 3000);
      }
    });

  it('never keeps a program alive', async () => {
    const reseeds = await ReseedServer.listen();
    await using program = new Program(reseeds, [process.execPath, '-e', 'console.log(1)']);
    const [exitCode] = await once(program.child, 'exit', { signal: AbortSignal.timeout(deadlineMs) });
    assert.equal(exitCode, 0);
    reseeds.close();
  });
});

const pythonSource = `
import json, random, ssl, sys, os
try:
    import numpy
except ImportError:
    numpy = None
def take():
    return {"random": random.random(), "numpy": float(numpy.random.rand()) if numpy else None}
print(json.dumps(take()), flush=True)
sys.stdin.readline()
print(json.dumps(take()), flush=True)
`;

describe('reseeding a Python process', () => {
  const python = spawnSync('python3', ['--version']);
  const skip = python.status === 0 ? false : 'python3 is not installed';

  it('makes random a function of the seed', { skip }, async () => {
    type Draws = { random: number; numpy: number | null };
    const run = (seed: Buffer) =>
      around<Draws>(seed, (reseeds) => new Program(reseeds, ['python3', '-c', pythonSource]));
    const [[before1, after1], [before2, after2], [, other]] = [
      await run(seedA),
      await run(seedA),
      await run(seedB),
    ];
    assert.deepEqual(after1, after2, 'the same seed gives the same values');
    const values = [before1, before2, after1, other].flatMap(({ random, numpy }) => [
      random,
      ...(numpy === null ? [] : [numpy]),
    ]);
    assert.equal(new Set(values).size, values.length, 'no value twice');
  });

  it('reaches forked processes, too', { skip }, async () => {
    const reseeds = await ReseedServer.listen();
    const source = `import os, sys
if os.fork() == 0:
    sys.stdin.read(); os._exit(0)
print(1, flush=True); sys.stdin.read()`;
    await using program = new Program(reseeds, ['python3', '-c', source]);
    await program.report();
    for (const end = performance.now() + deadlineMs; reseeds.memberCount < 2; )
      assert.ok(performance.now() < end && (await new Promise((go) => setTimeout(() => go(true), 10))));
    await reseeds.reseedAll(seedA, deadlineMs);
    program.child.stdin!.end();
    reseeds.close();
  });
});

describe('reseed line', () => {
  it('tells of a member that hangs, one that refuses, and not of one that left', async () => {
    const reseeds = await ReseedServer.listen();
    const member = async (answer: (line: string) => string | undefined) => {
      const socket = connect(`\0${reseeds.address.slice(1)}`);
      socket.setEncoding('utf8').on('data', (line: string) => {
        const text = answer(line);
        if (text === 'leave') socket.destroy();
        else if (text !== undefined) socket.write(text);
      });
      socket.on('error', () => {});
      await once(socket, 'connect');
      return socket;
    };
    const seeds = new Set<string>();
    const confirm = (line: string) => {
      const [id, seed] = line.trim().split(' ');
      seeds.add(seed!);
      return `${id}\n`;
    };
    const joined = async (count: number) => {
      for (const end = performance.now() + deadlineMs; reseeds.memberCount !== count; )
        assert.ok(performance.now() < end && (await new Promise((go) => setTimeout(() => go(true), 5))));
    };
    await member(confirm);
    await member(confirm);
    await member(() => 'leave');
    await joined(3);
    await reseeds.reseedAll(seedA, deadlineMs);
    assert.equal(seeds.size, 2, 'every member has a seed of its own');
    const late = once(await member(() => undefined), 'data', { signal: AbortSignal.timeout(deadlineMs) });
    await late;
    await assert.rejects(reseeds.reseedAll(seedB, 100), /1 of 3 .* no answer within 100 ms/);
    reseeds.forget();
    await member((line) => `${line.split(' ')[0]} !no library\n`);
    await joined(4);
    await assert.rejects(reseeds.reseedAll(seedB, 100), /no (library|answer)/);
    reseeds.close();
  });
});

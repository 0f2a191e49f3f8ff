// Tests what no client sends: frames cut, swollen, mislabelled or random, and messages of any JSON, against the decoder
// and against a real agent. A failure prints the seed that repeats it.
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { after, before, describe, it } from 'node:test';
import fc from 'fast-check';
import {
  ConnectError,
  connectStatus,
  encodeFrame,
  endFlag,
  FrameDecoder,
} from '../../shared/connect-frames.ts';
import { AgentFixture } from './agent-fixture.ts';
import { tokenRoutes } from './sandbox-routes.ts';

const limitBytes = 4096;

/** Cuts `bytes` at the given places, whatever they are. */
function chunksOf(bytes: Buffer, cuts: number[]): Buffer[] {
  const places = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((one, other) => one - other);
  return [0, ...places].map((place, index) => bytes.subarray(place, places[index] ?? bytes.length));
}

describe('the frame decoder', () => {
  it('finds the same messages however their bytes are cut', () => {
    const messages = fc.array(fc.tuple(fc.jsonValue({ maxDepth: 3 }), fc.constantFrom(0, endFlag)), {
      maxLength: 6,
    });
    const property = fc.property(messages, fc.array(fc.nat(), { maxLength: 20 }), (sent, cuts) => {
      const bytes = Buffer.concat(sent.map(([message, flag]) => encodeFrame(message, flag)));
      const decoder = new FrameDecoder(2 ** 20);
      const got = chunksOf(bytes, cuts).flatMap((chunk) => decoder.push(chunk));
      const expected = sent.map(([message, flag]) => ({
        flag,
        message: JSON.parse(JSON.stringify(message)),
      }));
      assert.deepEqual(got, expected);
      assert.equal(decoder.heldBytes, 0);
    });
    fc.assert(property);
  });

  it('knows that a frame was cut off', () => {
    const property = fc.property(fc.jsonValue(), fc.nat(), (message, cut) => {
      const frame = encodeFrame(message);
      const decoder = new FrameDecoder(2 ** 20);
      const kept = 1 + (cut % (frame.length - 1));
      assert.deepEqual(decoder.push(frame.subarray(0, kept)), []);
      assert.equal(decoder.heldBytes, kept);
    });
    fc.assert(property);
  });

  it('refuses a swollen frame at its head and a compressed one at its flag', () => {
    const codeOf = (flag: number, sizeBytes: number) => {
      const head = Buffer.alloc(5);
      head.writeUInt8(flag, 0);
      head.writeUInt32BE(sizeBytes, 1);
      try {
        return new FrameDecoder(limitBytes).push(head).length;
      } catch (error) {
        return (error as ConnectError).code;
      }
    };
    const property = fc.property(fc.nat(255), fc.nat(2 ** 32 - 1), (flag, sizeBytes) => {
      const code = codeOf(flag, sizeBytes);
      if (flag & 1) assert.equal(code, 'unimplemented');
      else if (sizeBytes > limitBytes - 5) assert.equal(code, 'resource_exhausted');
      else assert.ok(code === 0 || (sizeBytes === 0 && code === 'invalid_argument'), String(code));
    });
    fc.assert(property);
  });

  it('holds no more than a frame, and throws nothing of its own, whatever it is fed', () => {
    const property = fc.property(fc.array(fc.uint8Array({ maxLength: 600 }), { maxLength: 30 }), (chunks) => {
      const decoder = new FrameDecoder(limitBytes);
      try {
        for (const chunk of chunks) {
          decoder.push(Buffer.from(chunk));
          assert.ok(decoder.heldBytes <= limitBytes);
        }
      } catch (error) {
        if (!(error instanceof ConnectError)) throw error;
      }
    });
    fc.assert(property);
  });
});

describe('a real agent', () => {
  let agent: AgentFixture;
  before(async () => {
    agent = await AgentFixture.start();
  });
  after(() => agent?.[Symbol.asyncDispose]());

  const rpcPaths = tokenRoutes
    .filter((route) => /^POST .*\.\w+\//.test(route))
    .map((route) => route.slice(6));
  const isStreaming = (path: string) => /Start|Connect|StreamInput|WatchDir/.test(path);
  /** No program and no file of this machine has such a name. */
  const strange = fc.string().map((text) => `\u2623${text}`);
  const word = fc.oneof(
    fc.constantFrom('', '/bin/true', '.', '~', '/nowhere', '\0', 'SIGNAL_SIGKILL'),
    strange,
  );
  const value = fc.oneof(
    word,
    fc.jsonValue({ maxDepth: 2 }),
    fc.nat(),
    fc.constant(-1),
    fc.constant(2 ** 53),
  );
  const field = fc.constantFrom(
    'path',
    'source',
    'process',
    'cmd',
    'pid',
    'tag',
    'input',
    'stdin',
    'pty',
    'size',
    'args',
  );
  const others = fc.constantFrom(
    'start',
    'data',
    'cols',
    'rows',
    'depth',
    'watcherId',
    'signal',
    'cwd',
    'envs',
  );
  /** Fields that the methods look at, with values they do not expect. `Move` and `Remove` must find nothing to harm. */
  const message = fc.letrec((tie) => ({
    node: fc.dictionary(fc.oneof(field, others), fc.oneof({ depthSize: 'small' }, value, tie('node')), {
      maxKeys: 5,
    }),
  })).node as fc.Arbitrary<Record<string, unknown>>;
  const harmless = fc.constantFrom(...rpcPaths.filter((path) => !/Move|Remove$/.test(path)));

  const post = async (path: string, body: Uint8Array<ArrayBuffer>) => {
    const type = isStreaming(path) ? 'application/connect+json' : 'application/json';
    const response = await agent.fetch(`/${path}`, {
      method: 'POST',
      headers: { 'content-type': type, 'connect-timeout-ms': '50' },
      body,
    });
    return { response, bytes: Buffer.from(await response.arrayBuffer()) };
  };

  /** Every stream ends with an end frame, every failure has a code and its status, and none is the agent's own. */
  function assertTyped(path: string, response: Response, bytes: Buffer): void {
    let error: { code: keyof typeof connectStatus; message: string } | undefined;
    if (response.headers.get('content-type') === 'application/connect+json') {
      const last = new FrameDecoder(2 ** 24).push(bytes).at(-1);
      assert.equal(last?.flag, endFlag, `${path} has no end frame`);
      error = (last.message as { error: typeof error }).error;
    } else {
      const body = JSON.parse(bytes.toString());
      if (response.status !== 200) error = body;
      if (error !== undefined) assert.equal(response.status, connectStatus[error.code], JSON.stringify(body));
    }
    if (error === undefined) return;
    assert.ok(error.code in connectStatus && error.code !== 'internal', `${path}: ${JSON.stringify(error)}`);
    assert.equal(typeof error.message, 'string');
  }

  const openFiles = async () => (await readdir(`/proc/${agent.pid}/fd`)).length;

  it('answers any JSON with what the contract knows, and keeps nothing', async () => {
    const before = await openFiles();
    const property = fc.asyncProperty(harmless, message, async (path, fields) => {
      const body = isStreaming(path) ? encodeFrame(fields) : Buffer.from(JSON.stringify(fields));
      const { response, bytes } = await post(path, new Uint8Array(body));
      assertTyped(path, response, bytes);
    });
    await fc.assert(property, { numRuns: 300, interruptAfterTimeLimit: 60_000 });
    for (let id = 1; id <= 400; id++)
      await agent.unary('filesystem.Filesystem/RemoveWatcher', { watcherId: `w${id}` });
    let open = before + 1;
    await agent.eventually('all files closed', () => {
      void openFiles().then((count) => {
        open = count;
      });
      // Connections that the client keeps.
      return open <= before + 2;
    });
  });

  it('answers any bytes and any frames, and goes on serving', async () => {
    const frame = fc
      .tuple(fc.nat(255), fc.nat(2 ** 32 - 1), fc.uint8Array({ maxLength: 100 }), fc.boolean())
      .map(([flag, sizeBytes, payload, honest]) => {
        const head = Buffer.alloc(5);
        head.writeUInt8(flag, 0);
        head.writeUInt32BE(honest ? payload.length : sizeBytes, 1);
        return Buffer.concat([head, payload]);
      });
    const body = fc.oneof(
      fc.uint8Array({ maxLength: 300 }),
      fc.array(frame, { maxLength: 3 }).map(Buffer.concat),
    );
    const property = fc.asyncProperty(fc.constantFrom(...rpcPaths), body, async (path, bytes) => {
      const answer = await post(path, new Uint8Array(bytes));
      assertTyped(path, answer.response, answer.bytes);
    });
    await fc.assert(property, { numRuns: 300, interruptAfterTimeLimit: 60_000 });
    const { status } = await agent.unary('process.Process/List', {});
    assert.equal(status, 200);
  });
});

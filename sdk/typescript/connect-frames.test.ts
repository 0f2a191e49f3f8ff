import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { encodeFrame as encodeOnServer } from '../../shared/connect-frames.ts';
import { fromBase64, toBase64 } from './base64.ts';
import { encodeFrame, FrameDecoder } from './connect-frames.ts';

describe('connect frames', () => {
  it("are the server's", () => {
    const message = { text: 'grüße', list: [1, 2] };
    assert.deepEqual(Buffer.from(encodeFrame(message)), encodeOnServer(message));
  });

  it('come out whole however their bytes are cut', () => {
    fc.assert(
      fc.property(
        fc.array(fc.dictionary(fc.string(), fc.string())),
        fc.integer({ min: 1, max: 9 }),
        (all, step) => {
          const bytes = Buffer.concat([...all.map((one) => encodeOnServer(one)), encodeOnServer({}, 2)]);
          const decoder = new FrameDecoder();
          const frames = [];
          for (let at = 0; at < bytes.length; at += step)
            frames.push(...decoder.push(bytes.subarray(at, at + step)));
          assert.deepEqual(
            JSON.stringify(frames.map(({ message }) => message)),
            JSON.stringify([...all, {}]),
          );
          assert.deepEqual(
            frames.map(({ isEnd }) => isEnd),
            [...all.map(() => false), true],
          );
        },
      ),
    );
  });

  it('are refused before they are held when they are too large', () => {
    assert.throws(() => new FrameDecoder().push(new Uint8Array([0, 255, 255, 255, 255])), /4294967300 bytes/);
  });
});

describe('base64', () => {
  it('is what Node makes of it', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 70_000 }), (bytes) => {
        assert.equal(toBase64(bytes), Buffer.from(bytes).toString('base64'));
        assert.deepEqual(fromBase64(toBase64(bytes)), bytes);
      }),
      { numRuns: 50 },
    );
  });
});

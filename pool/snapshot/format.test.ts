import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import fc from 'fast-check';
import { Packr } from 'msgpackr';
import { ThawError } from '../../shared/errors.ts';
import { testCompatibility, testId, testKey } from './capture-for-tests.ts';
import { ExtentBuilder } from './extents.ts';
import { FrameReader, type FrameTier } from './frame-reader.ts';
import { type Golden, goldenDir, makeGolden } from './golden-for-tests.ts';
import { imageNames, type Manifest } from './manifest.ts';
import { decodeManifest, encodeManifest, manifestKind } from './manifest-codec.ts';
import { materialise } from './materialise-image.ts';
import { emptyFrames, openFrame, planReads, sealFrame } from './segment.ts';
import { ClusterKey, headerBytes, openSigned, sealSigned } from './signed-object.ts';
import { manifestKey, segmentKey } from './store-keys.ts';

const damaged = { code: 'snapshot-damaged' };
const packr = new Packr({ useRecords: false });

/** Passes when `work` throws a typed refusal; anything else it throws, or returning, fails the test. */
function assertRefused(work: () => unknown, what = ''): void {
  try {
    work();
  } catch (error) {
    assert.ok(error instanceof ThawError && error.code === 'snapshot-damaged', `${what} ${error}`);
    return;
  }
  assert.fail(`${what} was accepted`);
}

describe('snapshot format', () => {
  let golden: Golden;
  let expected: { objects: string[]; imageSha256: Record<'root' | 'child', Record<string, string>> };
  let object: Buffer;
  const stored = new Map<string, Buffer>();
  const storedTier: FrameTier = {
    name: 'golden',
    read: async (sha256, { offsetBytes, sizeBytes }) =>
      stored.get(segmentKey(sha256))?.subarray(offsetBytes, offsetBytes + sizeBytes),
  };

  before(async () => {
    golden = await makeGolden();
    expected = JSON.parse(await readFile(join(goldenDir, 'expected.json'), 'utf8'));
    for (const key of expected.objects)
      stored.set(key, await readFile(join(goldenDir, key.replaceAll('/', '-'))));
    object = stored.get(manifestKey(testId(2)))!;
  });

  describe('golden vectors', () => {
    it('are still read: every image has the digest that was written down', async () => {
      for (const [name, number] of [
        ['root', 1],
        ['child', 2],
      ] as const) {
        const manifest = decodeManifest(stored.get(manifestKey(testId(number)))!, testId(number), testKey);
        const reader = new FrameReader({ manifest, tiers: [storedTier] });
        for (const image of imageNames) {
          const path = join(tmpdir(), `thaw-golden-${process.pid}-${image}`);
          await materialise(manifest, image, reader, path);
          const digest = createHash('sha256')
            .update(await readFile(path))
            .digest('hex');
          await rm(path);
          assert.equal(digest, expected.imageSha256[name][image], `${image} of ${name}`);
        }
      }
    });

    it('are still written, byte for byte', () => {
      assert.deepEqual([...golden.objects.keys()].sort(), expected.objects);
      for (const [key, bytes] of golden.objects) assert.ok(bytes.equals(stored.get(key)!), key);
    });
  });

  describe('manifests', () => {
    it('come back as they were, and the same manifest gives the same bytes', () => {
      const manifest = decodeManifest(object, testId(2), testKey);
      assert.deepEqual(manifest, golden.child);
      assert.ok(encodeManifest(manifest, testKey).equals(object));
    });

    it('are refused under another name, another key or another kind', () => {
      assertRefused(() => decodeManifest(object, testId(3), testKey));
      assertRefused(() => decodeManifest(object, testId(2), new ClusterKey(Buffer.alloc(32, 8))));
      const name = manifestKey(testId(2));
      const other = { ...manifestKind, magic: 'THAWPIN1' };
      assertRefused(() => openSigned(other, name, testKey, object));
      assertRefused(() =>
        openSigned({ ...manifestKind, version: manifestKind.version + 1 }, name, testKey, object),
      );
      assertRefused(() =>
        decodeManifest(sealSigned(other, name, testKey, object.subarray(headerBytes)), testId(2), testKey),
      );
    });

    it('row 8: are refused when swapped with another snapshot’s', () => {
      assertRefused(() => decodeManifest(stored.get(manifestKey(testId(1)))!, testId(2), testKey));
    });

    it('are refused at any length but their own', () => {
      for (let length = 0; length < object.length; length++)
        assertRefused(
          () => decodeManifest(object.subarray(0, length), testId(2), testKey),
          `${length} bytes`,
        );
      assertRefused(() => decodeManifest(Buffer.concat([object, Buffer.alloc(1)]), testId(2), testKey));
    });

    it('row 8: are refused when any single bit of them was flipped', () => {
      for (let at = 0; at < object.length; at++) {
        const flipped = Buffer.from(object);
        flipped[at]! ^= 1 << (at % 8);
        assertRefused(() => decodeManifest(flipped, testId(2), testKey), `byte ${at}`);
      }
    });

    it('are refused when any two stretches of them were swapped', () => {
      fc.assert(
        fc.property(fc.nat(object.length - 33), fc.nat(object.length - 33), (a, b) => {
          const swapped = Buffer.from(object);
          object.copy(swapped, a, b, b + 32);
          object.copy(swapped, b, a, a + 32);
          if (!swapped.equals(object)) assertRefused(() => decodeManifest(swapped, testId(2), testKey));
        }),
      );
    });

    it('are refused, also signed, when they are not what a manifest is', () => {
      const signed = (payload: Uint8Array) =>
        sealSigned(manifestKind, manifestKey(testId(2)), testKey, payload);
      fc.assert(
        fc.property(fc.oneof(fc.uint8Array({ maxLength: 300 }), fc.anything().map(packed)), (payload) => {
          assertRefused(() => decodeManifest(signed(payload), testId(2), testKey));
        }),
        { numRuns: 500 },
      );
      const payload = object.subarray(headerBytes);
      // A claim of four thousand million entries must not be taken at its word.
      for (const claim of ['dd ff ff ff ff', 'df ff ff ff ff', 'c6 ff ff ff ff', 'db ff ff ff ff'])
        assertRefused(() =>
          decodeManifest(signed(Buffer.from(claim.replaceAll(' ', ''), 'hex')), testId(2), testKey),
        );
      fc.assert(
        fc.property(fc.nat(payload.length - 1), fc.nat(255), (at, value) => {
          const edited = Buffer.from(payload);
          edited[at] = value;
          // Signed by a key holder, some edits give a manifest that is sound, of other content: none gives anything else.
          try {
            decodeManifest(signed(edited), testId(2), testKey);
          } catch (error) {
            assert.equal((error as ThawError).code, 'snapshot-damaged', `byte ${at} := ${value}: ${error}`);
          }
        }),
        { numRuns: 1500 },
      );
    });

    it('are refused with a claim beyond the limits, whoever signs it', () => {
      const refused = (edit: (manifest: Manifest) => object, why: RegExp) =>
        assert.throws(() => encodeManifest({ ...golden.child, ...edit(golden.child) }, testKey), {
          ...damaged,
          message: why,
        });
      const images = (memory: object) => ({ images: { ...golden.child.images, memory } });
      const table = (...row: number[]) => {
        const builder = new ExtentBuilder();
        builder.add(row[0]!, row[1]!, row[2]!, row[3]!);
        return builder.table();
      };
      const sizeBytes = 1024 * 1024;
      refused(() => images({ sizeBytes: 4096, extents: table(0, 1, 0, 0) }), /guest’s size/);
      refused(() => images({ sizeBytes, extents: table(256, 1, 0, 0) }), /beyond the image/);
      refused(() => images({ sizeBytes, extents: table(0, 1, 999, 0) }), /a frame that is not there/);
      refused(() => images({ sizeBytes, extents: table(0, 33, 0, 0) }), /beyond its frame/);
      refused(({ segments }) => ({ segments: [...segments, segments[0]] }), /segment twice/);
      refused(({ segments }) => ({ segments: segments.slice(0, 1) }), /a segment that is not there/);
      refused(
        ({ segments }) => ({ segments: segments.map((s) => ({ ...s, sizeBytes: 10 })) }),
        /its segment/,
      );
      refused(() => ({ segments: [{ sha256: '../../etc', sizeBytes: 1 }] }), /segments/);
      refused(() => ({ memoryMb: 2 ** 40 }), /memoryMb/);
      refused(() => ({ depth: 0 }), /depth/);
      refused(() => ({ facts: { x: Number.NaN } }), /facts|no number/);
      refused(() => ({ parentId: 'snap-../../x' }), /parentId/);
      const edited = (column: 'pageCount' | 'storedBytes', value: number) => (manifest: Manifest) => ({
        frames: { ...manifest.frames, [column]: manifest.frames[column].with(0, value) },
      });
      refused(edited('pageCount', 0), /0 pages/);
      refused(edited('pageCount', 100_000), /100000 pages/);
      refused(edited('storedBytes', 0), /stored bytes/);
      refused(edited('storedBytes', 2 ** 31), /stored bytes/);
    });
  });

  describe('frames', () => {
    const one = (pages: number, { stored, sha256 }: { stored: Buffer; sha256: Buffer }) => {
      const frames = emptyFrames(1);
      frames.storedBytes[0] = stored.length;
      frames.pageCount[0] = pages;
      frames.sha256.set(sha256);
      return frames;
    };

    it('come back as they were, of any content', () => {
      fc.assert(
        fc.property(
          fc.integer({ min: 1, max: 32 }),
          fc.uint8Array({ minLength: 1, maxLength: 64 }),
          (pages, seed) => {
            const plain = Buffer.alloc(pages * 4096, seed);
            const sealed = sealFrame(plain);
            assert.ok(openFrame(one(pages, sealed), 0, sealed.stored).equals(plain));
          },
        ),
      );
    });

    it('never give wrong bytes: cut off, flipped or of another place', () => {
      const plain = Buffer.alloc(8 * 4096, 'some memory');
      const sealed = sealFrame(plain);
      const frames = one(8, sealed);
      for (let length = 0; length < sealed.stored.length; length++)
        assertRefused(() => openFrame(frames, 0, sealed.stored.subarray(0, length)));
      for (let at = 0; at < sealed.stored.length; at++) {
        const flipped = Buffer.from(sealed.stored);
        flipped[at]! ^= 1 << (at % 8);
        assertRefused(() => openFrame(frames, 0, flipped), `byte ${at}`);
      }
      assertRefused(() => openFrame(frames, 0, sealFrame(Buffer.alloc(8 * 4096, 'other')).stored));
      assertRefused(() => openFrame(frames, 1, sealed.stored), 'a frame that is not in the table');
    });

    it('are refused when they hold more or fewer pages than the manifest says', () => {
      const sealed = sealFrame(Buffer.alloc(8 * 4096, 1));
      assertRefused(() => openFrame(one(7, sealed), 0, sealed.stored), 'more');
      assertRefused(() => openFrame(one(9, sealed), 0, sealed.stored), 'fewer');
      const bomb = sealFrame(Buffer.alloc(64 * 1024 * 1024));
      assertRefused(() => openFrame(one(32, bomb), 0, bomb.stored), 'a bomb');
      const noise = Buffer.from('not zstd at all');
      const sha256 = createHash('sha256').update(noise).digest();
      assertRefused(() => openFrame(one(1, { stored: noise, sha256 }), 0, noise), 'no zstd');
    });

    it('are read in few large reads that bring each one once', () => {
      fc.assert(
        fc.property(
          fc.array(
            fc.record({ segment: fc.nat(2), stored: fc.integer({ min: 1, max: 100 }), gap: fc.nat(60) }),
            {
              minLength: 1,
              maxLength: 60,
            },
          ),
          fc.array(fc.nat(59)),
          (rows, wantedRaw) => {
            const frames = emptyFrames(rows.length);
            const ends = [0, 0, 0];
            for (const [frame, { segment, stored, gap }] of rows.entries()) {
              frames.segment[frame] = segment;
              frames.offsetBytes[frame] = ends[segment]! + gap;
              frames.storedBytes[frame] = stored;
              ends[segment] = ends[segment]! + gap + stored;
            }
            const wanted = wantedRaw.filter((frame) => frame < rows.length);
            const reads = planReads(frames, wanted, { maxGapBytes: 30, maxReadBytes: 300 });
            const brought = reads.flatMap((read) => read.frames).sort((a, b) => a - b);
            assert.deepEqual(
              brought,
              [...new Set(wanted)].sort((a, b) => a - b),
            );
            for (const read of reads) {
              assert.ok(read.sizeBytes <= 300);
              for (const frame of read.frames) {
                const start = frames.offsetBytes[frame]! - read.offsetBytes;
                assert.equal(frames.segment[frame], read.segment);
                assert.ok(start >= 0 && start + frames.storedBytes[frame]! <= read.sizeBytes);
              }
            }
          },
        ),
      );
    });
  });

  it('knows the compatibility of what it was given', () => {
    assert.deepEqual(golden.root.compatibility, testCompatibility);
  });
});

function packed(value: unknown): Uint8Array {
  try {
    return packr.pack(value);
  } catch {
    return new Uint8Array([0xc0]);
  }
}

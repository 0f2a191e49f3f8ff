import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import {
  decodeWorkingSet,
  encodeWorkingSet,
  FirstTouches,
  flatRuns,
  mergedOrder,
  pagesOf,
  type Recording,
  runsOfFlat,
  withMisses,
  withRecording,
} from './working-set.ts';

const recorded = (...pages: number[]): Recording => {
  const touches = new FirstTouches(1000);
  for (const page of pages) touches.touch(page * 4096, 4096);
  return touches.recording();
};

describe('first touches', () => {
  it('keeps the order and forgets repetitions', () => {
    assert.deepEqual(flatRuns(recorded(7, 8, 3, 7, 9)), [7, 2, 3, 1, 9, 1]);
  });

  it('counts every page that a range meets, and none outside the image', () => {
    const touches = new FirstTouches(10);
    touches.touch(4095, 2);
    touches.touch(8 * 4096, 100 * 4096);
    assert.deepEqual(flatRuns(touches.recording()), [0, 2, 8, 2]);
  });
});

describe('merging', () => {
  it('is the recording itself when there is one', () => {
    const set = { imagePages: 1000, recordings: [recorded(50, 4, 5, 900)] };
    assert.deepEqual(flatRuns(mergedOrder(set)), [50, 1, 4, 2, 900, 1]);
  });

  it('orders by the mean, and puts last what a minority touched', () => {
    const recordings = [recorded(1, 2, 3, 77), recorded(2, 1, 3), recorded(2, 3, 1)];
    assert.deepEqual(flatRuns(mergedOrder({ imagePages: 1000, recordings })), [2, 1, 1, 1, 3, 1, 77, 1]);
  });

  it('keeps the latest few recordings', () => {
    let set = { imagePages: 1000, recordings: [] as readonly Recording[] };
    for (let page = 0; page < 10; page++) set = withRecording(set, recorded(page));
    assert.equal(set.recordings.length, 4);
    assert.deepEqual(set.recordings.at(-1), [{ page: 9, pageCount: 1 }]);
  });
});

describe('what a clone missed', () => {
  const set = { imagePages: 1000, recordings: [recorded(1, 2), recorded(2, 3)] };

  it('is added as needed last, without what the set has, and to no other recording', () => {
    const next = withMisses(set, recorded(3, 8, 1, 7))!;
    assert.deepEqual(next.recordings.map(flatRuns), [
      [1, 2],
      [2, 2, 8, 1, 7, 1],
    ]);
  });

  it('changes nothing when the set has all of it, or is a quarter of the image', () => {
    assert.equal(withMisses(set, recorded(3, 1)), undefined);
    assert.equal(withMisses(set, []), undefined);
    const large = {
      imagePages: 1000,
      recordings: [recorded(...Array.from({ length: 251 }, (_, page) => page))],
    };
    assert.equal(withMisses(large, recorded(900)), undefined);
  });
});

describe('stored form', () => {
  it('comes back as it was', () => {
    const pages = fc.array(fc.array(fc.nat(999), { maxLength: 50 }), { maxLength: 4 });
    fc.assert(
      fc.property(pages, (lists) => {
        const set = { imagePages: 1000, recordings: lists.map((list) => recorded(...list)) };
        assert.deepEqual(decodeWorkingSet(encodeWorkingSet(set), 1000), set);
        assert.ok(set.recordings.every((recording) => pagesOf(recording) <= 1000));
      }),
    );
  });

  it('refuses what is not a working set of this image', () => {
    const good = { format: 1, imagePages: 10, recordings: [[0, 2]] };
    const wrong = [
      '',
      '{}',
      'null',
      JSON.stringify({ ...good, format: 2 }),
      JSON.stringify({ ...good, imagePages: 11 }),
      ...[[[0]], [[9, 2]], [[-1, 1]], [[0, 0]], [[0.5, 1]], [['0', 1]], [{}]].map((recordings) =>
        JSON.stringify({ ...good, recordings }),
      ),
    ];
    assert.ok(decodeWorkingSet(Buffer.from(JSON.stringify(good)), 10));
    for (const text of wrong)
      assert.throws(() => decodeWorkingSet(Buffer.from(text), 10), { code: 'snapshot-damaged' }, text);
    assert.deepEqual(runsOfFlat([]), []);
  });
});

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  type BuildState,
  buildHops,
  pruned,
  type TemplateBuild,
  type TemplateRecord,
  taggedBuild,
  withBuildState,
  withoutTags,
  withTags,
} from './template-record.ts';

const at = '2026-01-01T00:00:00.000Z';
const build = (buildId: string, state: BuildState): TemplateBuild => ({
  buildId,
  state,
  tags: ['default'],
  wanted: { memoryMb: null, cpuCount: null, minFreeDiskMb: null },
  snapshotId: state === 'ready' ? `snap-of-${buildId}` : null,
  facts: null,
  createdAt: at,
  finishedAt: null,
  error: null,
});
const record = (...builds: TemplateBuild[]): TemplateRecord => ({
  templateId: 't',
  name: 'mine',
  createdAt: at,
  tags: {},
  builds,
});

describe('template records', () => {
  it('allow exactly these hops out of all pairs', () => {
    const states = Object.keys(buildHops) as BuildState[];
    const allowed = states.flatMap((from) =>
      states
        .filter((to) => withBuildState(record(build('b', from)), 'b', to)?.builds[0]?.state === to)
        .map((to) => `${from} > ${to}`),
    );
    assert.deepEqual(allowed, ['waiting > building', 'building > ready', 'building > error']);
  });

  it('move tags to a build, and forget the content that nothing names any more', () => {
    const first = withTags(record(build('one', 'ready')), 'one', ['default', 'v1'], at);
    const both = withTags(
      { ...first, builds: [build('two', 'ready'), ...first.builds] },
      'two',
      ['default'],
      at,
    );
    assert.deepEqual(pruned(both).surplus, { snapshotIds: [], buildIds: [] });
    assert.equal(taggedBuild(both)?.buildId, 'two');
    assert.equal(taggedBuild(both, 'v1')?.buildId, 'one');
    const { record: left, surplus } = pruned(withoutTags(both, ['v1']));
    assert.deepEqual(surplus, { snapshotIds: ['snap-of-one'], buildIds: [] });
    assert.deepEqual(
      left.builds.map(({ snapshotId }) => snapshotId),
      ['snap-of-two', null],
    );
    assert.equal(taggedBuild(left, 'v1'), undefined);
    assert.equal(taggedBuild(left, 'constructor'), undefined);
  });

  it('remember ten builds without a tag, and every one that runs', () => {
    const failed = Array.from({ length: 12 }, (_, n) => build(`failed-${n}`, 'error'));
    const { record: left, surplus } = pruned(record(...failed, build('running', 'building')));
    assert.deepEqual(surplus.buildIds, ['failed-10', 'failed-11']);
    assert.equal(left.builds.length, 11);
  });
});

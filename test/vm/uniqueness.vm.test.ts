// 200 clones of one function version draw random numbers: no value may appear twice, in the kernel, in OpenSSL, or in
// the languages' own generators. The template is old on purpose: a kernel in its first seconds reseeds so often that
// clones differ by luck. A generator that no handshake reaches is the control: it must repeat in every clone, which
// proves that the clones are copies of one warm process and that a repeat would be seen.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { ageTemplate } from './aged-template.ts';
import { type Draw, drawFromClones, nodeFunction, pythonFunction, repeatsIn, worstSkewMs } from './draws.ts';
import { openVmWorld, type VmWorld } from './vm-world.ts';

const clones = 200;

describe('uniqueness of clones', () => {
  let world: VmWorld;
  before(async () => {
    world = await openVmWorld();
    await ageTemplate(world);
  });
  after(() => world?.close());

  it('200 clones of a warm Node function repeat nothing', async (t) => {
    const snapshotId = await world.build({ name: 'draw', runtime: 'node' }, { 'index.mjs': nodeFunction });
    assertDistinct(t.diagnostic.bind(t), await drawFromClones(world, snapshotId, clones));
  });

  it('40 clones of a warm Python function repeat nothing', async (t) => {
    const snapshotId = await world.build({ name: 'draw', runtime: 'python' }, { 'main.py': pythonFunction });
    assertDistinct(t.diagnostic.bind(t), await drawFromClones(world, snapshotId, 40));
  });
});

function assertDistinct(report: (text: string) => void, draws: Draw[]): void {
  const repeats = repeatsIn(draws);
  for (const [source, count] of repeats)
    assert.equal(count, 0, `${source}: ${count} of ${draws.length} values repeat`);
  const worst = worstSkewMs(draws);
  const sources = [...repeats.keys()].join(' ');
  report(`${draws.length} clones, ${sources}: 0 duplicates; worst clock skew ${worst.toFixed(0)} ms`);
  assert.ok(worst < 100, `a clone’s clock is ${worst} ms off`);
}

// Owns counting what clones of one warm process have in common that they should not: random values and a wrong clock.
// Invariant: the template is old enough that the kernel's own early reseeds hide nothing, and a control value proves
// that the clones are copies (test/vm/draws.ts).
import { ageTemplate } from '../../../test/vm/aged-template.ts';
import { drawFromClones, nodeFunction, repeatsIn, worstSkewMs } from '../../../test/vm/draws.ts';
import { acceleratorOption, openBenchWorld } from '../bench-world.ts';
import type { Bench, Benchmark, Outcome } from '../benchmark.ts';

/** More than a restore takes to set it would be a fault; the network of a host agrees no better than this. */
const goalSkewMs = 100;

export const uniqueness: Benchmark = {
  name: 'uniqueness',
  summary: 'random values and clocks of clones of one warm Node process',
  n: { default: 200, description: 'clones' },
  options: acceleratorOption,
  run,
};

async function run(bench: Bench): Promise<Outcome> {
  const world = await openBenchWorld(bench);
  bench.progress('letting a template age');
  await ageTemplate(world);
  bench.progress('building the function');
  const snapshotId = await world.build({ name: 'draw', runtime: 'node' }, { 'index.mjs': nodeFunction });
  bench.progress(`drawing from ${bench.n} clones`);
  const draws = await drawFromClones(world, snapshotId, bench.n);
  const n = draws.length;
  const repeats = repeatsIn(draws);
  const duplicates = [...repeats.values()].reduce((sum, count) => sum + count, 0);
  return {
    n,
    ...world.facts,
    metrics: [
      { key: 'clones', value: n, unit: 'count', n },
      { key: 'duplicates', value: duplicates, unit: 'count', n: n * repeats.size, goal: { max: 0 } },
      { key: 'maxClockSkewMs', value: worstSkewMs(draws), unit: 'ms', n, goal: { max: goalSkewMs } },
    ],
  };
}

// The conformance suite on the API's stand-in: the driver's own work (files, processes, order of calls, pages), no guest.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { describeConformance } from '../conformance.ts';
import { imageIn, StandInWorld } from './stand-in-world.ts';

const world = await StandInWorld.open();
const dir = await mkdtemp(join(tmpdir(), 'thaw-chi-'));
after(async () => {
  await world[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

describeConformance(
  () => world.hypervisor,
  () => imageIn(dir),
  'stands-in',
);

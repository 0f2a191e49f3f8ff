// Owns the other yardstick of the restore benchmark: the same function by booting, as it would be without snapshots.
// Invariant: the time runs from the spawn of the VMM to the function's answer, and holds no step that a host without
// snapshots could leave out: boot, greeting, bundle, start of the program, first request.
import { createHash } from 'node:crypto';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { AgentClient } from '../../pool/guest/agent-client.ts';
import { ControlClient } from '../../pool/guest/control-client.ts';
import { handshake } from '../../pool/guest/handshake.ts';
import { prime } from '../../pool/guest/runner-client.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { newVmId } from '../../shared/ids.ts';
import { packTar } from '../../test/vm/pack-tar.ts';
import { type BenchWorld, helloFunction } from './bench-world.ts';

const bootTimeoutMs = 120_000;

/** @returns milliseconds. */
export async function bootHello(world: BenchWorld, memoryMb: number): Promise<number> {
  const bundle = await packTar({ 'index.mjs': helloFunction });
  const bundlePath = join(world.dataDir, `${createHash('sha256').update(bundle).digest('hex')}.tar`);
  await writeFile(bundlePath, bundle);
  await using cleanup = new Cleanup();
  const vmId = newVmId();
  const runDir = world.paths.vmDir(vmId);
  await mkdir(runDir, { recursive: true });
  cleanup.defer('run directory', () => rm(runDir, { recursive: true, force: true }));
  const shape = { memoryMb, vcpus: 1 };
  const pagesPath = join(runDir, 'pages');
  const startMs = performance.now();
  const machine = await world.hypervisor.boot({ vmId, shape, image: world.image, runDir, pagesPath });
  cleanup.defer('machine', () => machine.destroy());
  const control = new ControlClient(await machine.openControl());
  const { secret, ports } = await handshake(control, vmId, '', bootTimeoutMs);
  const agent = new AgentClient(await machine.addressOf(ports.agent), secret);
  cleanup.defer('agent client', () => agent.close());
  const signal = AbortSignal.timeout(bootTimeoutMs);
  await agent.putBundle(bundlePath, signal);
  const runner = { runtime: 'node', env: {}, startTimeoutMs: bootTimeoutMs } as const;
  const port = await agent.startRunner(runner, signal);
  await prime(await machine.addressOf(port), ['/'], bootTimeoutMs);
  return performance.now() - startMs;
}

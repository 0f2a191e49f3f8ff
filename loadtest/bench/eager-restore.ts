// Owns the yardstick of the restore benchmark: QEMU's ordinary way, a stream that holds all memory, read back whole
// before the guest runs. Refuses to own Thaw's way (pool/hypervisor/qemu).
// Invariant: the same machine, disk, command-line options and handshake as Thaw's; only where memory comes from differs.
// The stream is read from an inherited file that the host has in its page cache: the best case for this way.
import { createWriteStream } from 'node:fs';
import { mkdir, open, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { ControlClient } from '../../pool/guest/control-client.ts';
import { handshake } from '../../pool/guest/handshake.ts';
import { prime } from '../../pool/guest/runner-client.ts';
import { type Child, startChild } from '../../pool/host/child.ts';
import { capturedFilesIn } from '../../pool/host/paths.ts';
import { recordProcess } from '../../pool/host/process-table.ts';
import type { MachineShape } from '../../pool/hypervisor/hypervisor.ts';
import { devicesInput, qemuArgs } from '../../pool/hypervisor/qemu/command-line.ts';
import { createOverlay } from '../../pool/hypervisor/qemu/overlay.ts';
import { QemuMachine } from '../../pool/hypervisor/qemu/qemu-machine.ts';
import { readRecord, type SnapshotRecord } from '../../pool/snapshot/record.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { ThawError } from '../../shared/errors.ts';
import { newVmId } from '../../shared/ids.ts';
import type { BenchWorld } from './bench-world.ts';

const migrationTimeoutMs = 120_000;
const bytesPerSecond = 8 * 1024 ** 3;

export interface EagerSnapshot {
  record: SnapshotRecord;
  shape: MachineShape;
  /** QEMU's migration stream: device state and all of memory. */
  streamPath: string;
}

/** Writes a clone of the snapshot, not yet greeted, as one stream. */
export async function saveEagerly(world: BenchWorld, snapshotId: string): Promise<EagerSnapshot> {
  const record = await readRecord(world.paths.snapshotDir(snapshotId));
  if (!record) throw new ThawError('template-not-found', `no snapshot ${snapshotId}`);
  const shape = { memoryMb: record.memoryMb, vcpus: record.vcpus };
  await using cleanup = new Cleanup();
  const vmId = newVmId();
  const runDir = world.paths.vmDir(vmId);
  await mkdir(runDir, { recursive: true });
  cleanup.defer('run directory', () => rm(runDir, { recursive: true, force: true }));
  const from = capturedFilesIn(record.dir);
  const { image } = world;
  const machine = await world.hypervisor.restore({ vmId, shape, image, runDir, from, memory: 'private' });
  cleanup.defer('machine', () => machine.destroy());
  if (!(machine instanceof QemuMachine)) throw new Error('only QEMU has this kind of snapshot');
  await machine.qmp.execute('stop');
  const streamPath = join(world.dataDir, `${snapshotId}.stream`);
  await migrateInto(machine, streamPath);
  return { record, shape, streamPath };
}

/** Over QEMU's own stream, of a machine that stands still. */
export async function migrateInto(machine: QemuMachine, path: string): Promise<void> {
  await machine.qmp.execute('migrate-set-parameters', { 'max-bandwidth': bytesPerSecond });
  await machine.qmp.execute('migrate-set-capabilities', {
    capabilities: [{ capability: 'events', state: true }],
  });
  const server = createServer();
  const received = new Promise<void>((resolve, reject) => {
    server.once('connection', (socket) => pipeline(socket, createWriteStream(path)).then(resolve, reject));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    // Over a socket, because QEMU may start no program and has given up the right to create files.
    const { port } = server.address() as { port: number };
    await machine.qmp.execute('migrate', { uri: `tcp:127.0.0.1:${port}` });
    await completed(machine);
    await received;
  } finally {
    server.close();
  }
}

async function completed(machine: QemuMachine): Promise<void> {
  for (;;) {
    const { status } = (await machine.qmp.execute('query-migrate')) as { status?: string };
    if (status === 'completed') return;
    if (status === 'failed') throw new Error('QEMU could not write the stream');
    await machine.qmp.event('MIGRATION', migrationTimeoutMs);
  }
}

/** @returns milliseconds from the spawn to the function's answer. */
export async function restoreEagerly(world: BenchWorld, snapshot: EagerSnapshot): Promise<number> {
  const startMs = performance.now();
  await using cleanup = new Cleanup();
  const vmId = newVmId();
  const runDir = world.paths.vmDir(vmId);
  await mkdir(runDir, { recursive: true });
  cleanup.defer('run directory', () => rm(runDir, { recursive: true, force: true }));
  const diskPath = join(runDir, 'disk');
  await createOverlay(diskPath, capturedFilesIn(snapshot.record.dir).diskPath, 'qcow2');
  const child = await spawnEager(world, snapshot, diskPath);
  await recordProcess(runDir, child.pid, 'qemu-system-x86_64');
  const machine = new QemuMachine(vmId, child, {
    diskPath,
    devicesPath: join(runDir, 'devices'),
    pagesPath: 'none',
    sharedMemory: true,
  });
  cleanup.defer('machine', () => machine.destroy());
  await resumed(machine);
  const control = new ControlClient(await machine.openControl());
  const { ports } = await handshake(control, vmId, snapshot.record.nonce, 30_000);
  await prime(await machine.addressOf(ports.runner), snapshot.record.prime ?? [], 30_000);
  return performance.now() - startMs;
}

async function resumed(machine: QemuMachine): Promise<void> {
  try {
    await loaded(machine);
    await Promise.all([machine.qmp.event('RESUME'), machine.qmp.execute('cont')]);
  } catch (error) {
    await machine.destroy();
    const { stderrTail } = await machine.exited;
    throw new Error(`QEMU did not resume: ${stderrTail.trim()}`, { cause: error });
  }
}

/** The stream says that its VM was paused, and a `cont` that comes while it loads is forgotten over that. */
async function loaded({ qmp }: QemuMachine): Promise<void> {
  const capabilities = [{ capability: 'events', state: true }];
  await qmp.execute('migrate-set-capabilities', { capabilities });
  const status = async () =>
    ((await qmp.event('MIGRATION', migrationTimeoutMs)) as { status: string }).status;
  let next = status();
  await qmp.execute('migrate-incoming', { uri: devicesInput }, migrationTimeoutMs);
  for (let now = await next; now !== 'completed'; now = await next) {
    if (now === 'failed') throw new Error('QEMU could not load the stream');
    next = status();
  }
}

async function spawnEager(world: BenchWorld, snapshot: EagerSnapshot, diskPath: string): Promise<Child> {
  await using stream = await open(snapshot.streamPath, 'r');
  await using nowhere = await open('/dev/null', 'w');
  const { shape } = snapshot;
  const args = qemuArgs({
    accelerator: world.accelerator,
    shape,
    image: world.image,
    pagesPath: 'unused',
    sharedMemory: false,
    diskPath,
    mode: 'restore-later',
  });
  const memory = args.findIndex((arg) => arg.startsWith('memory-backend-file,'));
  args[memory] = `memory-backend-ram,id=ram0,size=${shape.memoryMb}M`;
  return startChild('qemu-system-x86_64', args, { extraStdio: ['pipe', 'pipe', stream.fd, nowhere.fd] });
}

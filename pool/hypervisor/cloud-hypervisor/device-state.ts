// Owns the file of a captured VM's devices: Cloud Hypervisor's two snapshot files in one, checked and ready for clones.
// Refuses to own the memory (its page file) and the disk, of which it only knows the sizes.
// Invariant: device state passes through here as text; its 64-bit numbers would not survive JavaScript's.
import { mkdir, open, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import { ThawError } from '../../../shared/errors.ts';
import type { CapturedFiles, PageRun } from '../hypervisor.ts';
import { memoryBytesOf, type VmConfig } from './vm-config.ts';

/** Memory up to here stands at its own address, the rest above the hole for devices. */
export const lowMemoryBytes = 3 * 1024 ** 3;
const highMemoryAddress = 4 * 1024 ** 3;

const devicesSchema = Type.Object({
  format: Type.Literal('cloud-hypervisor-1'),
  diskBytes: Type.Integer({ minimum: 0 }),
  /** What `config.json` held. */
  config: Type.Unsafe<VmConfig>(Type.Object({ memory: Type.Object({ zones: Type.Array(Type.Unknown()) }) })),
  /** What `state.json` held, but for the list of memory ranges. */
  state: Type.String(),
});

export type DeviceState = Static<typeof devicesSchema>;

/** The list of what is read from the memory file; inside a string of the JSON, hence the backslashes. */
const memoryRanges = /(\\"memory_ranges\\":\{\\"data\\":)\[.*?\]\}/g;

/** @throws ThawError `hypervisor-failed` when what Cloud Hypervisor wrote is not whole. */
export async function readSnapshotDir(dir: string, diskPath: string): Promise<DeviceState> {
  const [config, state] = await Promise.all(
    ['config.json', 'state.json'].map((name) => readFile(join(dir, name), 'utf8')),
  );
  return {
    format: 'cloud-hypervisor-1',
    diskBytes: (await stat(diskPath)).size,
    config: parsed<VmConfig>(config!, 'config.json'),
    state: withoutMemoryRanges(state!),
  };
}

/** Empties the list of ranges: a clone then reads no memory file and finds its memory in the page file. */
export function withoutMemoryRanges(state: string): string {
  parsed(state, 'state.json');
  return spliced(state, []);
}

/**
 * Names the pages that a delta holds, in its order: the delta is then the memory file. They must be in place before
 * Cloud Hypervisor makes the devices, which take the positions in their queues from guest memory.
 */
export function withDelta(state: string, runs: readonly PageRun[]): string {
  return spliced(
    state,
    runs.flatMap(({ offsetBytes, sizeBytes }) => {
      const endBytes = offsetBytes + sizeBytes;
      if (offsetBytes >= lowMemoryBytes || endBytes <= lowMemoryBytes)
        return [rangeOf(offsetBytes, sizeBytes)];
      const lowBytes = lowMemoryBytes - offsetBytes;
      return [rangeOf(offsetBytes, lowBytes), rangeOf(lowMemoryBytes, sizeBytes - lowBytes)];
    }),
  );
}

const rangeOf = (offsetBytes: number, length: number) => ({
  gpa: offsetBytes < lowMemoryBytes ? offsetBytes : offsetBytes - lowMemoryBytes + highMemoryAddress,
  length,
});

function spliced(state: string, ranges: object[]): string {
  // Text inside a string of the JSON.
  const escaped = JSON.stringify(JSON.stringify(ranges)).slice(1, -1);
  let found = 0;
  const result = state.replace(memoryRanges, (_, head: string) => {
    found += 1;
    return `${head}${escaped}}`;
  });
  if (found !== 1)
    throw new ThawError(
      'hypervisor-failed',
      `the device state names its memory ranges ${found} times, not once`,
    );
  return result;
}

// Cloud Hypervisor writes with one call and does not ask whether all of it was written.
function parsed<T>(text: string, name: string): T {
  try {
    return JSON.parse(text) as T;
  } catch (error) {
    throw new ThawError('hypervisor-failed', `${name} is not whole: ${(error as Error).message}`);
  }
}

export async function writeDevices(path: string, devices: DeviceState): Promise<void> {
  await using file = await open(path, 'w', 0o600);
  await file.writeFile(JSON.stringify(devices));
  await file.sync();
}

/** @throws ThawError `restore-failed` when it is torn. */
export async function readDevices(path: string): Promise<DeviceState> {
  const text = await readFile(path, 'utf8');
  try {
    const value: unknown = JSON.parse(text);
    if (Value.Check(devicesSchema, value)) return value;
  } catch {}
  throw new ThawError('restore-failed', `the device state ${path} is torn or of another hypervisor`);
}

/** What Cloud Hypervisor would accept silently and die of later. @throws ThawError `restore-failed`. */
export async function checkSizes(devices: DeviceState, from: CapturedFiles): Promise<void> {
  const [pages, disk] = await Promise.all([sizeOf(from.pagesPath), sizeOf(from.diskPath)]);
  const memoryBytes = memoryBytesOf(devices.config);
  if (pages !== memoryBytes) throw wrongSize('page file', from.pagesPath, pages, memoryBytes);
  if (disk !== devices.diskBytes) throw wrongSize('disk', from.diskPath, disk, devices.diskBytes);
}

async function sizeOf(path: string): Promise<number> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    throw new ThawError('restore-failed', `${path} cannot be read: ${(error as Error).message}`);
  }
}

const wrongSize = (what: string, path: string, sizeBytes: number, expectedBytes: number) =>
  new ThawError('restore-failed', `the ${what} ${path} has ${sizeBytes} bytes, not ${expectedBytes}`);

export async function writeSnapshotDir(dir: string, config: VmConfig, state: string): Promise<void> {
  await mkdir(dir, { recursive: true });
  await Promise.all([
    writeFile(join(dir, 'config.json'), JSON.stringify(config)),
    writeFile(join(dir, 'state.json'), state),
  ]);
}

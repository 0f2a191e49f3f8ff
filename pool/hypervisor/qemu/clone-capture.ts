// Owns saving a running QEMU clone: stop, device state, changed pages, disk, cont; and writing it out afterwards.
// Refuses to own where the files belong (pool/snapshot). Invariant: while the clone is paused nothing is written to a
// disk that need not be, and whatever fails, it runs on and no file is left.
import { constants } from 'node:fs';
import { copyFile, type FileHandle, open, rm, stat } from 'node:fs/promises';
import { Cleanup } from '../../../shared/cleanup.ts';
import { withDeadline } from '../../../shared/deadline.ts';
import { ThawError } from '../../../shared/errors.ts';
import { PageCapture } from '../guest-memory/page-capture.ts';
import type { CapturedFiles, CloneCaptureOptions, CloneCaptureTarget, PageDelta } from '../hypervisor.ts';
import { stopwatch, type Timed } from '../stopwatch.ts';
import { devicesOutput } from './command-line.ts';
import type { Qmp } from './qmp.ts';

/** A step that takes longer is stuck: the clone goes on without the capture. */
const stepTimeoutMs = 30_000;
/** What a device state of QEMU begins with. */
const stateMagic = 'QEVM';
/** File systems by device number: whether they copy a file by sharing its blocks. */
const reflinking = new Map<number, boolean>();

export interface CapturedClone {
  pid: number;
  qmp: Qmp;
  files: CapturedFiles;
}

const step = <R>(what: string, work: Promise<R>) => withDeadline(what, stepTimeoutMs, work);

export async function captureClone(
  clone: CapturedClone,
  target: CloneCaptureTarget,
  options: CloneCaptureOptions,
): Promise<PageDelta> {
  const { files } = clone;
  await using undo = new Cleanup();
  for (const path of [target.deltaPath, target.devicesPath, target.diskPath])
    undo.defer(path, () => rm(path, { force: true }));
  try {
    const reflink = await sharesBlocks(files.diskPath, target.diskPath);
    await using outputs = await openOutputs(target, files);
    const { size: diskBytes } = await stat(files.diskPath);
    await using pages = await PageCapture.prepare(clone.pid, files.pagesPath, reflink ? 0 : diskBytes);
    const timed = stopwatch(options.onStage);
    await options.beforePause?.();
    const devices = await paused(clone.qmp, options.resume, timed, async () => {
      const saved = await timed('state', () => saveDevices(clone));
      await timed('scan', () => step('the scan for changed pages', pages.scan()));
      await timed('copy', () => step('the copy of changed pages', pages.copy(outputs.delta)));
      await timed('disk', () =>
        step(
          'the copy of the disk',
          reflink
            ? copyFile(files.diskPath, target.diskPath, constants.COPYFILE_FICLONE_FORCE)
            : pages.copyFile(outputs.diskFrom, outputs.disk),
        ),
      );
      return saved;
    });
    await timed('write', async () => {
      await pages.write();
      await copyDevices(files.devicesPath, devices, target.devicesPath);
      await Promise.all([outputs.delta.sync(), outputs.disk.sync()]);
    });
    undo.disarm();
    return pages.delta(target.deltaPath);
  } catch (error) {
    if (error instanceof ThawError) throw error;
    const { code, message } = error as NodeJS.ErrnoException;
    throw new ThawError(code === 'ENOSPC' ? 'no-space' : 'hypervisor-failed', `capture: ${message}`, {
      cause: error,
    });
  }
}

interface Outputs extends AsyncDisposable {
  delta: FileHandle;
  diskFrom: FileHandle;
  disk: FileHandle;
}

/** The files of a capture, open from before the pause. */
async function openOutputs(target: CloneCaptureTarget, files: CapturedFiles): Promise<Outputs> {
  await using opened = new AsyncDisposableStack();
  const delta = opened.use(await open(target.deltaPath, 'wx', 0o600));
  const diskFrom = opened.use(await open(files.diskPath, 'r'));
  const disk = opened.use(await open(target.diskPath, 'wx', 0o600));
  const kept = opened.move();
  return { delta, diskFrom, disk, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}

async function paused<T>(qmp: Qmp, resume: boolean, timed: Timed, work: () => Promise<T>): Promise<T> {
  try {
    await timed('pause', () => qmp.execute('stop'));
    const result = await work();
    if (resume) await timed('resume', () => qmp.execute('cont'));
    return result;
  } catch (error) {
    // Also when `stop` itself seemed to fail: it may have come to pass. A QEMU that has ended answers nothing.
    await qmp.execute('cont').catch(() => {});
    throw error;
  }
}

/** @returns where in the file that QEMU writes its device state to this capture's begins. */
async function saveDevices({ qmp, files }: CapturedClone): Promise<number> {
  // QEMU empties the file but goes on at the position where the last capture ended: what lies before is a hole.
  const { size: startBytes } = await stat(files.devicesPath);
  await qmp.execute('xen-save-devices-state', { filename: devicesOutput, live: false });
  return startBytes;
}

async function copyDevices(fromPath: string, startBytes: number, toPath: string): Promise<void> {
  await using from = await open(fromPath, 'r');
  const { size } = await from.stat();
  const state = Buffer.alloc(Math.max(0, size - startBytes));
  await from.read(state, 0, state.length, startBytes);
  if (state.toString('latin1', 0, stateMagic.length) !== stateMagic)
    throw new ThawError('hypervisor-failed', 'QEMU wrote no device state');
  await using to = await open(toPath, 'wx', 0o600);
  await to.writeFile(state);
  await to.sync();
}

/** Tried once for each file system; leaves no file. */
async function sharesBlocks(fromPath: string, toPath: string): Promise<boolean> {
  const { dev } = await stat(fromPath);
  const known = reflinking.get(dev);
  if (known !== undefined) return known;
  const works = await copyFile(fromPath, toPath, constants.COPYFILE_FICLONE_FORCE).then(
    () => true,
    () => false,
  );
  await rm(toPath, { force: true });
  reflinking.set(dev, works);
  return works;
}

// Owns a machine without a process, for tests of captures: it writes the files of a capture as told, and its guest
// holds and proceeds, or does not. Invariant: as the port demands, a failed capture leaves no file and it runs on.
import { rm, writeFile } from 'node:fs/promises';
import { type Duplex, duplexPair } from 'node:stream';
import { ThawError } from '../../shared/errors.ts';
import { newVmId } from '../../shared/ids.ts';
import { ControlClient } from '../guest/control-client.ts';
import type {
  Address,
  CloneCaptureOptions,
  CloneCaptureTarget,
  Machine,
  MachineExit,
  PageDelta,
} from '../hypervisor/hypervisor.ts';

export interface SimulatedGuest {
  state: 'ready' | 'held';
  /** Operations that it does not answer. */
  deaf: Set<string>;
  heard: string[];
}

export class SimulatedMachine implements Machine {
  readonly vmId = newVmId();
  readonly pid = 0;
  readonly exited = new Promise<MachineExit>(() => {});
  readonly guest: SimulatedGuest = { state: 'ready', deaf: new Set(), heard: [] };
  paused = false;
  /** What the next captures copy; page N of the delta is at page N of memory. */
  pages: Buffer = Buffer.alloc(0);
  /** Called at each stage: throwing there fails the capture. */
  atStage: (stage: string) => Promise<void> | void = () => {};

  openControl(): Promise<Duplex> {
    const [ours, theirs] = duplexPair();
    theirs.setEncoding('utf8').on('data', (text: string) => {
      for (const line of text.split('\n')) if (line !== '') theirs.write(this.#answer(JSON.parse(line)));
    });
    return Promise.resolve(ours);
  }

  async control(): Promise<ControlClient> {
    return new ControlClient(await this.openControl());
  }

  #answer({ id, op }: { id: number; op: string }): string {
    this.guest.heard.push(op);
    if (this.guest.deaf.has(op)) return '';
    if (op === 'hold') this.guest.state = 'held';
    if (op === 'proceed' && this.guest.state !== 'held') return `${JSON.stringify({ id, ok: false })}\n`;
    if (op === 'proceed') this.guest.state = 'ready';
    return `${JSON.stringify({ id, ok: true, state: this.guest.state })}\n`;
  }

  async captureClone(target: CloneCaptureTarget, options: CloneCaptureOptions): Promise<PageDelta> {
    const stage = async (name: string) => {
      await this.atStage(name);
      options.onStage?.(name, 1);
    };
    try {
      await options.beforePause?.();
      this.paused = true;
      for (const name of ['pause', 'state', 'scan', 'copy', 'disk']) await stage(name);
      if (options.resume) {
        this.paused = false;
        await stage('resume');
      }
      await writeFile(target.deltaPath, this.pages);
      await writeFile(target.devicesPath, 'devices');
      await writeFile(target.diskPath, 'disk');
      await stage('write');
      const runs = this.pages.length > 0 ? [{ offsetBytes: 0, sizeBytes: this.pages.length }] : [];
      return { path: target.deltaPath, runs };
    } catch (error) {
      this.paused = false;
      for (const path of Object.values(target)) await rm(path, { force: true });
      throw error;
    }
  }

  async resume(): Promise<void> {
    this.paused = false;
  }

  addressOf(): Promise<Address> {
    throw new ThawError('not-implemented', 'nothing listens');
  }

  captureInPlace(): Promise<void> {
    throw new ThawError('not-implemented', 'not simulated');
  }

  async destroy(): Promise<void> {}
}

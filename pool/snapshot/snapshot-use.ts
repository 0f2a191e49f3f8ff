// Owns who uses the snapshots of one node now, and when each was used last: VMs that run, and work that reads its files.
// Refuses to own what follows from that (library.ts, eviction.ts). Invariant: it is asked and told without waiting, so that
// nothing begins between a look and what is done about it; the time of last use outlives the process, to the minute.
import { stat, utimes } from 'node:fs/promises';
import { recordPath } from './record.ts';

/** How exact the time of last use is after a restart; more would only be writes. */
const notedEveryMs = 60_000;

class Counts {
  readonly #counts = new Map<string, number>();

  of(key: string): number {
    return this.#counts.get(key) ?? 0;
  }

  /** @returns what takes it back, once. */
  add(key: string): () => void {
    this.#counts.set(key, this.of(key) + 1);
    let ended = false;
    return () => {
      if (ended) return;
      ended = true;
      const left = this.of(key) - 1;
      if (left > 0) this.#counts.set(key, left);
      else this.#counts.delete(key);
    };
  }
}

export class SnapshotUse {
  readonly #dirOf: (snapshotId: string) => string;
  readonly #clones = new Counts();
  readonly #holds = new Counts();
  readonly #usedAtMs = new Map<string, number>();
  readonly #notedAtMs = new Map<string, number>();

  constructor(dirOf: (snapshotId: string) => string) {
    this.#dirOf = dirOf;
  }

  /** VMs that were restored from it and run. */
  clonesOf(snapshotId: string): number {
    return this.#clones.of(snapshotId);
  }

  /** @returns what to call when the VM has ended. */
  cloneStarted(snapshotId: string): () => void {
    return this.#during(this.#clones, snapshotId);
  }

  /** Its local files are needed until this is disposed of. */
  hold(snapshotId: string): Disposable {
    return { [Symbol.dispose]: this.#during(this.#holds, snapshotId) };
  }

  isUsed(snapshotId: string): boolean {
    return this.#clones.of(snapshotId) + this.#holds.of(snapshotId) > 0;
  }

  /** @returns 0 for one that is not here. */
  async lastUsedAtMs(snapshotId: string): Promise<number> {
    const known = this.#usedAtMs.get(snapshotId);
    if (known !== undefined) return known;
    return stat(recordPath(this.#dirOf(snapshotId))).then(
      ({ mtimeMs }) => mtimeMs,
      () => 0,
    );
  }

  forget(snapshotId: string): void {
    this.#usedAtMs.delete(snapshotId);
    this.#notedAtMs.delete(snapshotId);
  }

  #during(counts: Counts, snapshotId: string): () => void {
    const end = counts.add(snapshotId);
    this.#touch(snapshotId);
    return () => {
      end();
      this.#touch(snapshotId);
    };
  }

  #touch(snapshotId: string): void {
    const nowMs = Date.now();
    this.#usedAtMs.set(snapshotId, nowMs);
    if (nowMs - (this.#notedAtMs.get(snapshotId) ?? 0) < notedEveryMs) return;
    this.#notedAtMs.set(snapshotId, nowMs);
    const now = new Date(nowMs);
    // One that was removed meanwhile has nobody to note it for.
    void utimes(recordPath(this.#dirOf(snapshotId)), now, now).catch(() => {});
  }
}

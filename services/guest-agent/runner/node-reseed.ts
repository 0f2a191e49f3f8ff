// Owns the random state of a Node process (main thread and workers): a preload that joins the agent's reseed line.
// Refuses to own native modules' generators and those of new `vm` contexts: nobody can reach them from here.
// Invariant: after a confirmation no value that depends on state from before it is returned: OpenSSL's generators,
// the caches of randomUUID, randomUUIDv7 and randomInt, and Math.random.
import crypto from 'node:crypto';
import { syncBuiltinESMExports } from 'node:module';
import { connect } from 'node:net';
import { isMainThread } from 'node:worker_threads';
import { reseedOpenssl } from '../native-library.ts';

const address = process.env.THAW_RESEED_SOCKET;
// Node fills its caches with this many values at a time (lib/internal/crypto/random.js).
const uuidsPerFill = 128;
const intsPerFill = 1024;

/** A cache inside Node: `drain` draws until everything that was in it is gone. */
class HiddenCache {
  readonly #drain: () => void;
  #used = false;
  #stale = false;

  constructor(drain: () => void) {
    this.#drain = drain;
  }

  markStale(): void {
    this.#stale = this.#used;
  }

  /** Calls of the result never return a value that was cached when the process was last reseeded. */
  guard<F>(original: F): F {
    const cache = this;
    const guarded = function (this: unknown, ...args: unknown[]) {
      cache.#used = true;
      if (cache.#stale) {
        cache.#stale = false;
        cache.#drain();
      }
      return (original as (...args: unknown[]) => unknown).apply(this, args);
    };
    return guarded as F;
  }
}

type Sources = typeof crypto & { randomUUIDv7?: () => string };

function guardCaches(): HiddenCache[] {
  const { randomUUID, randomUUIDv7, randomInt } = crypto as Sources;
  const repeat = (count: number, draw: () => unknown) => {
    for (; count > 0; count--) draw();
  };
  const uuids = new HiddenCache(() => {
    repeat(uuidsPerFill, () => randomUUID());
    if (randomUUIDv7 !== undefined) repeat(uuidsPerFill, () => randomUUIDv7());
  });
  const ints = new HiddenCache(() => repeat(intsPerFill, () => randomInt(2)));
  const web = Object.getPrototypeOf(crypto.webcrypto) as { randomUUID: typeof randomUUID };
  web.randomUUID = uuids.guard(web.randomUUID);
  crypto.randomUUID = uuids.guard(randomUUID);
  crypto.randomInt = ints.guard(randomInt);
  if (randomUUIDv7 !== undefined) (crypto as Sources).randomUUIDv7 = uuids.guard(randomUUIDv7);
  syncBuiltinESMExports();
  return [uuids, ints];
}

let hiddenCaches: HiddenCache[] = [];

// sfc32: V8's own generator cannot be reseeded, and this one is about as fast.
const state = new Int32Array(4);

function nextUint32(): number {
  const sum = (state[0]! + state[1]! + state[3]!) | 0;
  state[3] = state[3]! + 1;
  state[0] = state[1]! ^ (state[1]! >>> 9);
  state[1] = state[2]! + (state[2]! << 3);
  state[2] = ((state[2]! << 21) | (state[2]! >>> 11)) + sum;
  return sum >>> 0;
}

function seedMathRandom(seed: Buffer): void {
  for (let index = 0; index < 4; index++) state[index] = seed.readInt32LE(index * 4);
  for (let round = 0; round < 12; round++) nextUint32();
}

function reseed(seed: Buffer): void {
  // One generator feeds all threads' ones; the main thread's call is enough, and a worker need not load the library.
  if (isMainThread) reseedOpenssl(seed);
  seedMathRandom(crypto.hash('sha256', Buffer.concat([Buffer.from('Math.random'), seed]), 'buffer'));
  for (const cache of hiddenCaches) cache.markStale();
}

function join(path: string): void {
  const socket = connect(path.startsWith('@') ? `\0${path.slice(1)}` : path);
  let partial = '';
  socket.setEncoding('utf8');
  socket.on('error', () => {});
  socket.on('data', (text) => {
    const lines = (partial + text).split('\n');
    partial = lines.pop()!;
    for (const line of lines) {
      const [id, seed] = line.split(' ');
      try {
        reseed(Buffer.from(seed!, 'hex'));
        socket.write(`${id}\n`);
      } catch (error) {
        socket.write(`${id} !${(error as Error).message.replaceAll('\n', ' ')}\n`);
      }
    }
  });
  // The line must never keep a program alive.
  socket.unref();
}

if (address !== undefined) {
  hiddenCaches = guardCaches();
  seedMathRandom(crypto.randomBytes(16));
  Math.random = function random() {
    return ((nextUint32() >>> 5) * 0x4000000 + (nextUint32() >>> 6)) / 0x20000000000000;
  };
  join(address);
}

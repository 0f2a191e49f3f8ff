// A program for reseed.test.ts: reports random values before and after the agent's reseed, in the mode argv names.
//   math     Math.random of the main thread and of a worker
//   openssl  the reseed counter of OpenSSL's primary generator and the counter its child took over
//   epoch    every generator, with OpenSSL's bytes replaced by a constant that RAND_add changes: a value that still
//            shows the old constant came out of a cache
import assert from 'node:assert/strict';
import crypto, { randomInt, randomUUID } from 'node:crypto';
import { Worker } from 'node:worker_threads';
import type koffiModule from 'koffi';
import { loadKoffi } from '../native-library.ts';

const mode = process.argv[2];
const report = (value: unknown) => process.stdout.write(`${JSON.stringify(value)}\n`);
const koffi = loadKoffi() as unknown as typeof koffiModule;
const library = koffi.load(null);

/** Resolves when the parent says that the reseed is confirmed. */
const told = () => new Promise<void>((resolve) => process.stdin.once('data', () => resolve()));

async function math(): Promise<void> {
  const source = `const { parentPort } = require('node:worker_threads');
    parentPort.on('message', () => parentPort.postMessage([Math.random(), Math.random()]));
    parentPort.postMessage('up');`;
  const worker = new Worker(source, { eval: true });
  const answer = () => new Promise((resolve) => worker.once('message', resolve));
  await answer();
  const take = async () => {
    worker.postMessage('');
    return { main: [Math.random(), Math.random()], worker: await answer() };
  };
  report(await take());
  await told();
  report(await take());
  await worker.terminate();
}

/** OSSL_PARAM by hand: key, type, data, size, returned size; a zeroed one ends the list. */
function reseedCounter(generator: unknown): number {
  const key = Buffer.from('reseed_counter\0');
  const counter = new Uint32Array(1);
  const params = Buffer.alloc(80);
  const unsignedInteger = 2;
  params.writeBigUInt64LE(BigInt(koffi.address(key)), 0);
  params.writeUInt32LE(unsignedInteger, 8);
  params.writeBigUInt64LE(BigInt(koffi.address(counter)), 16);
  params.writeBigUInt64LE(4n, 24);
  assert.equal(library.func('EVP_RAND_CTX_get_params', 'int', ['void *', 'void *'])(generator, params), 1);
  return counter[0]!;
}

async function openssl(): Promise<void> {
  const generator = (name: string) => library.func(name, 'void *', ['void *'])(null);
  const counters = () => {
    crypto.randomBytes(1);
    return ['RAND_get0_primary', 'RAND_get0_public'].map((name) => reseedCounter(generator(name)));
  };
  report(counters());
  await told();
  report(counters());
}

async function epoch(): Promise<void> {
  let constant = 0x11;
  const bytesType = koffi.pointer(koffi.proto('int fill_bytes(void *buffer, int size)'));
  const addType = koffi.pointer(koffi.proto('int add_bytes(void *buffer, int size, double entropy)'));
  const statusType = koffi.pointer(koffi.proto('int status_of()'));
  const memset = library.func('memset', 'void *', ['void *', 'int', 'size_t']);
  const fill = koffi.register((buffer: unknown, size: number) => {
    memset(buffer, constant, size);
    return 1;
  }, bytesType);
  const add = koffi.register(() => {
    constant = 0x22;
    return 1;
  }, addType);
  const status = koffi.register(() => 1, statusType);
  const table = koffi.struct('rand_method', {
    seed: 'void *',
    bytes: bytesType,
    cleanup: 'void *',
    add: addType,
    pseudorand: bytesType,
    status: statusType,
  });
  const method = koffi.alloc(table, 1);
  koffi.encode(method, table, { seed: null, bytes: fill, cleanup: null, add, pseudorand: fill, status });
  assert.equal(library.func('RAND_set_rand_method', 'int', ['void *'])(method), 1);
  const many = <T>(count: number, draw: () => T): T[] => Array.from({ length: count }, draw);
  const webUuid = globalThis.crypto.randomUUID.bind(globalThis.crypto);
  const v7 = (crypto as unknown as { randomUUIDv7?: () => string }).randomUUIDv7;
  const draws: Record<string, (count: number) => (string | number)[]> = {
    // Imported by name, as most programs do.
    randomUUID: (count) => many(count, () => randomUUID()),
    webRandomUUID: (count) => many(count, () => webUuid()),
    randomInt: (count) => many(count, () => randomInt(2 ** 48 - 1).toString(16)),
    randomBytes: (count) => many(count, () => crypto.randomBytes(8).toString('hex')),
    getRandomValues: (count) =>
      many(count, () => Buffer.from(globalThis.crypto.getRandomValues(new Uint8Array(8))).toString('hex')),
    ...(v7 ? { randomUUIDv7: (count: number) => many(count, () => v7().slice(-12)) } : {}),
  };
  const which = process.argv[3]!.split(',');
  report(Object.fromEntries(which.map((name) => [name, draws[name]!(3)])));
  await told();
  report(Object.fromEntries(which.map((name) => [name, draws[name]!(3000)])));
}

await { math, openssl, epoch }[mode as 'math' | 'openssl' | 'epoch']();
// Not process.exit: it would cut a long report short.
process.stdin.destroy();

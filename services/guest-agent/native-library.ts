// Owns the way to the system calls and library functions that Node does not offer: koffi's native module.
// Loads the binary itself and not the npm package's wrapper: that costs 1 ms and 3 MB instead of 5 ms and 8 MB.
// Invariant: nothing is loaded before the first call.
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

// biome-ignore lint/suspicious/noExplicitAny: the type of a foreign function is its declaration string
type ForeignFunction = ((...args: any[]) => any) & { async: (...args: any[]) => void };
interface Koffi {
  load(path: string | null): { func(name: string, result: string, parameters: string[]): ForeignFunction };
  errno(): number;
}

let loaded: { koffi: Koffi; library: ReturnType<Koffi['load']> } | undefined;
const functions = new Map<string, ForeignFunction>();

/** The function `name` of libc, or of the OpenSSL inside the node binary. */
export function foreign(name: string, result: string, parameters: string[]): ForeignFunction {
  let found = functions.get(name);
  if (found === undefined) {
    found = load().library.func(name, result, parameters);
    functions.set(name, found);
  }
  return found;
}

export const lastErrno = (): number => load().koffi.errno();

function load() {
  if (loaded !== undefined) return loaded;
  const module = { exports: {} };
  process.dlopen(module, binaryPath());
  const koffi = module.exports as Koffi;
  // null: what the running binary itself exports, which is all of libc and OpenSSL.
  loaded = { koffi, library: koffi.load(null) };
  return loaded;
}

/** The one instance of this process; a second one could not call the first one's callbacks. */
export const loadKoffi = (): Koffi => load().koffi;

function binaryPath(): string {
  const beside = join(import.meta.dirname, 'koffi.node');
  if (existsSync(beside)) return beside;
  const platform = `linux_${process.arch}`;
  const name = `@koromix/koffi-linux-${process.arch}/${platform}/koffi.node`;
  return createRequire(import.meta.url).resolve(name);
}

/** Mixes `seed` into the primary generator of this process's OpenSSL; those of all threads follow at their next use. */
export function reseedOpenssl(seed: Buffer): void {
  foreign('RAND_add', 'void', ['void *', 'int', 'double'])(seed, seed.length, seed.length);
  if (foreign('RAND_status', 'int', [])() !== 1) throw new Error('OpenSSL did not accept the seed');
}

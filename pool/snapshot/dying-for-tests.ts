// Owns work that dies at a given change to the file system, as in a crash: whatever makes, writes, names or removes a file
// is a change, and after the last one it makes no other, not even to tidy up. Work outside goes on in the same process,
// which makes this cheap enough for every change there is. Refuses to own processes that are killed (crash-for-tests.ts).
import { AsyncLocalStorage } from 'node:async_hooks';
import fs, { type FileHandle } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';

interface Life {
  lastChange: number;
  changes: number;
  died: PromiseWithResolvers<'died'>;
  isDead: boolean;
  /** Closed at the end, as the kernel does. */
  handles: FileHandle[];
}

type Call = (...args: unknown[]) => Promise<unknown>;
const lives = new AsyncLocalStorage<Life>();
const never = () => new Promise<never>(() => {});
const calls = fs as unknown as Record<string, Call>;

for (const name of ['mkdir', 'writeFile', 'open', 'link', 'rename', 'rm', 'utimes']) {
  const original = calls[name]!;
  calls[name] = async (...args) => {
    const life = lives.getStore();
    const isReading = name === 'open' && (args[1] ?? 'r') === 'r';
    if (!life) return original(...args);
    if (life.isDead) return never();
    const isLast = !isReading && life.changes++ === life.lastChange;
    const result = await original(...args).finally(() => {
      if (isLast) life.isDead = true;
    });
    if (name === 'open') life.handles.push(result as FileHandle);
    if (!isLast) return result;
    life.died.resolve('died');
    return never();
  };
}
syncBuiltinESMExports();

const { setTimeout: startTimer } = globalThis;
/** Deadlines of the dead are in nobody's way. */
globalThis.setTimeout = Object.assign((...args: Parameters<typeof startTimer>) => {
  const timer = startTimer(...args);
  return lives.getStore() ? timer.unref() : timer;
}, startTimer) as typeof startTimer;

/** @param lastChange the first is 0. @returns `done` when there are not so many. */
export async function dyingAt(lastChange: number, work: () => Promise<unknown>): Promise<'died' | 'done'> {
  const life: Life = { lastChange, changes: 0, died: Promise.withResolvers(), isDead: false, handles: [] };
  const done = lives.run(life, work).then(() => 'done' as const);
  const outcome = await Promise.race([life.died.promise, done]);
  for (const handle of life.handles) await handle.close().catch(() => {});
  return outcome;
}

// Owns walking the files of a directory store in the order of their keys, from any key on.
// Invariant: byte order of whole keys, as an object store lists them: 'a-b' stands before 'a/b'.
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';

export interface Walk {
  rootDir: string;
  /** Keys after this one. */
  after: string;
  /** The walk ends with so many keys. */
  maxKeys: number;
  throwIfEnded: () => void;
}

/** Keys under `prefix` (whole segments, or empty); added to `keys`, so that thousands cost no promise each. */
export async function walkKeys(walk: Walk, prefix: string, keys: string[] = []): Promise<string[]> {
  walk.throwIfEnded();
  for (const name of await namesIn(join(walk.rootDir, prefix))) {
    if (keys.length === walk.maxKeys) break;
    const key = prefix + name;
    if (!name.endsWith('/')) {
      if (key > walk.after) keys.push(key);
    } else if (key > walk.after || walk.after.startsWith(key)) {
      await walkKeys(walk, key, keys);
    }
  }
  return keys;
}

/** Directories end in '/', so that sorting names sorts keys. They are ASCII: code units compare as bytes. */
async function namesIn(dir: string): Promise<string[]> {
  try {
    const entries = await readdir(dir, { withFileTypes: true });
    return entries.map((entry) => (entry.isDirectory() ? `${entry.name}/` : entry.name)).sort();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

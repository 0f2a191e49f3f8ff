// Owns walking the files of a directory store in the order of their keys, from any key on.
// Invariant: byte order of whole keys, as an object store lists them: 'a-b' stands before 'a/b'.
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';

/** Keys under `prefix` (whole segments, or empty) that come after `after`. */
export async function* walkKeys(rootDir: string, prefix: string, after: string): AsyncGenerator<string> {
  for (const name of await namesIn(join(rootDir, prefix))) {
    const key = prefix + name;
    if (!name.endsWith('/')) {
      if (key > after) yield key;
    } else if (key > after || after.startsWith(key)) {
      yield* walkKeys(rootDir, key, after);
    }
  }
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

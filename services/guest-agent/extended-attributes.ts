// Owns the system calls for a file's extended attributes, which Node lacks.
// Invariant: a file system without them has none: reading finds nothing, only writing fails.
import { checked } from './kernel-calls.ts';
import { foreign } from './native-library.ts';

const maxListBytes = 64 * 1024;
const maxValueBytes = 64 * 1024;
/** What the calls fail with when the file, or its file system, has no such attribute. */
const nothingThere = new Set(['ENODATA', 'ENOTSUP', 'EOPNOTSUPP', 'EPERM']);

let buffer: Buffer | undefined;
const scratch = (): Buffer => {
  buffer ??= Buffer.allocUnsafeSlow(Math.max(maxListBytes, maxValueBytes));
  return buffer;
};

/** Names of all attributes of the file that `path` leads to. @throws Error with `code` ENOENT and the like. */
export function listAttributes(path: string): string[] {
  const list = foreign('listxattr', 'long', ['str', 'void *', 'size_t']);
  const sizeBytes = sizeOrNothing(() => checked('listxattr', Number(list(path, scratch(), maxListBytes))));
  if (sizeBytes === 0) return [];
  return scratch()
    .toString('utf8', 0, sizeBytes - 1)
    .split('\0');
}

/** '' when there is no such attribute. */
export function readAttribute(path: string, name: string): string {
  const get = foreign('getxattr', 'long', ['str', 'str', 'void *', 'size_t']);
  const sizeBytes = sizeOrNothing(() =>
    checked('getxattr', Number(get(path, name, scratch(), maxValueBytes))),
  );
  return scratch().toString('utf8', 0, sizeBytes);
}

/** @throws Error with `code` ENOTSUP, ENOSPC and the like. */
export function writeAttribute(path: string, name: string, value: string): void {
  const bytes = Buffer.from(value);
  const set = foreign('setxattr', 'int', ['str', 'str', 'void *', 'size_t', 'int']);
  checked('setxattr', set(path, name, bytes, bytes.length, 0));
}

export function removeAttribute(path: string, name: string): void {
  const remove = foreign('removexattr', 'int', ['str', 'str']);
  sizeOrNothing(() => checked('removexattr', remove(path, name)));
}

function sizeOrNothing(call: () => number): number {
  try {
    return call();
  } catch (error) {
    if (nothingThere.has((error as NodeJS.ErrnoException).code ?? '')) return 0;
    throw error;
  }
}

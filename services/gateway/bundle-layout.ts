// Owns what an archive may contain: names, kinds and links of its entries, as a pure check without I/O.
// Invariant: whatever passes can be unpacked into an empty directory, in order, without touching anything outside
// it, and no link in it leads out afterwards.
import { ThawError } from '../../shared/errors.ts';

export type EntryKind = 'file' | 'directory' | 'symlink' | 'link';

export interface ArchiveEntry {
  name: string;
  type: string | null | undefined;
  linkname?: string | null | undefined;
}

export interface AdmittedEntry {
  path: string;
  kind: EntryKind;
  linkname?: string;
}

/** Linux's own limit for one path segment, and a quarter of the one for a path: the rest is the directory's. */
const maxSegmentBytes = 255;
const maxPathBytes = 1024;
/** As the kernel's. */
const maxLinkHops = 40;

const kinds: Record<string, EntryKind> = {
  file: 'file',
  'contiguous-file': 'file',
  directory: 'directory',
  symlink: 'symlink',
  link: 'link',
};

export class BundleLayout {
  readonly #kinds = new Map<string, EntryKind>();
  readonly #targets = new Map<string, string>();
  readonly #maxEntries: number;
  #count = 0;

  constructor(maxEntries: number) {
    this.#maxEntries = maxEntries;
  }

  /** @returns undefined for the root directory itself. @throws ThawError `bad-bundle` | `body-too-large`. */
  admit(entry: ArchiveEntry): AdmittedEntry | undefined {
    this.#count++;
    if (this.#count > this.#maxEntries)
      throw new ThawError('body-too-large', `the archive has more than ${this.#maxEntries} entries`);
    const kind = kinds[entry.type ?? ''];
    if (kind === undefined)
      throw refusal(
        entry.name,
        `is a ${entry.type ?? 'thing of unknown kind'}; only files, directories and links`,
      );
    const path = safePath(entry.name);
    if (path === '') {
      if (kind === 'directory') return undefined;
      throw refusal(entry.name, 'has no name');
    }
    this.#claim(entry.name, path, kind);
    if (kind === 'symlink') return { path, kind, linkname: this.#admitSymlink(entry, path) };
    if (kind === 'link') return { path, kind, linkname: this.#admitHardLink(entry) };
    return { path, kind };
  }

  /** To be called after the last entry: links may point at what came later. */
  close(): void {
    for (const path of this.#targets.keys()) this.#follow(path);
  }

  has(path: string): boolean {
    const kind = this.#kinds.get(path);
    return kind !== undefined && kind !== 'directory';
  }

  get fileCount(): number {
    let count = 0;
    for (const kind of this.#kinds.values()) if (kind !== 'directory') count++;
    return count;
  }

  /** The only top-level directory when nothing else is at the top: the usual packing mistake. */
  get soleDirectory(): string | undefined {
    const top = new Set([...this.#kinds.keys()].map((path) => path.split('/', 1)[0]!));
    const [only] = top;
    return top.size === 1 && this.#kinds.get(only!) === 'directory' ? only : undefined;
  }

  #claim(name: string, path: string, kind: EntryKind): void {
    const segments = path.split('/');
    for (let depth = 1; depth < segments.length; depth++) {
      const parent = segments.slice(0, depth).join('/');
      const parentKind = this.#kinds.get(parent);
      if (parentKind === undefined) this.#kinds.set(parent, 'directory');
      else if (parentKind !== 'directory')
        throw refusal(name, `lies below ${quoted(parent)}, which is a ${parentKind}`);
    }
    const before = this.#kinds.get(path);
    if (before !== undefined && !(before === 'directory' && kind === 'directory'))
      throw refusal(name, 'appears twice');
    this.#kinds.set(path, kind);
  }

  #admitSymlink(entry: ArchiveEntry, path: string): string {
    const target = entry.linkname ?? '';
    if (target === '' || target.includes('\0') || Buffer.byteLength(target) > maxPathBytes)
      throw refusal(entry.name, 'is a link without a usable target');
    if (target.startsWith('/')) throw refusal(entry.name, `links to the absolute path ${quoted(target)}`);
    this.#targets.set(path, target);
    return target;
  }

  #admitHardLink(entry: ArchiveEntry): string {
    const target = safePath(entry.linkname ?? '');
    if (this.#kinds.get(target) !== 'file')
      throw refusal(
        entry.name,
        `is a hard link to ${quoted(target)}, which is no earlier file of the archive`,
      );
    return target;
  }

  /** Walks a link as the kernel would: `..` after another link counts from where that link led. */
  #follow(linkPath: string): void {
    const at = linkPath.split('/').slice(0, -1);
    const pending = this.#targets.get(linkPath)!.split('/');
    let hops = 0;
    while (pending.length > 0) {
      const segment = pending.shift()!;
      if (segment === '' || segment === '.') continue;
      if (segment === '..') {
        if (at.length === 0) throw refusal(linkPath, 'links to a place outside the archive');
        at.pop();
        continue;
      }
      const next = this.#targets.get([...at, segment].join('/'));
      if (next === undefined) at.push(segment);
      else if (++hops > maxLinkHops) throw refusal(linkPath, 'is a link that leads in a circle');
      else pending.unshift(...next.split('/'));
    }
  }
}

const quoted = (text: string): string => JSON.stringify(text.length > 200 ? `${text.slice(0, 200)}…` : text);
const refusal = (name: string, reason: string) =>
  new ThawError('bad-bundle', `entry ${quoted(name)} ${reason}`);

function safePath(name: string): string {
  if (name.includes('\0')) throw refusal(name, 'has a NUL in its name');
  if (name.startsWith('/')) throw refusal(name, 'has an absolute name');
  const segments = name.split('/').filter((segment) => segment !== '' && segment !== '.');
  if (segments.includes('..')) throw refusal(name, "has '..' in its name");
  const path = segments.join('/');
  if (Buffer.byteLength(path) > maxPathBytes)
    throw refusal(name, `has a name longer than ${maxPathBytes} bytes`);
  if (segments.some((segment) => Buffer.byteLength(segment) > maxSegmentBytes))
    throw refusal(name, `has a name segment longer than ${maxSegmentBytes} bytes`);
  return path;
}

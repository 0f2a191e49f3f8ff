// Owns turning a function's directory into a tar archive (ustar, with pax records for long names). Node only.
// Refuses to own what may be in it: the server checks that. Invariant: entries come in one order, times and owners are
// left out: the same content gives the same bytes. No module of Node is imported, so that browsers can load this file.
import { InvalidRequestError } from './errors.ts';

export interface Bundle {
  name: string;
  archive: Blob;
}

/** Never part of a function: history and Thaw's own data. */
const ignored = new Set(['.git', '.thaw']);
const maxFileBytes = 256 * 1024 * 1024;
const blockBytes = 512;
const maxNameBytes = 100;

type Part = Uint8Array<ArrayBuffer>;

/** @param name default: the one in thaw.json, else the directory's. */
export async function packDirectory(directory: string, name?: string): Promise<Bundle> {
  const { fs, path } = nodeModules();
  const parts: Part[] = [];
  await addDirectory(directory, '', parts);
  parts.push(new Uint8Array(2 * blockBytes));
  const manifest = await fs.readFile(path.join(directory, 'thaw.json'), 'utf8').catch(() => '{}');
  const declared = nameIn(manifest);
  return { name: name ?? declared ?? path.basename(path.resolve(directory)), archive: new Blob(parts) };
}

function nodeModules() {
  const { process } = globalThis;
  if (process?.getBuiltinModule === undefined)
    throw new InvalidRequestError('a directory can be deployed from Node only; give an archive and a name', {
      code: 'bad-request',
    });
  return {
    fs: process.getBuiltinModule('node:fs/promises'),
    path: process.getBuiltinModule('node:path'),
  };
}

function nameIn(manifest: string): string | undefined {
  try {
    return (JSON.parse(manifest) as { name?: string }).name;
  } catch {
    // The server says what is wrong with it, and where.
    return undefined;
  }
}

async function addDirectory(directory: string, prefix: string, parts: Part[]): Promise<void> {
  const { fs, path } = nodeModules();
  const names = (await fs.readdir(directory)).filter((name) => !ignored.has(name)).sort();
  for (const child of names) {
    const from = path.join(directory, child);
    const name = `${prefix}${child}`;
    const facts = await fs.lstat(from);
    const mode = facts.mode & 0o755;
    if (facts.isDirectory()) {
      addEntry(parts, { name: `${name}/`, mode, type: '5' });
      await addDirectory(from, `${name}/`, parts);
    } else if (facts.isSymbolicLink())
      addEntry(parts, { name, mode, type: '2', target: await fs.readlink(from) });
    else if (facts.isFile())
      addEntry(parts, { name, mode, type: '0', content: await contentOf(from, facts.size) });
    else
      throw new InvalidRequestError(`${from} is neither a file, a directory nor a link`, {
        code: 'bad-bundle',
      });
  }
}

/** Held in memory until it is sent: what is larger was not meant, or belongs into an archive made beforehand. */
async function contentOf(path: string, sizeBytes: number): Promise<Part> {
  if (sizeBytes > maxFileBytes)
    throw new InvalidRequestError(`${path} has more than ${maxFileBytes} bytes`, { code: 'body-too-large' });
  return new Uint8Array(await nodeModules().fs.readFile(path));
}

interface Entry {
  name: string;
  mode: number;
  /** Of tar: 0 file, 2 symbolic link, 5 directory, x pax records of the next entry. */
  type: '0' | '2' | '5' | 'x';
  target?: string;
  content?: Part;
}

function addEntry(parts: Part[], entry: Entry): void {
  const { name, target = '', content = new Uint8Array(0) } = entry;
  const records = [
    ...(byteLength(name) > maxNameBytes ? [paxRecord('path', name)] : []),
    ...(byteLength(target) > maxNameBytes ? [paxRecord('linkpath', target)] : []),
  ];
  if (records.length > 0)
    addEntry(parts, { name: 'pax', mode: 0o644, type: 'x', content: bytesOf(records.join('')) });
  const padding = new Uint8Array((blockBytes - (content.length % blockBytes)) % blockBytes);
  parts.push(headerOf(entry, content.length), content, padding);
}

function headerOf({ name, mode, type, target = '' }: Entry, sizeBytes: number): Part {
  const header = new Uint8Array(blockBytes);
  const put = (text: string, at: number, lengthBytes: number) =>
    header.set(bytesOf(text).subarray(0, lengthBytes), at);
  const octal = (value: number, digits: number) => value.toString(8).padStart(digits, '0');
  put(name, 0, maxNameBytes);
  put(`${octal(mode, 7)}\0${octal(0, 7)}\0${octal(0, 7)}\0`, 100, 24);
  put(`${octal(sizeBytes, 11)}\0${octal(0, 11)}\0`, 124, 24);
  put(`        ${type}`, 148, 9);
  put(target, 157, maxNameBytes);
  put('ustar\x0000', 257, 8);
  const sum = header.reduce((total, byte) => total + byte, 0);
  put(`${octal(sum, 6)}\0 `, 148, 8);
  return header;
}

/** `LENGTH KEY=VALUE\n`, where LENGTH counts itself. */
function paxRecord(key: string, value: string): string {
  const rest = ` ${key}=${value}\n`;
  const restBytes = byteLength(rest);
  let lengthBytes = restBytes + 1;
  while (restBytes + String(lengthBytes).length !== lengthBytes)
    lengthBytes = restBytes + String(lengthBytes).length;
  return `${lengthBytes}${rest}`;
}

const bytesOf = (text: string): Part => new TextEncoder().encode(text);
const byteLength = (text: string): number => bytesOf(text).length;

// Owns what the kernel sees: one flat directory of page files that can be opened for writing and never written.
// Refuses to own where bytes come from (page-source.ts). Invariant: a node id names one file for ever and is not given
// out again; a file that somebody has open stays readable until its last user is gone.
import { ThawError } from '../../shared/errors.ts';
import {
  type Attributes,
  attributesReply,
  type DirectoryEntry,
  directoryReply,
  entryReply,
  openReply,
  rootNodeId,
  statfsReply,
} from './fuse-protocol.ts';
import type { FuseAnswer, FuseHandler, FuseOperation } from './fuse-session.ts';

export interface PageFile {
  readonly sizeBytes: number;
  /** Exactly the bytes of the range, which lies inside the file, or why not. */
  readRange(offsetBytes: number, sizeBytes: number): FuseAnswer | Promise<FuseAnswer>;
  /** Somebody tried to write: a private mapping never does. */
  onWriteRefused(pid: number): void;
}

interface FileNode {
  nodeId: number;
  name: string;
  file: PageFile;
  opens: number;
}

const directoryMode = 0o040500;
/** Writable by its owner, or QEMU could not open it as it wants; read by VMMs of other uids, where they are given it. */
const fileMode = 0o100644;

export class FileTree implements FuseHandler {
  readonly #nodes = new Map<number, FileNode>();
  readonly #byName = new Map<string, FileNode>();
  readonly #owner = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
  #nextNodeId = rootNodeId + 1;

  /** @returns its node id. @throws ThawError `conflict`. */
  add(name: string, file: PageFile): number {
    if (this.#byName.has(name)) throw new ThawError('conflict', `${name} is already served`);
    const node = { nodeId: this.#nextNodeId++, name, file, opens: 0 };
    this.#nodes.set(node.nodeId, node);
    this.#byName.set(name, node);
    return node.nodeId;
  }

  /** @throws ThawError `conflict` while somebody has it open. */
  remove(name: string): void {
    const node = this.#byName.get(name);
    if (!node) return;
    if (node.opens > 0) throw new ThawError('conflict', `${name} is open ${node.opens} times`);
    this.#byName.delete(name);
    this.#nodes.delete(node.nodeId);
  }

  /** Mappings count: the kernel closes a file when its last mapping is gone. */
  opensOf(name: string): number {
    return this.#byName.get(name)?.opens ?? 0;
  }

  // Nodes end with `remove`, and a forgotten name is simply looked up again.
  forget(): void {}

  handle(operation: FuseOperation): FuseAnswer | Promise<FuseAnswer> {
    if (operation.op === 'statfs') return [statfsReply()];
    return operation.nodeId === rootNodeId ? this.#onRoot(operation) : this.#onFile(operation);
  }

  #onRoot(operation: FuseOperation): FuseAnswer {
    switch (operation.op) {
      case 'lookup': {
        const node = this.#byName.get(operation.name);
        return node ? [entryReply(this.#attributes(node))] : 'ENOENT';
      }
      case 'getattr':
        return [
          attributesReply({
            ...this.#owner,
            nodeId: rootNodeId,
            sizeBytes: 0,
            mode: directoryMode,
            links: 2,
          }),
        ];
      case 'opendir':
        return [openReply()];
      case 'readdir':
        return [directoryReply(this.#entries(), operation.offsetBytes, operation.sizeBytes)];
      case 'releasedir':
        return [];
      case 'setattr':
        return 'EROFS';
      case 'open':
      case 'read':
        return 'EISDIR';
      default:
        return 'ENOSYS';
    }
  }

  #onFile(operation: FuseOperation): FuseAnswer | Promise<FuseAnswer> {
    const node = this.#nodes.get(operation.nodeId);
    if (!node) return 'ENOENT';
    switch (operation.op) {
      case 'read':
        return this.#read(node, operation.offsetBytes, operation.sizeBytes);
      case 'getattr':
        return [attributesReply(this.#attributes(node))];
      case 'open':
        node.opens++;
        return [openReply()];
      case 'release':
        node.opens--;
        return [];
      case 'write':
        node.file.onWriteRefused(operation.pid);
        return 'EROFS';
      case 'setattr':
        return 'EROFS';
      case 'lookup':
      case 'opendir':
        return 'ENOTDIR';
      default:
        return 'ENOSYS';
    }
  }

  #read({ file }: FileNode, offsetBytes: number, sizeBytes: number): FuseAnswer | Promise<FuseAnswer> {
    const inside = Math.max(0, Math.min(sizeBytes, file.sizeBytes - offsetBytes));
    return inside === 0 ? [] : file.readRange(offsetBytes, inside);
  }

  #entries(): DirectoryEntry[] {
    const files = [...this.#byName.values()].map(({ nodeId, name }) => ({
      nodeId,
      name,
      type: 'file' as const,
    }));
    const root = { nodeId: rootNodeId, type: 'directory' as const };
    return [{ ...root, name: '.' }, { ...root, name: '..' }, ...files];
  }

  #attributes({ nodeId, file }: FileNode): Attributes {
    return { ...this.#owner, nodeId, sizeBytes: file.sizeBytes, mode: fileMode, links: 1 };
  }
}

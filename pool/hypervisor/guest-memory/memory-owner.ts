// Owns a small process that maps a file privately and changes pages on request: what captures are tested and measured
// with where no VM is needed. Python, because Node cannot map files.
import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface, type Interface } from 'node:readline';

// Commands, one a line: `dirty PAGE COUNT STEP VALUE` | `digest` | `read COUNT`. Segments are `FILE_OFFSET:SIZE` in address order.
const program = `
import hashlib, mmap, os, sys
path, segments = sys.argv[1], [tuple(map(int, s.split(':'))) for s in sys.argv[2:]]
fd = os.open(path, os.O_RDWR)
maps = [(o, s, mmap.mmap(fd, s, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=o)) for o, s in segments]
def at(offset):
    for o, s, m in maps:
        if o <= offset < o + s: return m, offset - o
print('ready', flush=True)
for line in sys.stdin:
    words = line.split()
    if words[0] == 'dirty':
        page, count, step, value = map(int, words[1:])
        for i in range(count):
            m, p = at((page + i * step) * 4096)
            m[p:p + 8] = (value + i).to_bytes(8, 'little')
        print('done', flush=True)
    elif words[0] == 'read':
        for i in range(int(words[1])):
            m, p = at(i * 4096)
            m[p]
        print('done', flush=True)
    else:
        h = hashlib.sha256()
        for o, s, m in sorted(maps): h.update(m)
        print(h.hexdigest(), flush=True)
`;

export class MemoryOwner implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #reader: Interface;

  /** @param segments parts of the file to map, `[offsetBytes, sizeBytes]`. */
  static async start(path: string, segments: [number, number][]): Promise<MemoryOwner> {
    const args = segments.map((segment) => segment.join(':'));
    const child = spawn('python3', ['-c', program, path, ...args], { stdio: ['pipe', 'pipe', 'inherit'] });
    const owner = new MemoryOwner(child);
    await owner.#answer();
    return owner;
  }

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.#reader = createInterface({ input: child.stdout! });
    this.#lines = this.#reader[Symbol.asyncIterator]();
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** Writes a number of its own into each of `count` pages, `step` pages apart. */
  async dirty(page: number, count: number, step = 1, value = 1): Promise<void> {
    await this.#ask(`dirty ${page} ${count} ${step} ${value}`);
  }

  /** Touches the first `count` pages without changing them. */
  async read(count: number): Promise<void> {
    await this.#ask(`read ${count}`);
  }

  /** SHA-256 of all it sees, in the file's order. */
  digest(): Promise<string> {
    return this.#ask('digest');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const gone = new Promise((resolve) => this.#child.once('close', resolve));
    this.#child.kill('SIGKILL');
    await gone;
    this.#reader.close();
  }

  #ask(command: string): Promise<string> {
    this.#child.stdin!.write(`${command}\n`);
    return this.#answer();
  }

  async #answer(): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error('the memory owner ended');
    return value;
  }
}

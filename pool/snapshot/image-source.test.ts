import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, open, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import fc from 'fast-check';
import { pageBytes } from './extents.ts';
import { deltaSource, type ImageSource, sparseFileSource, wholeFileSource } from './image-source.ts';
import { qcow2LayerSource } from './qcow2-layer.ts';
import { excluding, flatten, type RunTable, restrictedTo, rowAt, sliced, totalBytes } from './run-table.ts';

const run = promisify(execFile);
const hasQemu = await run('qemu-img', ['--version']).then(
  () => true,
  () => false,
);
const needsQemu = hasQemu ? {} : { skip: 'qemu-img is not installed: apt-get install qemu-utils' };

/** What the table says, read: the image as bytes. */
async function bytesOf(table: RunTable, imageBytes: number): Promise<Buffer> {
  const image = Buffer.alloc(imageBytes);
  for (let row = 0; row < table.file.length; row++) {
    const { offsetBytes, sizeBytes, fileOffsetBytes, file } = rowAt(table, row);
    if (fileOffsetBytes < 0) continue;
    const bytes = await readFile(table.paths[file]!);
    bytes.copy(image, offsetBytes, fileOffsetBytes, fileOffsetBytes + sizeBytes);
  }
  return image;
}

describe('image sources', () => {
  let dir: string;
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-source-'));
  });
  after(() => rm(dir, { recursive: true, force: true }));

  it('skips the holes of a sparse file', async () => {
    const path = join(dir, 'sparse');
    await writeFile(path, '');
    await truncate(path, 1 << 30);
    await using file = await open(path, 'r+');
    const data = Buffer.alloc(pageBytes, 1);
    for (const page of [0, 100, 101, 200_000]) await file.write(data, 0, pageBytes, page * pageBytes);
    await file.sync();
    const { runs } = await sparseFileSource(path);
    const covers = (page: number) =>
      runs.some(({ offsetBytes, sizeBytes }) => {
        const at = page * pageBytes;
        return at >= offsetBytes && at < offsetBytes + sizeBytes;
      });
    for (const page of [0, 100, 101, 200_000]) assert.ok(covers(page), `page ${page}`);
    assert.ok(totalBytes(flatten([{ path, runs }], 1 << 30)) < 1 << 20);
    assert.deepEqual((await sparseFileSource('/dev/null')).runs, []);
  });

  it('covers a file that has no hole, to its last byte', async () => {
    const path = join(dir, 'dense');
    await writeFile(path, Buffer.alloc(10_001, 5));
    const { runs } = await sparseFileSource(path);
    assert.deepEqual(runs, (await wholeFileSource(path)).runs);
  });

  it('reads which clusters a qcow2 layer holds, and which it wiped', needsQemu, async () => {
    const [base, layer, flat] = ['base.raw', 'layer.qcow2', 'flat.raw'].map((name) => join(dir, name));
    await writeFile(base!, Buffer.alloc(8 << 20, 0xaa));
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base!, '-F', 'raw', layer!]);
    const commands = [
      'write -P 1 0 4096',
      'write -P 2 1M 200k',
      'write -z 3M 128k',
      'write -P 3 8380416 8192',
    ];
    await run('qemu-io', [...commands.flatMap((command) => ['-c', command]), layer!]);
    await run('qemu-img', ['convert', '-O', 'raw', layer!, flat!]);
    const source = await qcow2LayerSource(layer!);
    assert.equal(source.imageBytes, 8 << 20);
    assert.ok(source.runs.some(({ fileOffsetBytes }) => fileOffsetBytes === -1));
    const table = flatten([await wholeFileSource(base!), source], source.imageBytes);
    assert.ok((await bytesOf(table, source.imageBytes)).equals(await readFile(flat!)));
    const own = source.runs.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    assert.ok(own < 1 << 20, `${own} bytes in the layer`);
  });

  it('refuses a layer that it does not understand', needsQemu, async () => {
    const path = join(dir, 'strange.qcow2');
    const refused = { code: 'hypervisor-failed' };
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', 'extended_l2=on', path, '8M']);
    await assert.rejects(qcow2LayerSource(path), refused);
    await writeFile(path, Buffer.alloc(4096));
    await assert.rejects(qcow2LayerSource(path), refused);
    await writeFile(path, 'QFI');
    await assert.rejects(qcow2LayerSource(path), refused);
  });

  it('lays sources over each other, whatever their runs', async () => {
    const pages = 40;
    const runsArbitrary = fc
      .array(fc.record({ gap: fc.nat(6), size: fc.integer({ min: 1, max: 8 }), zero: fc.boolean() }), {
        maxLength: 10,
      })
      .map((parts) => {
        const runs = [];
        let at = 0;
        let inFile = 0;
        for (const { gap, size, zero } of parts) {
          at += gap;
          if (at + size > pages) break;
          runs.push({ offsetBytes: at, sizeBytes: size, fileOffsetBytes: zero ? -1 : inFile });
          if (!zero) inFile += size;
          at += size;
        }
        return runs;
      });
    await fc.assert(
      fc.asyncProperty(
        fc.array(runsArbitrary, { maxLength: 4 }),
        fc.integer({ min: 1, max: 9 }),
        async (layers, max) => {
          const sources: ImageSource[] = layers.map((runs, file) => ({ path: String(file), runs }));
          const cells = Array.from({ length: pages }, () => 'none');
          for (const { path, runs } of sources)
            for (const { offsetBytes, sizeBytes, fileOffsetBytes } of runs)
              for (let at = 0; at < sizeBytes; at++)
                cells[offsetBytes + at] = fileOffsetBytes < 0 ? 'zero' : `${path}:${fileOffsetBytes + at}`;
          const table = flatten(sources, pages);
          assert.deepEqual(cellsOf([table], pages), cells);
          assert.deepEqual(cellsOf([...sliced(table, max)], pages), cells);
          for (const slice of sliced(table, max)) assert.ok(totalBytes(slice) <= max);
          const some = [
            { offsetBytes: 5, sizeBytes: 10 },
            { offsetBytes: 30, sizeBytes: 3 },
          ];
          assert.deepEqual(cellsOf([restrictedTo(table, some), excluding(table, some)], pages), cells);
        },
      ),
    );
  });

  it('finds the bytes of a delta one after the other', () => {
    const runs = [
      { offsetBytes: 8192, sizeBytes: 4096 },
      { offsetBytes: 40_960, sizeBytes: 8192 },
    ];
    const source = deltaSource({ path: 'x', runs });
    assert.deepEqual(
      source.runs.map(({ fileOffsetBytes }) => fileOffsetBytes),
      [0, 4096],
    );
  });
});

function cellsOf(tables: readonly RunTable[], pages: number): string[] {
  const cells = Array.from({ length: pages }, () => 'none');
  for (const table of tables)
    for (let row = 0; row < table.file.length; row++) {
      const { offsetBytes, sizeBytes, fileOffsetBytes, file } = rowAt(table, row);
      for (let at = 0; at < sizeBytes; at++) {
        assert.equal(cells[offsetBytes + at], 'none', 'no overlap');
        cells[offsetBytes + at] =
          fileOffsetBytes < 0 ? 'zero' : `${table.paths[file]}:${fileOffsetBytes + at}`;
      }
    }
  return cells;
}

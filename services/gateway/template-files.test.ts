import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { resolveGatewayConfig } from './gateway-config.ts';
import { TemplateFiles } from './template-files.ts';

const hashes = ['a', 'b', 'c'].map((digit) => digit.repeat(64));

describe('files that were uploaded for builds', () => {
  let bundleDir: string;
  let files: TemplateFiles;
  beforeEach(async () => {
    bundleDir = await mkdtemp(join(tmpdir(), 'thaw-files-'));
    files = new TemplateFiles(resolveGatewayConfig({ bundleDir }));
    await mkdir(dirname(files.pathOf(hashes[0]!)), { recursive: true });
    const longAgo = new Date(Date.now() - 7_200_000);
    for (const hash of hashes) {
      await writeFile(files.pathOf(hash), Buffer.alloc(1_000));
      await utimes(files.pathOf(hash), longAgo, longAgo);
    }
  });
  afterEach(() => rm(bundleDir, { recursive: true, force: true }));

  it('go when room is needed, but for those that a build works with or has just asked for', async () => {
    const [used, asked, old] = hashes;
    const { release } = await files.take([used!]);
    (await files.take([asked!])).release();
    assert.equal(await files.dropOld(), 1_000);
    assert.deepEqual(await Promise.all([used!, asked!, old!].map((hash) => files.has(hash))), [
      true,
      true,
      false,
    ]);
    release();
    assert.equal(await files.dropOld(), 0, 'it was used just now');
    await assert.rejects(files.take([old!]), { code: 'bad-request' });
  });
});

// Contents of several kinds, listing, moving, removing, and what is not there.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import type { Stage } from './scenario.ts';

export default async ({ e2b, sandbox }: Stage): Promise<void> => {
  const { files } = sandbox;
  await files.write('a/text.txt', 'grüße');
  assert.equal(await files.read('a/text.txt'), 'grüße');
  const bytes = new Uint8Array(randomBytes(200_000));
  await files.write('a/bytes', bytes.buffer);
  assert.deepEqual(await files.read('a/bytes', { format: 'bytes' }), bytes);
  assert.equal(await (await files.read('a/text.txt', { format: 'blob' })).text(), 'grüße');
  let streamed = 0;
  for await (const chunk of await files.read('a/bytes', { format: 'stream' })) streamed += chunk.length;
  assert.equal(streamed, bytes.length);
  await files.write([
    { path: 'many/one', data: '1' },
    { path: 'many/two', data: '22' },
  ]);
  assert.deepEqual(
    (await files.list('many')).map(({ name, size }) => [name, size]),
    [
      ['one', 1],
      ['two', 2],
    ],
  );
  assert.equal(await files.makeDir('many'), false);
  await files.rename('many/one', 'other/three');
  assert.equal(await files.exists('many/one'), false);
  assert.equal((await files.getInfo('other/three')).type, 'file');
  await files.remove('many');
  assert.equal(await files.exists('many'), false);
  await assert.rejects(files.read('none'), e2b.NotFoundError);
};

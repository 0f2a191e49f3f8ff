// Signed links: a file is read and written without the token, and not after their time.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';

export default async ({ sandbox, url }: Stage): Promise<void> => {
  // With a sandbox URL a link does not say which sandbox it is of: the header does.
  const ask = (link: string, init: RequestInit = {}) => {
    const { pathname, search } = new URL(link);
    return fetch(`${url}${pathname}${search}`, { ...init, headers: { 'e2b-sandbox-id': sandbox.sandboxId } });
  };
  await sandbox.files.write('linked', 'content');
  const options = { useSignatureExpiration: 60_000 };
  const read = await ask(await sandbox.downloadUrl('linked', options));
  assert.deepEqual([read.status, await read.text()], [200, 'content']);
  const form = new FormData();
  form.append('file', new Blob(['uploaded']), 'up');
  const written = await ask(await sandbox.uploadUrl('up', options), { method: 'POST', body: form });
  assert.equal(written.status, 200);
  assert.equal(await sandbox.files.read('up'), 'uploaded');
  const other = await ask((await sandbox.downloadUrl('linked', options)).replace('linked', 'up'));
  assert.equal(other.status, 401);
};

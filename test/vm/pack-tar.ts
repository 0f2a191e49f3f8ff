// Owns making a small tar from file contents, for tests.
import { buffer } from 'node:stream/consumers';
import { pack } from 'tar-stream';

export async function packTar(files: Record<string, string>): Promise<Buffer> {
  const archive = pack();
  for (const [name, text] of Object.entries(files)) archive.entry({ name, mode: 0o644 }, text);
  archive.finalize();
  return buffer(archive);
}

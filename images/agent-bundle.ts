// Owns turning the guest agent into the few files that run in a guest: bundled modules, Python files, koffi's binary.
// Invariant: the same sources give the same bytes, so their hash may name an image.
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { build } from 'esbuild';

const agentDir = join(import.meta.dirname, '../services/guest-agent');
const modules = {
  agent: 'main.ts',
  'node-runner': 'runner/node-runner.ts',
  'node-reseed': 'runner/node-reseed.ts',
};
const copied = ['runner/python_runner.py', 'runner/sitecustomize.py'];

/** File name → content, of /opt/thaw in the guest. */
export async function bundleAgent(): Promise<Map<string, Buffer>> {
  const files = new Map<string, Buffer>();
  for (const [name, entry] of Object.entries(modules)) files.set(`${name}.mjs`, await bundled(entry));
  for (const path of copied) files.set(path.split('/').at(-1)!, await readFile(join(agentDir, path)));
  const koffi = createRequire(import.meta.url).resolve('@koromix/koffi-linux-x64/linux_x64/koffi.node');
  files.set('koffi.node', await readFile(koffi));
  return files;
}

async function bundled(entry: string): Promise<Buffer> {
  const result = await build({
    entryPoints: [join(agentDir, entry)],
    absWorkingDir: agentDir,
    bundle: true,
    write: false,
    platform: 'node',
    format: 'esm',
    target: 'node24',
    legalComments: 'none',
    // Paths of modules stand in the bundle: they must not tell where node_modules lies.
    preserveSymlinks: true,
    logLevel: 'silent',
  });
  return Buffer.from(result.outputFiles[0]!.contents);
}

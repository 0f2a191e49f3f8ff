// Holds the published form of the TypeScript SDK to its users: built, it is plain JavaScript with types they can compile
// against, and depends on nothing.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';

const projectDir = new URL('../..', import.meta.url).pathname;
const tsc = join(projectDir, 'node_modules/typescript/bin/tsc');
const run = promisify(execFile);

let directory: string;
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'thaw-sdk-package-'));
});
after(() => rm(directory, { recursive: true, force: true }));

const user = `import { CommandExitError, Sandbox, type SandboxInfo } from 'thaw-sdk';
try {
  const list: SandboxInfo[] = await Sandbox.list({ apiUrl: 'http://127.0.0.1:9', apiKey: 'e2b_0' });
  console.log(list.length);
} catch (error) {
  console.log((error as Error).name, error instanceof CommandExitError);
}
`;

describe('the package of the TypeScript SDK', () => {
  it('builds, is compiled against and runs', async () => {
    const sdkDir = join(projectDir, 'sdk/typescript');
    const installed = join(directory, 'node_modules/thaw-sdk');
    await run(process.execPath, [tsc, '-p', sdkDir, '--outDir', join(installed, 'dist')]);
    await cp(join(sdkDir, 'package.json'), join(installed, 'package.json'));
    const facts = JSON.parse(await readFile(join(installed, 'package.json'), 'utf8'));
    assert.equal(facts.dependencies, undefined);
    await writeFile(join(directory, 'package.json'), '{"type":"module"}');
    await writeFile(join(directory, 'user.ts'), user);
    const strict = ['--strict', '--module', 'nodenext', '--target', 'es2022', '--lib', 'es2023,dom,esnext'];
    await run(process.execPath, [tsc, ...strict, '--types', '', '--skipLibCheck', 'user.ts'], {
      cwd: directory,
    });
    const { stdout } = await run(process.execPath, [join(directory, 'user.js')]);
    assert.equal(stdout, 'UnreachableError false\n');
  });
});

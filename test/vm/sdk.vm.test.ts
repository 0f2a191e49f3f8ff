// Holds both SDKs to their promises in real VMs: their tests of the wire, against a Thaw as a user starts it.
// Invariant: nothing is tested here that those files do not test; here it is a guest that answers.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { newDataDir, removeDir, startThaw, type ThawProcess } from './thaw-process.ts';

const projectDir = join(import.meta.dirname, '../..');

let thaw: ThawProcess;
let dataDir: string;
before(async () => {
  dataDir = await newDataDir();
  thaw = await startThaw(dataDir);
});
after(async () => {
  await thaw?.end();
  await removeDir(dataDir);
});

async function run(command: string, args: string[], cwd: string): Promise<void> {
  const env = {
    ...process.env,
    THAW_TEST_URL: thaw.url,
    THAW_TEST_API_KEY: thaw.apiKey,
    PYTHONDONTWRITEBYTECODE: '1',
    // A test runner within a test runner reports to it instead of printing.
    NODE_TEST_CONTEXT: undefined,
  };
  const child = spawn(command, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
  const exitCode = await new Promise<number | null>((resolve) => child.once('close', resolve));
  assert.equal(exitCode, 0, output);
  assert.doesNotMatch(output, /skipped=|^ℹ skipped [1-9]/m);
}

const typescript = (file: string) => run(process.execPath, ['--test', `test/sdk/${file}`], projectDir);
const python = (module: string) => run('python3', ['-m', 'unittest', module], join(projectDir, 'sdk/python'));

describe('in real VMs', () => {
  it('the TypeScript SDK keeps its promises', () => typescript('typescript.test.ts'));
  it('the TypeScript SDK takes snapshots', () => typescript('typescript-snapshots.suite.ts'));
  it('the Python SDK keeps its promises', () => python('tests.sync.test_wire'));
  it('the Python SDK takes snapshots, sync', () => python('tests.sync.test_snapshots'));
  it('the Python SDK takes snapshots, async', () => python('tests.aio.test_snapshots'));
});

// Holds every example of the snapshots page to its expected output, in both languages, in real VMs: those of the server that
// THAW_TEST_URL and THAW_TEST_API_KEY name, else of a Thaw of its own. Invariant: an example's output is compared word for word.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { withDeadline } from '../../shared/deadline.ts';
import { newDataDir, removeDir, startThaw, type ThawProcess } from './thaw-process.ts';

const projectDir = join(import.meta.dirname, '../..');
const examplesDir = join(projectDir, 'examples');
/** Installing a package under emulation takes most of a minute. */
const exampleTimeoutMs = 300_000;
const names = ['warm-start', 'checkpoint', 'branch', 'files-and-tools'];

let thaw: ThawProcess | undefined;
let dataDir: string | undefined;
let server: { apiUrl: string; apiKey: string };

before(async () => {
  const { THAW_TEST_URL: apiUrl, THAW_TEST_API_KEY: apiKey } = process.env;
  if (apiUrl !== undefined && apiKey !== undefined) server = { apiUrl, apiKey };
  else {
    dataDir = await newDataDir();
    thaw = await startThaw(dataDir);
    server = { apiUrl: thaw.url, apiKey: thaw.apiKey };
  }
});
after(async () => {
  await thaw?.end();
  if (dataDir !== undefined) await removeDir(dataDir);
});

async function run(
  command: string,
  args: string[],
): Promise<{ exitCode: number | null; stdout: string; said: string }> {
  const env = {
    ...process.env,
    THAW_API_URL: server.apiUrl,
    THAW_API_KEY: server.apiKey,
    PYTHONPATH: join(projectDir, 'sdk/python'),
    PYTHONDONTWRITEBYTECODE: '1',
  };
  const child = spawn(command, args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
  const output = { stdout: '', said: '' };
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output.stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    output.said += text;
  });
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  try {
    return { exitCode: await withDeadline(args[0]!, exampleTimeoutMs, ended), ...output };
  } finally {
    child.kill();
  }
}

describe('the examples of snapshots', () => {
  it('are all run here', async () => {
    const files = (await readdir(join(examplesDir, 'expected'))).map((name) => name.replace('.txt', ''));
    assert.deepEqual(files.sort(), [...names].sort());
  });

  for (const name of names)
    for (const [language, command, path] of [
      ['TypeScript', process.execPath, `typescript/${name}.ts`],
      ['Python', 'python3', `python/${name.replaceAll('-', '_')}.py`],
    ] as const)
      it(`${name} in ${language}`, async (t) => {
        const expected = await readFile(join(examplesDir, 'expected', `${name}.txt`), 'utf8');
        const { exitCode, stdout, said } = await run(command, [join(examplesDir, path)]);
        assert.equal(stdout, expected, said);
        assert.equal(exitCode, 0, said);
        if (said !== '') t.diagnostic(said.trim());
      });
});

// Holds the Python SDK to its own tests: those of the wire against the same server as the TypeScript SDK's.
// Needs python3 3.10 or newer and nothing else. Invariant: its skips and failures are those of unittest, word for word.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { after, before, describe, it } from 'node:test';
import { openSdkWorld, type SdkWorld } from './sdk-world.ts';

const sdkDir = new URL('../../sdk/python', import.meta.url).pathname;

let world: SdkWorld;
before(async () => {
  world = await openSdkWorld();
});
after(() => world.close());

async function unittest(...args: string[]): Promise<{ exitCode: number | null; output: string }> {
  const child = spawn('python3', ['-W', 'error::ResourceWarning', '-m', 'unittest', '-v', ...args], {
    cwd: sdkDir,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      ...process.env,
      PYTHONDONTWRITEBYTECODE: '1',
      THAW_TEST_URL: world.apiUrl,
      THAW_TEST_API_KEY: world.apiKey,
      THAW_TEST_HYPERVISOR: world.hasVms ? '' : 'process',
    },
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
  const exitCode = await new Promise<number | null>((resolve) => child.once('close', resolve));
  return { exitCode, output };
}

describe('the Python SDK', () => {
  for (const module of [
    'tests.test_http1',
    'tests.test_make_sync',
    'tests.aio.test_contract',
    'tests.sync.test_contract',
    'tests.aio.test_tls',
    'tests.sync.test_tls',
    'tests.aio.test_wire',
    'tests.sync.test_wire',
  ])
    it(module, async () => {
      const { exitCode, output } = await unittest(module);
      assert.equal(exitCode, 0, output);
      assert.match(output, /^Ran [1-9]\d* tests? in/m);
      assert.doesNotMatch(output, /skipped/);
    });
});

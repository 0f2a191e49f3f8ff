// Tests `thaw sandbox exec` as a shell sees it: words passed through, output, exit code. The sandbox is an agent process.
import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { text } from 'node:stream/consumers';
import { after, before, describe, it } from 'node:test';
import { runCli } from '../../services/cli/program.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { startAgentGateway } from '../sdk/sdk-world.ts';

const cleanup = new Cleanup();
let server: { apiUrl: string; apiKey: string };
let sandboxId: string;

async function thaw(...argv: string[]): Promise<{ exitCode: number; stdout: string; stderr: string }> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const said = Promise.all([text(stdout), text(stderr)]);
  const [command, verb, ...words] = argv;
  const env = { PATH: process.env.PATH, THAW_API_KEY: server.apiKey };
  const exitCode = await runCli([command!, verb!, '--url', server.apiUrl, ...words], { env, stdout, stderr });
  stdout.end();
  stderr.end();
  const [out, err] = await said;
  return { exitCode, stdout: out, stderr: err };
}

before(async () => {
  server = await startAgentGateway(cleanup);
  const { stdout } = await thaw('sandbox', 'create', '--json');
  sandboxId = (JSON.parse(stdout) as { sandboxID: string }).sandboxID;
});
after(() => cleanup.run());

describe('thaw sandbox exec', () => {
  it('gives output and exit code of the command as they are', async () => {
    const script = 'echo out; echo err >&2; exit 3';
    const said = { exitCode: 3, stdout: 'out\n', stderr: 'err\n' };
    assert.deepEqual(await thaw('sandbox', 'exec', sandboxId, '--', 'sh', '-c', script), said);
    assert.deepEqual(await thaw('sandbox', 'exec', sandboxId, 'sh', '-c', script), said);
  });

  it('passes on options that are the command’s, and takes its own before the id', async () => {
    const words = ['-e', 'WORD=x y', '--cwd', '/', sandboxId, '--', 'sh', '-c', 'echo "$WORD $PWD $1"', 'sh'];
    const { stdout } = await thaw('sandbox', 'exec', ...words, '--');
    assert.equal(stdout, 'x y / --\n');
  });

  it('says 128 and why for a command that a signal ended, 1 for one that cannot be started', async () => {
    const killed = await thaw('sandbox', 'exec', sandboxId, '--', 'sh', '-c', 'kill -9 $$');
    assert.deepEqual(
      [killed.exitCode, killed.stderr],
      [128, 'thaw: the command was ended: signal: killed\n'],
    );
    const absent = await thaw('sandbox', 'exec', sandboxId, '--', '/no/such/program');
    assert.deepEqual([absent.exitCode, absent.stdout], [1, '']);
    assert.match(absent.stderr, /cannot start \/no\/such\/program/);
    const missing = await thaw('sandbox', 'exec', sandboxId, '--');
    assert.equal(missing.exitCode, 2);
  });
});

// Holds the TypeScript SDK to what browsers have: it is bundled for one, without a module of Node, and drives a sandbox
// in a realm that knows nothing but Web standards.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { createContext, runInContext } from 'node:vm';
import { build } from 'esbuild';
import { openSdkWorld, type SdkWorld } from './sdk-world.ts';

let world: SdkWorld;
before(async () => {
  world = await openSdkWorld();
});
after(() => world.close());

const webGlobals = {
  fetch,
  Headers,
  Response,
  ReadableStream,
  TransformStream,
  Blob,
  URL,
  URLSearchParams,
  TextEncoder,
  TextDecoder,
  AbortController,
  atob,
  btoa,
  performance,
  setTimeout,
  clearTimeout,
  // Of this realm, so that what `fetch` makes is what the bundle compares with.
  Uint8Array,
  ArrayBuffer,
  TypeError,
};

describe('the TypeScript SDK in a browser', () => {
  it('bundles without any module of Node and drives a sandbox', async () => {
    const result = await build({
      entryPoints: [new URL('../../sdk/typescript/index.ts', import.meta.url).pathname],
      bundle: true,
      write: false,
      platform: 'browser',
      format: 'iife',
      globalName: 'thaw',
      target: 'es2022',
    });
    const code = result.outputFiles[0]!.text;
    assert.ok(code.length < 100_000, `the bundle has ${code.length} bytes`);
    const context = createContext({ ...webGlobals, options: { ...world } });
    runInContext(code, context);
    const script = `(async () => {
      const sandbox = await thaw.Sandbox.create(options);
      try {
        const heard = [];
        const { stdout } = await sandbox.commands.run('cat', { stdin: 'hello', onStdout: (text) => heard.push(text) });
        await sandbox.files.write('x', new Uint8Array([104, 105]));
        const failure = await sandbox.commands.run('exit 3').catch((error) => error.name + error.exitCode);
        const packed = await new thaw.Functions(options).deploy({ directory: '.' }).catch((error) => error.message);
        return JSON.stringify([stdout, heard.join(''), await sandbox.files.read('x'), failure, packed]);
      } finally {
        await sandbox.kill();
      }
    })()`;
    const answers = JSON.parse(await runInContext(script, context));
    assert.deepEqual(answers.slice(0, 4), ['hello', 'hello', 'hi', 'CommandExitError3']);
    assert.match(answers[4], /from Node only/);
  });
});

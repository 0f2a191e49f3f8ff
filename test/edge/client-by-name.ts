// A program of a user with the unmodified `e2b` client, whose only settings are a domain, a key and an authority.
// Everything it needs of its sandboxes goes by host name over TLS. Prints what it saw as one line of JSON (`Seen`).
import { join } from 'node:path';
import { Sandbox } from 'e2b';
import { build } from 'esbuild';
import { WebSocket } from 'ws';
import { eventually } from '../../services/gateway/eventually.ts';

const startTimeoutMs = 60_000;
/** Where the sandbox is a process of the host its ports are the host's: below those that connections get. */
const port = 20_000 + Math.floor(Math.random() * 10_000);

const bundled = await build({
  entryPoints: [join(import.meta.dirname, 'guest-server.ts')],
  bundle: true,
  platform: 'node',
  format: 'esm',
  write: false,
  banner: {
    js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);",
  },
});

/** Not public when asked: its ports then want its token. */
async function startServer(
  allowPublicTraffic: boolean,
): Promise<{ sandbox: Sandbox; headers: Record<string, string> }> {
  const sandbox = await Sandbox.create('base', { timeoutMs: 240_000, network: { allowPublicTraffic } });
  await sandbox.files.write('guest-server.mjs', bundled.outputFiles[0]!.text);
  await sandbox.commands.run(`node guest-server.mjs ${port}`, { background: true, timeoutMs: 0 });
  const token = sandbox.trafficAccessToken;
  const headers: Record<string, string> = token === undefined ? {} : { 'e2b-traffic-access-token': token };
  const ask = () => fetch(`https://${sandbox.getHost(port)}/`, { headers });
  await eventually('the server in the sandbox', async () => (await ask()).status === 200, startTimeoutMs);
  return { sandbox, headers };
}

/** Each word is sent only when the answer to the one before is here: nothing on the way may wait for an end. */
async function pieces(host: string): Promise<string[]> {
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  const writer = writable.getWriter();
  const say = (word: string) => writer.write(new TextEncoder().encode(word));
  // The client's headers leave with the first word.
  void say('one');
  const request = { method: 'POST', body: readable, duplex: 'half' };
  const asked = await fetch(`https://${host}/`, request as RequestInit);
  const answer = asked.body!.pipeThrough(new TextDecoderStream()).getReader();
  let seen = '';
  const until = async (word: string) => {
    while (!seen.endsWith(word)) seen += (await answer.read()).value;
  };
  await until('ONE');
  await say('two');
  await until('TWO');
  await writer.close();
  return seen.split('\n');
}

async function overWebSocket(host: string): Promise<string> {
  const socket = new WebSocket(`wss://${host}/chat`);
  const answer = await new Promise((resolve, reject) => {
    socket.on('error', reject).on('message', resolve);
    socket.on('open', () => socket.send('hello'));
  });
  socket.close();
  return String(answer);
}

async function signedLinks(sandbox: Sandbox) {
  const { host: uploadHost } = new URL(await sandbox.uploadUrl('linked'));
  const form = new FormData();
  form.append('file', new Blob(['by link']), 'linked');
  const life = { useSignatureExpiration: 60_000 };
  const up = await fetch(await sandbox.uploadUrl('linked', life), { method: 'POST', body: form });
  const link = await sandbox.downloadUrl('linked', life);
  const down = await fetch(link);
  const expired = await fetch(await sandbox.downloadUrl('linked', { useSignatureExpiration: -60_000 }));
  const unsigned = await fetch(link.replace(/&signature=[^&]*/, ''));
  const statuses = [up.status, down.status, expired.status, unsigned.status];
  return { uploadHost, statuses, text: await down.text() };
}

async function notPublic() {
  const { sandbox, headers } = await startServer(false);
  const url = `https://${sandbox.getHost(port)}/`;
  const { status } = await fetch(url);
  const withToken = await fetch(url, { headers });
  await sandbox.kill();
  return { withoutToken: status, withToken: withToken.status };
}

const { sandbox } = await startServer(true);
const host = sandbox.getHost(port);
let streamed = '';
const onStdout = (text: string) => {
  streamed += text;
};
const run = await sandbox.commands.run('printf out; printf err >&2', { onStdout });
const seen = {
  sandboxId: sandbox.sandboxId,
  port,
  host,
  domain: sandbox.sandboxDomain,
  command: [run.stdout, run.stderr, streamed],
  pieces: await pieces(host),
  webSocket: await overWebSocket(host),
  links: await signedLinks(sandbox),
  closedPort: ((await (await fetch(`https://${sandbox.getHost(1)}/`)).json()) as { message: string }).message,
  running: await sandbox.isRunning(),
  killed: await sandbox.kill(),
  runningAfterwards: await sandbox.isRunning(),
  notPublic: await notPublic(),
};
export type Seen = typeof seen;
console.log(JSON.stringify(seen));
process.exit(0);

// A program of a user with the unmodified `e2b` client, whose only settings are a domain, a key and an authority.
// Everything it needs of the sandbox goes by host name over TLS. Prints what it saw as one line of JSON.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Sandbox } from 'e2b';
import { WebSocket, WebSocketServer } from 'ws';

/** Stands in the sandbox: in this test a sandbox is processes of this machine. */
const guest = createServer(async (request, response) => {
  response.write(`${request.headers.host} ${request.headers['x-forwarded-proto']}\n`);
  for await (const chunk of request) response.write(String(chunk).toUpperCase());
  response.end();
});
new WebSocketServer({ server: guest }).on('connection', (socket) =>
  socket.on('message', (text) => socket.send(`echo ${text}`)),
);
await new Promise<void>((resolve) => guest.listen(0, '127.0.0.1', resolve));
const { port } = guest.address() as AddressInfo;

const sandbox = await Sandbox.create('base', { timeoutMs: 60_000 });
const host = sandbox.getHost(port);

/** Each word is sent only when the answer to the one before is here: nothing on the way may wait for an end. */
async function pieces(): Promise<string[]> {
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  const writer = writable.getWriter();
  const say = (word: string) => writer.write(new TextEncoder().encode(word));
  // The client's headers leave with the first word.
  void say('one');
  const asked = await fetch(`https://${host}/`, {
    method: 'POST',
    body: readable,
    duplex: 'half',
  } as RequestInit);
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

async function overWebSocket(): Promise<string> {
  const socket = new WebSocket(`wss://${host}/chat`);
  const answer = await new Promise((resolve, reject) => {
    socket.on('error', reject).on('message', resolve);
    socket.on('open', () => socket.send('hello'));
  });
  socket.close();
  return String(answer);
}

async function signedLinks() {
  const { host: uploadHost } = new URL(await sandbox.uploadUrl('linked'));
  const form = new FormData();
  form.append('file', new Blob(['by link']), 'linked');
  const life = { useSignatureExpiration: 60_000 };
  const up = await fetch(await sandbox.uploadUrl('linked', life), { method: 'POST', body: form });
  const link = await sandbox.downloadUrl('linked', life);
  const down = await fetch(link);
  const expired = await fetch(await sandbox.downloadUrl('linked', { useSignatureExpiration: -60_000 }));
  const unsigned = await fetch(link.replace(/&signature=[^&]*/, ''));
  const { status } = down;
  return {
    uploadHost,
    up: up.status,
    status,
    text: await down.text(),
    expired: expired.status,
    unsigned: unsigned.status,
  };
}

let streamed = '';
const run = await sandbox.commands.run('printf out; printf err >&2', {
  onStdout: (text) => {
    streamed += text;
  },
});
const results = {
  sandboxId: sandbox.sandboxId,
  port,
  host,
  domain: sandbox.sandboxDomain,
  command: [run.stdout, run.stderr, streamed],
  pieces: await pieces(),
  webSocket: await overWebSocket(),
  links: await signedLinks(),
  closedPort: await (await fetch(`https://${sandbox.getHost(1)}/`)).json(),
  running: await sandbox.isRunning(),
  killed: await sandbox.kill(),
  runningAfterwards: await sandbox.isRunning(),
};
console.log(JSON.stringify(results));
process.exit(0);

// Uploads that the agent refuses before it has read them, through a real gateway to a real agent: the client has its
// answer, and its connection serves the next request.
import assert from 'node:assert/strict';
import { Agent, request as httpRequest } from 'node:http';
import { after, before, describe, it } from 'node:test';
import { Sandbox } from 'e2b';
import { Cleanup } from '../../shared/cleanup.ts';
import { type SdkWorld, startAgentGateway } from '../sdk/sdk-world.ts';

const bodyBytes = 16 * 1024 * 1024;
const answerTimeoutMs = 20_000;
const cleanup = new Cleanup();
let world: SdkWorld;
let sandbox: Sandbox;
let accessToken: string;
before(async () => {
  world = await startAgentGateway(cleanup);
  const { apiUrl, apiKey } = world;
  sandbox = await Sandbox.create('base', { apiUrl, apiKey, sandboxUrl: apiUrl });
  const detail = await fetch(`${apiUrl}/sandboxes/${sandbox.sandboxId}`, {
    headers: { 'x-api-key': apiKey },
  });
  accessToken = ((await detail.json()) as { envdAccessToken: string }).envdAccessToken;
  await sandbox.files.makeDir('directory');
  await sandbox.files.write('there', 'content');
});
after(() => cleanup.run());

function ask(agent: Agent, method: string, path: string, token: string, type?: string, body?: Buffer) {
  return new Promise<{ status: number; port: number }>((resolve, reject) => {
    const headers = {
      'e2b-sandbox-id': sandbox.sandboxId,
      'x-access-token': token,
      ...(type === undefined ? {} : { 'content-type': type, 'content-length': body!.length }),
    };
    const signal = AbortSignal.timeout(answerTimeoutMs);
    const asked = httpRequest(`${world.apiUrl}${path}`, { agent, method, headers, signal }, (answer) => {
      const port = answer.socket.localPort!;
      answer.resume().once('error', reject);
      answer.once('end', () => resolve({ status: answer.statusCode!, port }));
    });
    asked.once('error', reject).end(body);
  });
}

describe('an upload that is refused', () => {
  const part = '--b\r\ncontent-disposition: form-data; name="file"; filename="directory"\r\n\r\n';
  const rest = '\r\n--b--\r\n';
  const kinds: [what: string, type: string, body: Buffer][] = [
    ['octets', 'application/octet-stream', Buffer.alloc(bodyBytes)],
    [
      'a form',
      'multipart/form-data; boundary=b',
      Buffer.concat([Buffer.from(part), Buffer.alloc(bodyBytes), Buffer.from(rest)]),
    ],
  ];
  for (const [what, type, body] of kinds)
    for (const [fault, status] of [
      ['a directory', 400],
      ['a wrong token', 401],
    ] as const)
      it(`${what}, ${fault}`, async () => {
        const agent = new Agent({ keepAlive: true, maxSockets: 1 });
        try {
          const token = status === 401 ? 'wrong' : accessToken;
          for (let round = 0; round < 3; round++) {
            const refused = await ask(agent, 'POST', '/files?path=directory', token, type, body);
            assert.equal(refused.status, status);
            const next = await ask(agent, 'GET', '/files?path=there', accessToken);
            assert.equal(next.status, 200);
          }
        } finally {
          agent.destroy();
        }
      });
});

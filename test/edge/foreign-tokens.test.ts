// Tokens, keys and signatures of something else, through a real gateway to real agents: every route of a sandbox refuses
// them, whichever way the request comes, and says nothing of what is inside.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { AuthenticationError, Sandbox } from 'e2b';
import { tokenRoutes } from '../../services/guest-agent/sandbox-routes.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { newApiKey, newSecret } from '../../shared/ids.ts';
import { type SdkWorld, startAgentGateway } from '../sdk/sdk-world.ts';

const secret = 'nobody else may read this';
const cleanup = new Cleanup();
let world: SdkWorld;
let ours: Sandbox;
let theirs: Sandbox;
let tokenOf: Map<string, string>;

const connection = () => ({ apiKey: world.apiKey, apiUrl: world.apiUrl, sandboxUrl: world.apiUrl });

before(async () => {
  world = await startAgentGateway(cleanup);
  ours = await Sandbox.create('base', { ...connection(), envs: { SECRET: secret } });
  theirs = await Sandbox.create('base', connection());
  await ours.files.write('secret', secret);
  const headers = { 'x-api-key': world.apiKey };
  const tokens = [ours, theirs].map(async ({ sandboxId }) => {
    const answer = await fetch(`${world.apiUrl}/sandboxes/${sandboxId}`, { headers });
    return [sandboxId, ((await answer.json()) as { envdAccessToken: string }).envdAccessToken] as const;
  });
  tokenOf = new Map(await Promise.all(tokens));
});
after(() => cleanup.run());

const ask = (target: string, headers: Record<string, string>, body?: string) => {
  const [method, path] = target.split(' ') as [string, string];
  const routing = { 'e2b-sandbox-id': ours.sandboxId, 'content-type': 'application/json' };
  const init = { method, headers: { ...routing, ...headers } };
  return fetch(`${world.apiUrl}${path}`, body === undefined ? init : { ...init, body });
};

const signatureOf = (words: (string | number)[]): string =>
  `v1_${createHash('sha256').update(words.join(':')).digest('base64').replace(/=+$/, '')}`;

describe('a sandbox', () => {
  it('takes its own token alone, on every route', async () => {
    const wrong: [string, Record<string, string>][] = [
      ['none', {}],
      ["another sandbox's", { 'x-access-token': tokenOf.get(theirs.sandboxId)! }],
      ['a new one', { 'x-access-token': newSecret() }],
      ['an empty one', { 'x-access-token': '' }],
      ['the API key', { 'x-access-token': world.apiKey, 'x-api-key': world.apiKey }],
      ['its token as a bearer', { authorization: `Bearer ${tokenOf.get(ours.sandboxId)}` }],
      [
        'its own twice',
        { 'x-access-token': `${tokenOf.get(ours.sandboxId)}, ${tokenOf.get(ours.sandboxId)}` },
      ],
    ];
    const targets = [...tokenRoutes, 'GET /files?path=secret', 'POST /files?path=new', 'GET /anything'];
    for (const target of targets)
      for (const [what, headers] of wrong) {
        const answer = await ask(target, headers, target.startsWith('POST') ? '{}' : undefined);
        const text = await answer.text();
        assert.equal(answer.status, 401, `${target} with ${what}: ${answer.status} ${text}`);
        assert.doesNotMatch(text, new RegExp(secret));
      }
    assert.equal(await ours.files.exists('new'), false);
    assert.equal(await ours.files.read('secret'), secret);
  });

  it('takes a signature for what it signs, by its own token, until its time', async () => {
    const token = tokenOf.get(ours.sandboxId)!;
    const later = Math.floor(Date.now() / 1_000) + 60;
    const read = async (signature: string, expiration?: number | string, path = 'secret') => {
      const time = expiration === undefined ? '' : `&signature_expiration=${expiration}`;
      const query = `path=${path}&username=&signature=${encodeURIComponent(signature)}${time}`;
      const answer = await ask(`GET /files?${query}`, {});
      return [answer.status, await answer.text()] as const;
    };
    const good = signatureOf(['secret', 'read', '', token, later]);
    assert.deepEqual(await read(good, later), [200, secret]);
    const faults: [string, Promise<readonly [number, string]>][] = [
      ['a later time', read(good, later + 1)],
      ['no time', read(good)],
      ['another file', read(good, later, 'other')],
      ['expired', read(signatureOf(['secret', 'read', '', token, later - 120]), later - 120)],
      ['no number', read(signatureOf(['secret', 'read', '', token, 'never']), 'never')],
      ['for writing', read(signatureOf(['secret', 'write', '', token, later]), later)],
      ['for another user', read(signatureOf(['secret', 'read', 'root', token, later]), later)],
      [
        "by another sandbox's token",
        read(signatureOf(['secret', 'read', '', tokenOf.get(theirs.sandboxId)!, later]), later),
      ],
      ['by no token', read(signatureOf(['secret', 'read', '', '', later]), later)],
      ['cut short', read(good.slice(0, -1), later)],
      ['empty', read('', later)],
    ];
    for (const [what, answered] of faults) {
      const [status, text] = await answered;
      assert.equal(status, 401, what);
      assert.doesNotMatch(text, new RegExp(secret), what);
    }
    const [, expired] = await faults[3]![1];
    assert.match(expired, /signature is already expired/);
  });

  it('is not ended by a client with another key', async () => {
    const stranger = { ...connection(), apiKey: newApiKey() };
    await assert.rejects(Sandbox.connect(ours.sandboxId, stranger), AuthenticationError);
    await assert.rejects(Sandbox.kill(ours.sandboxId, stranger), AuthenticationError);
    assert.equal(await ours.isRunning(), true);
  });
});

// Owns drawing random values from many clones of one warm process, and finding the ones that repeat.
// Invariant: every clone also tells one value from a generator that no reseed reaches. It is the same in all clones,
// which proves that they are copies of one process and that a repeat would be seen.
import assert from 'node:assert/strict';
import { request } from 'undici';
import type { VmWorld } from './vm-world.ts';

export const nodeFunction = `
import { randomBytes, randomUUID, randomInt } from 'node:crypto';
import { readFileSync } from 'node:fs';
let unreached = randomBytes(8).readBigUInt64LE() | 1n;
const own = () => { unreached ^= (unreached << 13n) & 0xffffffffffffffffn; unreached ^= unreached >> 7n; unreached ^= (unreached << 17n) & 0xffffffffffffffffn; return unreached; };
randomUUID(); crypto.randomUUID(); Math.random(); randomBytes(16);
export default { fetch: (request) => Response.json({
  uuid: randomUUID(), webUuid: crypto.randomUUID(), bytes: randomBytes(16).toString('hex'),
  values: Buffer.from(crypto.getRandomValues(new Uint8Array(16))).toString('hex'),
  math: [Math.random(), Math.random()].join(), int: String(randomInt(2 ** 47)),
  kernel: readFileSync('/proc/sys/kernel/random/uuid', 'utf8').trim(),
  hostname: readFileSync('/proc/sys/kernel/hostname', 'utf8').trim(), machineId: readFileSync('/etc/machine-id', 'utf8').trim(),
  nowMs: Date.now(), own: new URL(request.url).pathname === '/draw' ? String(own()) : '' }) };
`;
export const pythonFunction = `
import json, random, ssl, time, uuid, os, secrets
own = random.Random()
random.random(); ssl.RAND_bytes(8)
async def app(scope, receive, send):
    if scope['type'] != 'http': return
    body = json.dumps({'uuid': str(uuid.uuid4()), 'random': repr(random.random()), 'bits': str(random.getrandbits(64)),
        'ssl': ssl.RAND_bytes(16).hex(), 'os': os.urandom(16).hex(), 'secrets': secrets.token_hex(16),
        'nowMs': time.time() * 1000, 'own': repr(own.random()) if scope['path'] == '/draw' else ''}).encode()
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-type', b'application/json')]})
    await send({'type': 'http.response.body', 'body': body})
`;

export interface Draw {
  own: string;
  skewMs: number;
  [source: string]: string | number;
}

const inParallel = 2;

/** One clone for each draw. @throws when the clones are not copies of one warm process. */
export async function drawFromClones(world: VmWorld, snapshotId: string, count: number): Promise<Draw[]> {
  const draws: Draw[] = [];
  const draw = async () => {
    const vm = await world.factory.restore(snapshotId, AbortSignal.timeout(60_000));
    try {
      const sentMs = Date.now();
      const response = await request(`http://${vm.runner?.host}:${vm.runner?.port}/draw`, {
        reset: true,
      });
      const values = (await response.body.json()) as Draw & { nowMs: number };
      const receivedMs = Date.now();
      const skewMs = Math.max(sentMs - values.nowMs, values.nowMs - receivedMs, 0);
      draws.push({ ...values, skewMs });
    } finally {
      await vm.destroy();
    }
  };
  let started = 0;
  const worker = async () => {
    while (started++ < count) await draw();
  };
  await Promise.all(Array.from({ length: inParallel }, worker));
  assert.equal(draws.length, count);
  const controls = new Set(draws.map((each) => each.own));
  assert.equal(
    controls.size,
    1,
    'the control differs between clones: they are not copies of one warm process',
  );
  return draws;
}

/** How many values of each source repeat. */
export function repeatsIn(draws: Draw[]): Map<string, number> {
  const sources = Object.keys(draws[0] as Draw).filter((key) => !['own', 'skewMs', 'nowMs'].includes(key));
  return new Map(
    sources.map((source) => [source, draws.length - new Set(draws.map((draw) => draw[source])).size]),
  );
}

export const worstSkewMs = (draws: Draw[]): number => Math.max(...draws.map((draw) => draw.skewMs));

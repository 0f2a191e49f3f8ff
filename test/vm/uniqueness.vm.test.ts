// 200 clones of one function version draw random numbers: no value may appear twice, in the kernel, in OpenSSL, or in
// the languages' own generators. The template is old on purpose: a kernel in its first seconds reseeds so often that
// clones differ by luck. A generator that no handshake reaches is the control: it must repeat in every clone, which
// proves that the clones are copies of one warm process and that a repeat would be seen.
import assert from 'node:assert/strict';
import { mkdir, rename, rm } from 'node:fs/promises';
import { after, before, describe, it } from 'node:test';
import { request } from 'undici';
import { ControlClient } from '../../pool/guest/control-client.ts';
import { handshake } from '../../pool/guest/handshake.ts';
import { capturedFilesIn } from '../../pool/host/paths.ts';
import { recordFormat, writeRecord } from '../../pool/snapshot/record.ts';
import { newVmId } from '../../shared/ids.ts';
import { openVmWorld, type VmWorld } from './vm-world.ts';

const shape = { memoryMb: 256, vcpus: 1 };
/** From here on the kernel reseeds by itself only every 30 s or more: far longer than a deploy and a first request. */
const templateAgeMs = 60_000;
const clones = 200;
const inParallel = 2;

const nodeFunction = `
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
const pythonFunction = `
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

describe('uniqueness of clones', () => {
  let world: VmWorld;
  before(async () => {
    world = await openVmWorld();
    await ageTemplate(world);
  });
  after(() => world?.close());

  it('200 clones of a warm Node function repeat nothing', async (t) => {
    const snapshotId = await world.build({ name: 'draw', runtime: 'node' }, { 'index.mjs': nodeFunction });
    await assertDistinct(t.diagnostic.bind(t), await drawFromClones(world, snapshotId, clones));
  });

  it('40 clones of a warm Python function repeat nothing', async (t) => {
    const snapshotId = await world.build({ name: 'draw', runtime: 'python' }, { 'main.py': pythonFunction });
    await assertDistinct(t.diagnostic.bind(t), await drawFromClones(world, snapshotId, 40));
  });
});

interface Draw {
  own: string;
  skewMs: number;
  [source: string]: string | number;
}

async function assertDistinct(report: (text: string) => void, draws: Draw[]): Promise<void> {
  const controls = new Set(draws.map((draw) => draw.own));
  assert.equal(
    controls.size,
    1,
    'the control differs between clones: they are not copies of one warm process',
  );
  const sources = Object.keys(draws[0] as Draw).filter((key) => !['own', 'skewMs', 'nowMs'].includes(key));
  for (const source of sources) {
    const values = new Set(draws.map((draw) => draw[source]));
    assert.equal(
      values.size,
      draws.length,
      `${source}: ${draws.length - values.size} of ${draws.length} values repeat`,
    );
  }
  const worst = Math.max(...draws.map((draw) => draw.skewMs));
  report(
    `${draws.length} clones, ${sources.join(' ')}: 0 duplicates; worst clock skew ${worst.toFixed(0)} ms`,
  );
  assert.ok(worst < 100, `a clone’s clock is ${worst} ms off`);
}

async function drawFromClones(world: VmWorld, snapshotId: string, count: number): Promise<Draw[]> {
  const draws: Draw[] = [];
  const draw = async () => {
    const vm = await world.factory.restore(snapshotId, AbortSignal.timeout(60_000));
    try {
      const sentMs = Date.now();
      const response = await request(`http://${vm.runner?.host}:${vm.runner?.port}/draw`);
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
  return draws;
}

/** Puts an old template where the builder looks for this shape's: booted here, left running until it has aged. */
async function ageTemplate(world: VmWorld): Promise<void> {
  const snapshotId = await world.builder.ensureTemplate(shape);
  const dir = world.paths.snapshotDir(snapshotId);
  const old = `${dir}.partial`;
  const vmId = newVmId();
  const runDir = world.paths.vmDir(vmId);
  await mkdir(old, { recursive: true });
  await mkdir(runDir, { recursive: true });
  const files = capturedFilesIn(old);
  const machine = await world.hypervisor.boot({
    vmId,
    shape,
    image: world.image,
    runDir,
    pagesPath: files.pagesPath,
  });
  try {
    const control = new ControlClient(await machine.openControl());
    await handshake(control, vmId, '', 120_000);
    await agedTo(control, templateAgeMs);
    const nonce = '0'.repeat(32);
    await control.request({ op: 'seal', nonce }, 10_000);
    await machine.captureInPlace(files);
    const compatibility = await world.hypervisor.compatibility(world.image);
    const createdAt = new Date().toISOString();
    await writeRecord(old, {
      format: recordFormat,
      snapshotId,
      dir,
      nonce,
      ...shape,
      compatibility,
      createdAt,
    });
  } finally {
    await machine.destroy();
  }
  await rm(dir, { recursive: true });
  await rename(old, dir);
}

async function agedTo(control: ControlClient, ageMs: number): Promise<void> {
  for (;;) {
    const { uptimeMs } = await control.request<{ uptimeMs: number }>({ op: 'health' }, 10_000);
    if (uptimeMs >= ageMs) return;
    await new Promise((resolve) => setTimeout(resolve, ageMs - uptimeMs));
  }
}

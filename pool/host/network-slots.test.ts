// Network slots of a VMM with sockets of its own, in real namespaces: what a process inside reaches, how that changes
// while it runs, and that nothing is left. A namespace with public and private addresses stands for the world.
import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Cleanup } from '../../shared/cleanup.ts';
import { closedEgress, openEgress } from '../../shared/egress.ts';
import { silentLog } from '../../shared/log.ts';
import { NamespaceSlots, type NetworkSlot } from './network-slots.ts';
import { openSmallInternet, places } from './small-internet-for-tests.ts';

const skip =
  process.getuid?.() !== 0
    ? 'network namespaces take root'
    : spawnSync('nft', ['--version']).status !== 0
      ? 'nft is missing: apt-get install nftables'
      : false;

const cleanup = new Cleanup();
let recordsDir: string;
let slots: NamespaceSlots;
let slot: NetworkSlot;
before(async () => {
  if (skip) return;
  const internet = await openSmallInternet();
  cleanup.defer('internet', () => internet.close());
  recordsDir = await mkdtemp(join(tmpdir(), 'thaw-slots-'));
  cleanup.defer('records', () => rm(recordsDir, { recursive: true, force: true }));
  // What a namespace leaves behind for minutes when its last socket says goodbye to nobody.
  spawnSync('ip', 'link add tv-0 type veth peer name tv-stale'.split(' '));
  slots = new NamespaceSlots({
    recordsDir,
    log: silentLog,
    kind: 'user',
    resolver: places.resolver,
    ready: 1,
  });
  cleanup.defer('slots', () => slots.close());
  slot = await slots.take();
});
after(() => cleanup.run());

const askTimeoutMs = 700;
const program = `
const [host, port] = process.argv.slice(1);
const socket = require('node:net').connect({ host, port: Number(port), timeout: ${askTimeoutMs} }, () => {
  console.log('reached');
  process.exit(0);
});
socket.on('timeout', () => process.exit(0)).on('error', () => process.exit(0));
`;

/** True when a process in the slot's namespace is connected. */
async function reaches(host: string, port: number | string = 80): Promise<boolean> {
  const [nsenter, ...words] = slot.enter;
  const child = spawn(nsenter!, [...words, process.execPath, '-e', program, host, String(port)]);
  let said = '';
  child.stdout.on('data', (text) => {
    said += text;
  });
  await once(child, 'close');
  return said.includes('reached');
}

const isUp = (address: string, port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect({ host: address, port, timeout: askTimeoutMs });
    const settle = (up: boolean) => {
      socket.destroy();
      resolve(up);
    };
    socket
      .on('connect', () => settle(true))
      .on('error', () => settle(false))
      .on('timeout', () => settle(false));
  });

describe('a slot of a VMM with sockets of its own', { skip }, () => {
  it('starts closed, opens by rule, and closes again', async () => {
    const { internet, elsewhere } = places;
    const seen = async () => Promise.all([reaches(internet), reaches(elsewhere)]);
    assert.deepEqual(await seen(), [false, false]);
    await slot.setEgress(openEgress);
    assert.deepEqual(await seen(), [true, true]);
    await slot.setEgress({ ...openEgress, denyOut: ['45.67.90.0/24', '::/0'] });
    assert.deepEqual(await seen(), [true, false]);
    await slot.setEgress({ ...closedEgress, allowOut: [elsewhere] });
    assert.deepEqual(await seen(), [false, true]);
    await slot.setEgress({ ...openEgress, allowOut: ['0.0.0.0/0'], denyOut: ['0.0.0.0/0'] });
    assert.deepEqual(await seen(), [true, true]);
    await slot.setEgress(closedEgress);
    assert.deepEqual(await seen(), [false, false]);
  });

  it('asks its one resolver, whatever server it addresses, unless all is closed', async () => {
    const [nsenter, ...words] = slot.enter;
    const lookUp = (server: string) => {
      const script = `const { Resolver } = require('node:dns'); const r = new Resolver({ timeout: 700, tries: 1 });
        r.setServers([${JSON.stringify(server)}]); r.resolve4('internet.test', (e, a) => console.log(e ? e.code : a[0]))`;
      return execFileSync(nsenter!, [...words, process.execPath, '-e', script], { encoding: 'utf8' }).trim();
    };
    await slot.setEgress(closedEgress);
    assert.notEqual(lookUp('10.1.2.3'), places.internet);
    await slot.setEgress(openEgress);
    for (const server of ['10.1.2.3', '127.0.0.53', '9.9.9.9'])
      assert.equal(lookUp(server), places.internet, server);
  });

  it('never opens what is private, its loopback, or the host', async () => {
    const host = createServer((socket) => socket.end());
    await new Promise<void>((resolve) => host.listen(0, '0.0.0.0', resolve));
    const { port } = host.address() as { port: number };
    const everything = ['0.0.0.0/0', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16'];
    await slot.setEgress({ ...openEgress, allowOut: everything });
    const hostAddress = slot.address.replace(/\d+$/, (last) => String(Number(last) - 1));
    const closed = [
      [places.private, 80],
      [places.metadata, 80],
      [hostAddress, port],
      ['203.0.113.1', port],
      ['127.0.0.1', port],
    ] as const;
    const reached = await Promise.all(closed.map(([address, at]) => reaches(address, at)));
    assert.deepEqual(
      closed.filter((_, index) => reached[index]),
      [],
    );
    await new Promise((resolve) => host.close(resolve));
  });

  it('is reached from the host alone, at its address', async () => {
    const [nsenter, ...words] = slot.enter;
    const listener = `require('node:net').createServer((s) => s.end()).listen(7000, ${JSON.stringify(slot.address)}, () => console.log('up'))`;
    const child = spawn(nsenter!, [...words, process.execPath, '-e', listener]);
    await once(child.stdout, 'data');
    assert.equal(await isUp(slot.address, 7000), true);
    const fromOutside = spawnSync(
      'ip',
      [
        'netns',
        'exec',
        `net-${process.pid % 100_000}`,
        process.execPath,
        '-e',
        program,
        slot.address,
        '7000',
      ],
      { encoding: 'utf8' },
    );
    assert.equal(fromOutside.stdout, '');
    child.kill('SIGKILL');
    await once(child, 'close');
  });

  it('goes with all others when they are closed, those that rest included', async () => {
    const another = await slots.take();
    slots.giveBack(slot);
    slots.giveBack(another);
    await slots.close();
    assert.deepEqual(await readdir(recordsDir), []);
    const left = ['netns', '-brief link'].map((what) =>
      execFileSync('ip', what.split(' '), { encoding: 'utf8' }),
    );
    for (const { index } of [slot, another])
      assert.doesNotMatch(left.join('\n'), new RegExp(`^(thaw|tv)-${index}\\b`, 'm'));
  });
});

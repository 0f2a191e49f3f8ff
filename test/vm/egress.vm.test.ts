// What sandboxes in real VMs reach outside: a small internet that this host reaches in full, and of which a guest gets
// what its rules say and never what is private. Root and nftables make the filter; without them sandboxes are closed.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { Sandbox } from 'e2b';
import { openSmallInternet, places } from '../../pool/host/small-internet-for-tests.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { newDataDir, removeDir, startThaw, type ThawProcess } from './thaw-process.ts';

const skip =
  process.getuid?.() !== 0
    ? 'network namespaces take root'
    : spawnSync('nft', ['--version']).status !== 0
      ? 'nft is missing: apt-get install nftables'
      : false;

const cleanup = new Cleanup();
let thaw: ThawProcess;
let hostPort: number;
let networksBefore: string[];

/** Namespaces and links of slots. */
const networks = (): string[] =>
  ['netns', '-brief link'].flatMap((what) =>
    execFileSync('ip', what.split(' '), { encoding: 'utf8' })
      .split('\n')
      .map((line) => line.split(/[ @]/)[0]!)
      .filter((name) => /^(thaw|tv)-/.test(name)),
  );

before(async () => {
  if (skip) return;
  networksBefore = networks();
  const internet = await openSmallInternet();
  cleanup.defer('internet', () => internet.close());
  const host = createServer((_request, response) => response.end('the host itself'));
  await new Promise<void>((resolve) => host.listen(0, '0.0.0.0', resolve));
  cleanup.defer('host server', () => new Promise((resolve) => host.close(resolve)));
  hostPort = (host.address() as AddressInfo).port;
  const dataDir = await newDataDir();
  cleanup.defer('data', () => removeDir(dataDir));
  thaw = await startThaw(dataDir, [], { THAW_RESOLVER: places.resolver, THAW_HYPERVISOR: 'qemu' });
  cleanup.defer('thaw', () => thaw?.end());
});
after(() => cleanup.run());

const connection = () => ({ apiKey: thaw.apiKey, apiUrl: thaw.url, sandboxUrl: thaw.url });

/** What answers at these addresses when the guest asks, '' for nothing. All at once: what is dropped takes its time. */
async function asks(sandbox: Sandbox, urls: readonly string[]): Promise<string[]> {
  const each = urls.map((url, at) => `curl -g -s -m 4 '${url}' > /tmp/answer-${at} &`).join('\n');
  const read = urls.map((_, at) => `cat /tmp/answer-${at}; echo`).join('\n');
  const { stdout } = await sandbox.commands.run(`${each}\nwait\n${read}`, { timeoutMs: 60_000 });
  return stdout.split('\n').slice(0, urls.length);
}

const at = (place: keyof typeof places) => `http://${places[place]}/`;

describe('a sandbox in a VM', { skip }, () => {
  it('reaches the internet by address and by name, and says so', async () => {
    for (const place of ['metadata', 'private'] as const)
      assert.equal(await (await fetch(at(place))).text(), places[place], 'the host does reach it');
    const sandbox = await Sandbox.create('base', connection());
    assert.equal((await sandbox.getInfo()).allowInternetAccess, true);
    assert.deepEqual(
      await asks(sandbox, [at('internet'), 'http://internet.test/', 'http://elsewhere.test/']),
      [places.internet, places.internet, places.elsewhere],
    );
    await sandbox.kill();
  });

  it('never reaches what is private, the host, or another one, whatever its rules say', async () => {
    const other = await Sandbox.create('base', connection());
    const sandbox = await Sandbox.create('base', {
      ...connection(),
      network: { allowOut: ['0.0.0.0/0', '10.0.0.0/8', '169.254.169.254', '100.64.0.0/10', '127.0.0.1'] },
    });
    const links = Array.from({ length: 16 }, (_, index) => `100.127.0.${index}`);
    const closed = [
      at('private'),
      at('metadata'),
      'http://private.test/',
      'http://metadata.test/',
      `http://[::ffff:${places.private}]/`,
      ...['10.0.2.2', '203.0.113.1', '127.0.0.1', ...links].map(
        (address) => `http://${address}:${hostPort}/`,
      ),
      ...links.map((address) => `http://${address}:49983/health`),
    ];
    const answers = await asks(sandbox, [at('internet'), ...closed]);
    assert.deepEqual(answers, [places.internet, ...closed.map(() => '')]);
    await Promise.all([sandbox.kill(), other.kill()]);
  });

  it('is held to its rules, which change while it runs and outlive a pause', async () => {
    const sandbox = await Sandbox.create('base', {
      ...connection(),
      network: { allowOut: [places.internet], denyOut: ['0.0.0.0/0'] },
    });
    const both = () => asks(sandbox, [at('internet'), at('elsewhere')]);
    assert.deepEqual(await both(), [places.internet, '']);
    await sandbox.pause();
    await Sandbox.connect(sandbox.sandboxId, connection());
    assert.deepEqual(await both(), [places.internet, '']);
    await sandbox.updateNetwork({ denyOut: [`${places.internet}/32`] });
    assert.deepEqual(await both(), ['', places.elsewhere]);
    await sandbox.updateNetwork({ allowInternetAccess: false });
    assert.deepEqual(await both(), ['', '']);
    assert.deepEqual(await asks(sandbox, ['http://internet.test/']), ['']);
    await sandbox.updateNetwork({});
    assert.deepEqual(await both(), [places.internet, places.elsewhere]);
    await sandbox.kill();
  });

  it('loses an open connection to what is closed', async () => {
    const sandbox = await Sandbox.create('base', connection());
    const script = `exec 3<>/dev/tcp/${places.internet}/80; echo open; read; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; timeout 4 cat <&3; echo end`;
    let said = '';
    const running = await sandbox.commands.run(script, {
      background: true,
      stdin: true,
      onStdout: (text) => {
        said += text;
      },
    });
    while (!said.includes('open')) await new Promise((resolve) => setTimeout(resolve, 20));
    await sandbox.updateNetwork({ allowInternetAccess: false });
    await sandbox.commands.sendStdin(running.pid, '\n');
    await running.wait();
    assert.equal(said, 'open\nend\n');
    await sandbox.kill();
  });

  it('leaves neither namespace nor link when all has ended', async () => {
    assert.equal(await thaw.end(), 0);
    assert.deepEqual(
      networks().filter((name) => !networksBefore.includes(name)),
      [],
    );
  });
});

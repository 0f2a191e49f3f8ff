// Owns a small internet for tests: a network namespace with public, private and metadata addresses that this host can
// reach, an HTTP server on all of them and a resolver. Invariant: `close` leaves no namespace, link, route or process.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { Cleanup } from '../../shared/cleanup.ts';

export const places = {
  internet: '45.67.89.1',
  elsewhere: '45.67.90.1',
  resolver: '45.67.89.53',
  metadata: '169.254.169.254',
  private: '10.99.99.1',
} as const;

/** Names that the resolver knows: all of them, as `PLACE.test`. */
const program = `
const places = ${JSON.stringify(places)};
require('node:http').createServer((request, response) => response.end(request.socket.localAddress)).listen(80, '0.0.0.0', () => {
  const dns = require('node:dgram').createSocket('udp4');
  dns.on('message', (query, from) => {
    const label = query.subarray(13, 13 + query[12]).toString();
    const end = query.indexOf(0, 12) + 5;
    const isA = query.readUInt16BE(end - 4) === 1 && places[label];
    const head = Buffer.from([query[0], query[1], 0x81, 0x80, 0, 1, 0, isA ? 1 : 0, 0, 0, 0, 0]);
    const answer = isA ? Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, ...places[label].split('.').map(Number)]) : Buffer.alloc(0);
    dns.send(Buffer.concat([head, query.subarray(12, end), answer]), from.port, from.address);
  });
  dns.bind(53, places.resolver, () => console.log('ready'));
});
`;

const ip = (...args: string[]) => execFileSync('ip', args, { stdio: ['ignore', 'pipe', 'pipe'] });

export async function openSmallInternet(): Promise<{ close(): Promise<unknown> }> {
  const cleanup = new Cleanup();
  const name = `net-${process.pid % 100_000}`;
  try {
    ip('netns', 'add', name);
    cleanup.defer('namespace', () => ip('netns', 'del', name));
    ip('link', 'add', name, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', name);
    cleanup.defer('link', () => ip('link', 'del', name));
    ip('addr', 'add', '203.0.113.1/30', 'dev', name);
    ip('link', 'set', name, 'up');
    const inside = (...args: string[]) => ip('-netns', name, ...args);
    inside('link', 'set', 'lo', 'up');
    inside('addr', 'add', '203.0.113.2/30', 'dev', 'eth0');
    inside('link', 'set', 'eth0', 'up');
    inside('route', 'add', 'default', 'via', '203.0.113.1');
    for (const address of Object.values(places)) {
      inside('addr', 'add', `${address}/32`, 'dev', 'lo');
      ip('route', 'add', `${address}/32`, 'via', '203.0.113.2');
      cleanup.defer(address, () => ip('route', 'del', `${address}/32`));
    }
    const args = [`--net=/run/netns/${name}`, process.execPath, '-e', program];
    const server = spawn('nsenter', args, { stdio: ['ignore', 'pipe', 'inherit'] });
    cleanup.defer('server', async () => {
      server.kill('SIGKILL');
      if (server.exitCode === null && server.signalCode === null) await once(server, 'close');
    });
    await once(server.stdout, 'data');
    return { close: () => cleanup.run() };
  } catch (error) {
    await cleanup.run();
    throw error;
  }
}

// Owns a whole gateway for one test file: real Redis, simulated node, real sockets.
// Invariant: `close` leaves no process, directory or socket.
import { mkdtemp, rm } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { FastifyInstance } from 'fastify';
import { type Header, pack } from 'tar-stream';
import { type FunctionManifest, parseFunctionManifest } from '../../shared/function-manifest.ts';
import { newApiKey } from '../../shared/ids.ts';
import { type Log, silentLog } from '../../shared/log.ts';
import { buildGateway } from './app.ts';
import type { GatewayConfig } from './gateway-config.ts';
import { SimulatedNodeClient } from './simulated-node-client.ts';
import { type RedisForTests, startRedis } from './state/redis-for-tests.ts';
import { connectState } from './state/redis-state.ts';
import type { StateStore } from './state/state-store.ts';

export interface GatewayForTests {
  app: FastifyInstance;
  node: SimulatedNodeClient;
  state: StateStore;
  redis: RedisForTests;
  bundleDir: string;
  url: string;
  port: number;
  apiKey: string;
  /** fetch with the API key, on a path of this gateway. */
  call(path: string, init?: RequestInit): Promise<Response>;
  /** Deploys an echo function under this name and waits for it. */
  deployEcho(name: string, manifest?: Partial<FunctionManifest>): Promise<void>;
  /** Makes a sandbox and saves it. @returns the snapshot's id. */
  saveSandbox(): Promise<string>;
  /** Another gateway over the same state and node, as after a restart. */
  restart(): Promise<void>;
  close(): Promise<void>;
}

export async function startGateway(
  config: Partial<GatewayConfig> = {},
  log: Log = silentLog,
  given?: SimulatedNodeClient,
): Promise<GatewayForTests> {
  const redis = await startRedis();
  const bundleDir = await mkdtemp(join(tmpdir(), 'thaw-gateway-'));
  const node = given ?? (await new SimulatedNodeClient().start());
  const apiKey = newApiKey();
  const open = async () => {
    const state = await connectState({ socketPath: redis.socketPath }, log);
    await state.keys.add(apiKey);
    const app = buildGateway({ node, state, log, config: { bundleDir, ...config }, version: '0.0.0-test' });
    await app.listen({ host: '127.0.0.1', port: 0 });
    const { port } = app.server.address() as AddressInfo;
    return { state, app, port, url: `http://127.0.0.1:${port}` };
  };
  const gateway: GatewayForTests = {
    ...(await open()),
    node,
    redis,
    bundleDir,
    apiKey,
    call: (path, init = {}) =>
      fetch(`${gateway.url}${path}`, { ...init, headers: { 'x-api-key': apiKey, ...init.headers } }),
    deployEcho: (name, manifest = {}) => deployEcho(gateway, name, manifest),
    saveSandbox: () => saveSandbox(gateway),
    restart: async () => {
      await gateway.app.close();
      await gateway.state.close();
      node.served.clear();
      Object.assign(gateway, await open());
    },
    close: async () => {
      await gateway.app.close();
      await gateway.state.close();
      await node.stop();
      await redis.stop();
      await rm(bundleDir, { recursive: true, force: true });
    },
  };
  await gateway.app.gateway.resume();
  return gateway;
}

async function deployEcho(
  gateway: GatewayForTests,
  name: string,
  manifest: Partial<FunctionManifest>,
): Promise<void> {
  const { functions } = gateway.state;
  const resolved = parseFunctionManifest({ name, runtime: 'node', ...manifest });
  const wanted = { name, manifest: resolved, bundleSha256: 'b'.repeat(64), bundleSizeBytes: 1 };
  const record = await functions.beginVersion(wanted, 'test', 10_000);
  const ready = {
    ...record,
    state: 'ready' as const,
    snapshotId: `snap-${'3'.repeat(24)}`,
    finishedAt: record.createdAt,
  };
  await functions.finishVersion(ready, 'test');
  await gateway.node.serve(functions.resolve(name)!);
}

async function saveSandbox(gateway: GatewayForTests): Promise<string> {
  const post = async (path: string, body: object) => {
    const headers = { 'content-type': 'application/json' };
    const response = await gateway.call(path, { method: 'POST', headers, body: JSON.stringify(body) });
    return (await response.json()) as Record<string, string>;
  };
  const { sandboxID } = await post('/sandboxes', { templateID: 'base' });
  return (await post(`/sandboxes/${sandboxID}/snapshots`, {})).snapshotID!;
}

/** A bundle as a client would upload it. */
export async function tarball(files: Record<string, string | Buffer>): Promise<Buffer> {
  const archive = pack();
  for (const [name, content] of Object.entries(files))
    archive.entry({ name } satisfies Partial<Header>, content);
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive as unknown as AsyncIterable<Buffer>) chunks.push(chunk);
  return Buffer.concat(chunks);
}

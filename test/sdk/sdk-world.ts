// Owns the server that tests of the SDKs talk to: the one THAW_TEST_URL and THAW_TEST_API_KEY name, else a gateway of
// its own whose sandboxes are agent processes. Invariant: `close` leaves no process, directory or socket of its own.
import { mkdtemp, rm } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { FastifyInstance } from 'fastify';
import { buildGateway } from '../../services/gateway/app.ts';
import type { GatewayConfig } from '../../services/gateway/gateway-config.ts';
import { startRedis } from '../../services/gateway/state/redis-for-tests.ts';
import { connectState } from '../../services/gateway/state/redis-state.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { newApiKey } from '../../shared/ids.ts';
import { silentLog } from '../../shared/log.ts';
import { AgentNode } from './agent-node.ts';

export interface SdkWorld {
  apiUrl: string;
  apiKey: string;
  /** False: sandboxes are processes of this host, as its own user. */
  hasVms: boolean;
  close(): Promise<unknown>;
}

export async function openSdkWorld(): Promise<SdkWorld> {
  const { THAW_TEST_URL: apiUrl, THAW_TEST_API_KEY: apiKey } = process.env;
  if (apiUrl !== undefined && apiKey !== undefined)
    return { apiUrl, apiKey, hasVms: process.env.THAW_TEST_HYPERVISOR !== 'process', close: async () => {} };
  const cleanup = new Cleanup();
  try {
    return await startAgentGateway(cleanup);
  } catch (error) {
    await cleanup.run();
    throw error;
  }
}

/** @param prepare is given the gateway before it listens. What was started is `cleanup`'s to end. */
export async function startAgentGateway(
  cleanup: Cleanup,
  settings: Partial<GatewayConfig> = {},
  prepare: (app: FastifyInstance) => unknown = () => {},
): Promise<SdkWorld> {
  const redis = await startRedis();
  cleanup.defer('redis', () => redis.stop());
  const bundleDir = await mkdtemp(join(tmpdir(), 'thaw-sdk-'));
  cleanup.defer('bundles', () => rm(bundleDir, { recursive: true, force: true }));
  const node = await new AgentNode().start();
  cleanup.defer('node', () => node.stop());
  const state = await connectState({ socketPath: redis.socketPath }, silentLog);
  cleanup.defer('state', () => state.close());
  const apiKey = newApiKey();
  await state.keys.add(apiKey);
  const config = { bundleDir, drainTimeoutMs: 500, ...settings };
  const app = buildGateway({ node, state, log: silentLog, config, version: '0.0.0-test' });
  cleanup.defer('gateway', () => app.close());
  await prepare(app);
  await app.listen({ host: '127.0.0.1', port: 0 });
  await app.gateway.resume();
  const { port } = app.server.address() as AddressInfo;
  return { apiUrl: `http://127.0.0.1:${port}`, apiKey, hasVms: false, close: () => cleanup.run() };
}

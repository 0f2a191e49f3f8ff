// Owns `thaw deploy`: packs a directory, uploads it and waits until the version serves or has failed.
// Invariant: it succeeds only when the gateway says that the version is ready.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { receiveBundle } from '../../gateway/bundle.ts';
import { gatewayDefaults } from '../../gateway/gateway-config.ts';
import type { ApiClient } from '../api-client.ts';
import { ApiError } from '../failure.ts';
import { type Bundle, packDirectory } from '../pack-directory.ts';
import { createProgress, type Progress, secondsText, withStep } from '../progress.ts';
import { type AddCommand, withClientOptions } from '../session.ts';

export interface DeployedVersion {
  name: string;
  version: number;
  state: 'building' | 'ready' | 'failed' | 'retired';
  snapshotId: string | null;
  error: { code: string; detail: string; output: string } | null;
}

/** One request is held open this long; then the version is asked for again. */
const waitSeconds = 240;
/** Beyond the longest build the gateway allows. */
const giveUpAfterMs = 20 * 60_000;
const pollMs = 1_000;

export const addDeploy: AddCommand = (program, session) => {
  withClientOptions(program.command('deploy <dir>'))
    .description('deploy a directory as a function and wait until it serves')
    .option('--name <NAME>', "the function's name, where thaw.json does not give it")
    .action(async (dir: string, options: { name?: string }, command) =>
      session.withClient(command, async (client, output) => {
        const startedAtMs = performance.now();
        const version = await deployDirectory(client, dir, createProgress(session.stderr), options.name);
        const elapsedMs = Math.round(performance.now() - startedAtMs);
        const url = `${client.url}/fn/${version.name}/`;
        output.value({ ...version, url, elapsedMs });
        output.line(`${version.name}@${version.version} is ready after ${secondsText(elapsedMs)}\n${url}`);
      }),
    );
};

/** @throws ApiError with the end of the program's output when the build or the start failed. */
export async function deployDirectory(
  client: ApiClient,
  dir: string,
  progress: Progress,
  nameFlag?: string,
): Promise<DeployedVersion> {
  const bundle = await packDirectory(dir, nameFlag);
  const size =
    bundle.sizeBytes < 10_000 ? `${bundle.sizeBytes} B` : `${(bundle.sizeBytes / 1e6).toFixed(2)} MB`;
  const title = `deploying ${bundle.name}: ${bundle.files} files, ${size}`;
  return withStep(progress, title, async (step) => {
    step.update('uploading and building');
    const path = `/v1/functions/${bundle.name}/versions`;
    let version = await client.json<DeployedVersion>(path, {
      method: 'POST',
      headers: { 'content-type': 'application/x-tar', prefer: `wait=${waitSeconds}` },
      body: bundle.stream(),
      headersTimeoutMs: (waitSeconds + 60) * 1_000,
    });
    const deadlineMs = performance.now() + giveUpAfterMs;
    while (version.state === 'building') {
      if (performance.now() > deadlineMs)
        throw new ApiError(
          504,
          'deadline-exceeded',
          `${bundle.name}@${version.version} is still being built`,
          undefined,
        );
      await delay(pollMs);
      version = await client.json<DeployedVersion>(`${path}/${version.version}`);
    }
    if (version.error) throw buildFailure(version.error);
    return version;
  });
}

function buildFailure({ code, detail, output }: NonNullable<DeployedVersion['error']>): ApiError {
  const text =
    output.trimEnd() === '' || detail.includes(output.trimEnd()) ? detail : `${detail}\n${output.trimEnd()}`;
  return new ApiError(422, code, text, undefined);
}

/** Deploys a directory unless its very content is what serves already. */
export async function deployUnlessServed(client: ApiClient, dir: string, progress: Progress): Promise<void> {
  const bundle = await packDirectory(dir);
  const served = await client.send(`/v1/functions/${bundle.name}`);
  const known = (await served.body.json()) as { current?: { bundle: { sha256: string } | null } | null };
  if (served.statusCode === 200 && known.current?.bundle?.sha256 === (await contentHashOf(bundle))) return;
  await deployDirectory(client, dir, progress);
}

/** The hash that the gateway would give this bundle: of the archive as the gateway writes it anew. */
async function contentHashOf({ name, stream }: Bundle): Promise<string> {
  const scratchDir = await mkdtemp(join(tmpdir(), 'thaw-bundle-'));
  try {
    const limits = { ...gatewayDefaults, bundleDir: scratchDir };
    return (await receiveBundle(stream(), name, limits)).sha256;
  } finally {
    await rm(scratchDir, { recursive: true, force: true });
  }
}

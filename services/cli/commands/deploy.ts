// Owns `thaw deploy`: packs a directory, uploads it and waits until the version serves or has failed; the same for a
// version that is made from a snapshot.
// Invariant: it succeeds only when the gateway says that the version is ready.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Command } from 'commander';
import type { EndpointBody } from '../../../shared/function-manifest.ts';
import { receiveBundle } from '../../gateway/bundle.ts';
import { gatewayDefaults } from '../../gateway/gateway-config.ts';
import type { ApiClient } from '../api-client.ts';
import { ApiError, UsageError } from '../failure.ts';
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

interface DeployFlags {
  name?: string;
  fromSnapshot?: string;
  port?: string;
  command?: string;
}

/** Without a snapshot `--port` means Thaw's own, as for all commands that talk to it. */
function takePort(command: Command, flags: DeployFlags): DeployFlags {
  if (flags.fromSnapshot !== undefined) command.setOptionValue('port', undefined);
  return flags;
}

function portOf(text: string): number {
  if (!/^[1-9][0-9]{0,4}$/.test(text) || Number(text) > 65_535)
    throw new UsageError(`--port: expected a number from 1 to 65535, got ${JSON.stringify(text)}`);
  return Number(text);
}

export const addDeploy: AddCommand = (program, session) => {
  withClientOptions(program.command('deploy [dir]'), ['dataDir', 'host'])
    .description("deploy a directory, or a sandbox's snapshot, as a function and wait until it serves")
    .option('--name <NAME>', "the function's name, where thaw.json does not give it")
    .option(
      '--from-snapshot <ID>',
      'instead of a directory: a snapshot, by id or name, in which a server runs',
    )
    .option(
      '--port <PORT>',
      'with --from-snapshot: where the server answers, inside the sandbox; else where Thaw answers',
    )
    .option('--command <SHELL>', 'with --from-snapshot: starts the server, if none runs')
    .action(async (dir: string | undefined, options: DeployFlags, command: Command) => {
      const flags = takePort(command, { ...options });
      const work = workOf(dir, flags);
      await session.withClient(command, async (client, output) => {
        const startedAtMs = performance.now();
        const version = await work(client, createProgress(session.stderr));
        const elapsedMs = Math.round(performance.now() - startedAtMs);
        const url = `${client.url}/fn/${version.name}/`;
        output.value({ ...version, url, elapsedMs });
        output.line(`${version.name}@${version.version} is ready after ${secondsText(elapsedMs)}\n${url}`);
      });
    });
};

type Work = (client: ApiClient, progress: Progress) => Promise<DeployedVersion>;

/** @throws UsageError before anything is asked of Thaw. */
function workOf(dir: string | undefined, { name, fromSnapshot, port, command }: DeployFlags): Work {
  if (fromSnapshot === undefined) {
    if (dir === undefined || command !== undefined)
      throw new UsageError('give a directory, or --from-snapshot with --name, --port and maybe --command');
    return (client, progress) => deployDirectory(client, dir, progress, name);
  }
  if (dir !== undefined) throw new UsageError('give a directory or --from-snapshot, not both');
  if (name === undefined || port === undefined)
    throw new UsageError('--from-snapshot needs --name and --port');
  const argv = command === undefined ? {} : { command: ['/bin/bash', '-c', command] };
  const body = { name, fromSnapshot, port: portOf(port), ...argv };
  return (client, progress) => deploySnapshot(client, body, progress);
}

/** @throws ApiError naming the port when nothing answers there. */
async function deploySnapshot(
  client: ApiClient,
  body: EndpointBody,
  progress: Progress,
): Promise<DeployedVersion> {
  return withStep(progress, `deploying ${body.name} from ${body.fromSnapshot}`, async (step) => {
    step.update('starting a clone');
    const version = await client.json<DeployedVersion>('/v1/functions', {
      method: 'POST',
      headers: { 'content-type': 'application/json', prefer: `wait=${waitSeconds}` },
      body: JSON.stringify(body),
      headersTimeoutMs: (waitSeconds + 60) * 1_000,
    });
    return untilReady(client, version);
  });
}

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
    const version = await client.json<DeployedVersion>(`/v1/functions/${bundle.name}/versions`, {
      method: 'POST',
      headers: { 'content-type': 'application/x-tar', prefer: `wait=${waitSeconds}` },
      body: bundle.stream(),
      headersTimeoutMs: (waitSeconds + 60) * 1_000,
    });
    return untilReady(client, version);
  });
}

async function untilReady(client: ApiClient, accepted: DeployedVersion): Promise<DeployedVersion> {
  const path = `/v1/functions/${accepted.name}/versions/${accepted.version}`;
  const deadlineMs = performance.now() + giveUpAfterMs;
  let version = accepted;
  while (version.state === 'building') {
    if (performance.now() > deadlineMs) {
      const label = `${version.name}@${version.version}`;
      throw new ApiError(504, 'deadline-exceeded', `${label} is still being built`, undefined);
    }
    await delay(pollMs);
    version = await client.json<DeployedVersion>(path);
  }
  if (version.error) throw buildFailure(version.error);
  return version;
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

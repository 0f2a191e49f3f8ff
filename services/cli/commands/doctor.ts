// Owns `thaw doctor`: what this machine has, what Thaw would use, what is slower or less safe than it could be.
// Refuses to own repairs. Invariant: it changes nothing.
import { execFile } from 'node:child_process';
import { access, constants, stat, statfs } from 'node:fs/promises';
import { availableParallelism, freemem, release, totalmem } from 'node:os';
import { promisify } from 'node:util';
import type { Command } from 'commander';
import { pathsOf } from '../../../pool/host/paths.ts';
import { findCloudHypervisor, rememberedChoice } from '../../../pool/hypervisor/choose.ts';
import { versionOf } from '../../../pool/hypervisor/cloud-hypervisor/cloud-hypervisor.ts';
import { hardeningOf } from '../../../pool/hypervisor/hardening.ts';
import { canMountFuse } from '../../../pool/pagefs/fuse-mount.ts';
import { usedRatio } from '../../../pool/snapshot/eviction.ts';
import { manifestsPrefix } from '../../../pool/snapshot/store-keys.ts';
import { openStore } from '../../../pool/store/open-store.ts';
import { Cleanup } from '../../../shared/cleanup.ts';
import type { Config } from '../../../shared/config.ts';
import { nameOf } from '../choose-machine.ts';
import { runningHolder } from '../data-dir-lock.ts';
import { ExitCode, exitCodes } from '../failure.ts';
import { missingPrograms, neededPrograms } from '../host-packages.ts';
import { addConfigOptions } from '../load-config.ts';
import { table } from '../output.ts';
import { type AddCommand, type Session, withJson } from '../session.ts';

const run = promisify(execFile);
const storeTimeoutMs = 5_000;

export interface Finding {
  what: string;
  /** `fail`: Thaw does not start; `warn`: it starts, slower or less safe than it could. */
  state: 'ok' | 'warn' | 'fail';
  detail: string;
}

export const addDoctor: AddCommand = (program, session) => {
  addConfigOptions(withJson(program.command('doctor')))
    .description(
      'say what this machine has and what Thaw would use; fails when Thaw could not start, with --strict on warnings, too',
    )
    .action((_options, command: Command) => doctor(session, command));
};

async function doctor(session: Session, command: Command): Promise<void> {
  const output = session.output(command);
  const { config } = await session.config(command);
  const { strict } = config;
  const findings = [
    await programs(config),
    await hypervisor(config),
    await kvm(),
    ...(await hardening(config)),
    await disk(config),
    ...(await store(config)),
    memory(config),
    await running(config),
  ];
  output.value({ findings });
  const marks = { ok: '✓', warn: '!', fail: '✗' };
  output.line(
    table(
      ['', 'WHAT', 'FOUND'],
      findings.map(({ state, what, detail }) => [marks[state], what, detail]),
    ),
  );
  const bad = findings.some(({ state }) => state === 'fail' || (strict && state === 'warn'));
  if (bad) throw new ExitCode(exitCodes.failed);
}

async function programs(config: Config): Promise<Finding> {
  const what = 'host programs';
  const needed = await neededPrograms(config);
  const missing = await missingPrograms(needed);
  if (missing.length === 0) return { what, state: 'ok', detail: `all ${needed.length} are installed` };
  const packages = [...new Set(missing.map(({ debianPackage }) => debianPackage))].join(' ');
  return { what, state: 'fail', detail: `missing: apt-get install --no-install-recommends ${packages}` };
}

async function hypervisor(config: Config): Promise<Finding> {
  const what = 'hypervisor';
  const { hypervisor: asked, dataDir } = config;
  if (asked === 'process')
    return { what, state: 'warn', detail: 'process: guests are not isolated; tests only' };
  const versions = await Promise.all([cloudHypervisorHere(config), qemuHere(config)]);
  const [cloud, qemu] = versions;
  if (cloud?.fault !== undefined && (asked === 'cloud-hypervisor' || config.cloudHypervisor !== undefined))
    return { what, state: 'fail', detail: cloud.fault };
  const choice = await rememberedChoice(pathsOf(dataDir).hypervisorChoice);
  if (choice !== undefined && (asked === 'auto' || asked === choice.hypervisor)) {
    const { version } = (choice.hypervisor === 'qemu' ? qemu : cloud) ?? {};
    const state = version === undefined ? 'fail' : choice.accelerator === 'kvm' ? 'ok' : 'warn';
    const detail = `${nameOf(choice)} ${version ?? 'is missing'}: ${choice.reason} (tried ${choice.decidedAt})`;
    return { what, state, detail };
  }
  const named = [
    cloud?.version && `Cloud Hypervisor ${cloud.version}`,
    qemu?.version && `QEMU ${qemu.version}`,
  ];
  const found = named.filter((each) => each);
  if (found.length === 0)
    return { what, state: 'fail', detail: `${asked === 'auto' ? 'QEMU' : asked} is missing` };
  return { what, state: 'ok', detail: `${found.join(', ')}; whether KVM works is tried at the first start` };
}

/** @returns undefined where configuration leaves it out or there is none. */
async function cloudHypervisorHere(
  config: Config,
): Promise<{ version?: string; fault?: string } | undefined> {
  if (config.hypervisor === 'qemu') return undefined;
  const binary = await findCloudHypervisor(config.cloudHypervisor);
  if (binary === undefined)
    return config.hypervisor === 'auto' ? undefined : { fault: 'THAW_CLOUD_HYPERVISOR names no binary' };
  return versionOf([binary]).then(
    (version) => ({ version }),
    (error: Error) => ({ fault: error.message }),
  );
}

async function qemuHere({ hypervisor: asked }: Config): Promise<{ version: string } | undefined> {
  if (asked === 'cloud-hypervisor') return undefined;
  return run('qemu-system-x86_64', ['--version']).then(
    ({ stdout }) => ({ version: /version ([^\s(]+)/.exec(stdout)?.[1] ?? 'of an unknown version' }),
    () => undefined,
  );
}

async function kvm(): Promise<Finding> {
  const usable = await access('/dev/kvm', constants.R_OK | constants.W_OK).then(
    () => true,
    () => false,
  );
  const detail = usable
    ? 'is there and may be opened (which proves nothing: see hypervisor)'
    : 'is absent or closed to this user';
  return { what: '/dev/kvm', state: usable ? 'ok' : 'warn', detail };
}

/** Of the hypervisor that was chosen last, else of the one that would be tried first. */
async function hardening(config: Config): Promise<Finding[]> {
  const binary = await findCloudHypervisor(config.cloudHypervisor);
  const choice = await rememberedChoice(pathsOf(config.dataDir).hypervisorChoice);
  const first = binary === undefined ? 'qemu' : 'cloud-hypervisor';
  const hypervisor = config.hypervisor === 'auto' ? (choice?.hypervisor ?? first) : config.hypervisor;
  const measures = await hardeningOf({ hypervisor, binary, dataDir: config.dataDir });
  return measures.map(({ name, inForce, detail }) => ({
    what: `hardening: ${name}`,
    state: inForce ? 'ok' : config.strict ? 'fail' : 'warn',
    detail: `${inForce ? 'in force' : 'not in force'}: ${detail}`,
  }));
}

export async function disk({ dataDir, minFreeDiskMb, store: url, ...marks }: Config): Promise<Finding> {
  const what = 'disk';
  const dir = await stat(dataDir).then(
    () => dataDir,
    () => '/',
  );
  const facts = await statfs(dir);
  const freeMb = Math.floor((facts.bavail * facts.bsize) / 1024 ** 2);
  const usedPercent = Math.round((await usedRatio(dir)) * 100);
  const found = `${freeMb} MB free for ${dataDir}, ${usedPercent} % in use`;
  if (freeMb < minFreeDiskMb)
    return { what, state: 'fail', detail: `${found}; at least ${minFreeDiskMb} MB are needed` };
  if (usedPercent <= marks.evictAbovePercent) return { what, state: 'ok', detail: found };
  const outcome =
    url === undefined
      ? 'nothing is evicted without a store (THAW_STORE)'
      : `what is in the store is evicted, down to ${marks.evictToPercent} %`;
  return { what, state: 'warn', detail: `${found}, above ${marks.evictAbovePercent} %: ${outcome}` };
}

/** Whether it answers, and whether memory can be served from it while a VM runs. */
async function store({ store: url, s3Endpoint }: Config): Promise<Finding[]> {
  const what = 'store';
  if (url === undefined)
    return [{ what, state: 'ok', detail: 'none: snapshots stay in the data directory (THAW_STORE)' }];
  const pagefs = await canMountFuse();
  const memory: Finding = pagefs.ok
    ? { what: 'page file system', state: 'ok', detail: 'can be mounted: memory comes while VMs run' }
    : { what: 'page file system', state: 'warn', detail: `memory comes before VMs run: ${pagefs.reason}` };
  await using cleanup = new Cleanup();
  try {
    const opened = await openStore(url, s3Endpoint === undefined ? {} : { s3Endpoint });
    cleanup.defer('store', () => opened.close());
    await opened.list(manifestsPrefix, { timeoutMs: storeTimeoutMs });
    return [{ what, state: 'ok', detail: `${url} answers` }, memory];
  } catch (error) {
    return [{ what, state: 'fail', detail: `${url}: ${(error as Error).message}` }, memory];
  }
}

function memory({ maxMemoryMb }: Config): Finding {
  const mb = (bytes: number) => Math.floor(bytes / 1024 ** 2);
  const limit = maxMemoryMb ?? Math.floor(mb(totalmem()) / 2);
  const detail = `${mb(totalmem())} MB, ${mb(freemem())} free, ${limit} for guests; ${availableParallelism()} CPUs, Linux ${release()}`;
  return { what: 'memory', state: limit < mb(totalmem()) ? 'ok' : 'warn', detail };
}

async function running({ dataDir }: Config): Promise<Finding> {
  const holder = await runningHolder(pathsOf(dataDir).lock);
  const what = 'running';
  if (holder?.adminUrl === undefined)
    return { what, state: 'ok', detail: 'no Thaw runs on this data directory' };
  const answer = await fetch(`${holder.adminUrl}/readyz`, { signal: AbortSignal.timeout(5_000) }).catch(
    () => undefined,
  );
  if (answer === undefined)
    return { what, state: 'warn', detail: `process ${holder.pid} does not answer on ${holder.adminUrl}` };
  const { ready, notes } = (await answer.json()) as { ready: boolean; notes: string[] };
  const remarks = notes.length > 0 ? `: ${notes.join('; ')}` : '';
  return {
    what,
    state: ready ? 'ok' : 'warn',
    detail: `process ${holder.pid} on ${holder.url} is ${ready ? 'ready' : 'not ready'}${remarks}`,
  };
}

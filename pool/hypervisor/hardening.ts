// Owns the list of what stands between a guest and its host: each measure, and whether it is in force here.
// Refuses to own putting one in force (the drivers do). Invariant: looking changes nothing; what cannot be seen to be in
// force is not.
import { access, constants, readFile } from 'node:fs/promises';
import { runTool } from '../host/host-tool.ts';
import { whyNoRoot } from './cloud-hypervisor/jail.ts';
import { whyNoLandlock } from './cloud-hypervisor/landlock.ts';
import type { Hypervisor } from './hypervisor.ts';

export interface Measure {
  name: string;
  inForce: boolean;
  /** What it is good for, or why it is not in force. */
  detail: string;
}

export interface HardeningQuestion {
  hypervisor: Hypervisor['name'];
  /** Cloud Hypervisor's. */
  binary?: string | undefined;
  dataDir: string;
}

const controllers = ['cpu', 'memory', 'pids', 'io'] as const;

/** @returns every measure that Thaw knows, for VMs of this hypervisor on this host. */
export async function hardeningOf(question: HardeningQuestion): Promise<Measure[]> {
  if (question.hypervisor === 'process')
    return [{ name: 'isolation', inForce: false, detail: 'guests are processes of this host' }];
  const isCloud = question.hypervisor === 'cloud-hypervisor';
  const seccomp = await whyNoSeccomp();
  return [
    measure('uid', notRoot(), 'each VMM has one of its own'),
    measure('capabilities', notRoot(), 'VMMs have none and cannot get any'),
    measure('seccomp', seccomp, 'VMMs may call what they need and nothing else'),
    measure('root directory', await noOwnRoot(question), 'each VMM sees its own files and no others'),
    measure('landlock', isCloud ? whyNoLandlock() : 'QEMU has none', 'the same again, by the kernel'),
    ...(await limits(isCloud)),
    measure('open files', isCloud ? undefined : 'QEMU VMMs have the limit of Thaw', 'limited, no core dumps'),
    measure('network', await noNetwork(isCloud), network(isCloud)),
    measure('console', undefined, 'what guests say is read by nobody and fills no disk'),
  ];
}

/** For people: which of them are not in force, and why. */
export const lacking = (measures: readonly Measure[]): string =>
  measures
    .filter(({ inForce }) => !inForce)
    .map(({ name, detail }) => `${name} (${detail})`)
    .join(', ');

const measure = (name: string, fault: string | undefined, detail: string): Measure => ({
  name,
  inForce: fault === undefined,
  detail: fault ?? detail,
});

const notRoot = (): string | undefined => (process.getuid?.() === 0 ? undefined : 'Thaw is not root');

async function whyNoSeccomp(): Promise<string | undefined> {
  const actions = await readFile('/proc/sys/kernel/seccomp/actions_avail', 'utf8').catch(() => '');
  return actions.includes('kill_process') ? undefined : 'this kernel has no seccomp filters';
}

async function noOwnRoot({ hypervisor, binary, dataDir }: HardeningQuestion): Promise<string | undefined> {
  if (hypervisor === 'qemu') return 'QEMU VMMs see the file system of the host, as a user without rights';
  if (binary === undefined) return 'there is no binary';
  return whyNoRoot([binary], notRoot() === undefined, dataDir).catch((error: Error) => error.message);
}

/** One measure for each controller: a host may lack some. */
async function limits(isCloud: boolean): Promise<Measure[]> {
  const available = await readFile('/sys/fs/cgroup/cgroup.controllers', 'utf8').catch(() => undefined);
  const fault = (controller: string): string | undefined => {
    if (!isCloud) return 'QEMU VMMs are in the control group of Thaw';
    if (notRoot() !== undefined) return notRoot();
    if (available === undefined) return 'control groups of version 2 are not at /sys/fs/cgroup';
    return available.trim().split(' ').includes(controller) ? undefined : 'this host does not offer it';
  };
  return controllers.map((controller) =>
    measure(`limit of ${controller}`, fault(controller), 'by the control group of the VM'),
  );
}

const network = (isCloud: boolean): string =>
  isCloud
    ? 'a namespace for each VM; closed to the host, private addresses and other guests'
    : 'guests reach nothing outside';

async function noNetwork(isCloud: boolean): Promise<string | undefined> {
  if (!isCloud) return undefined;
  if (notRoot() !== undefined) return notRoot();
  const tun = await access('/dev/net/tun', constants.R_OK | constants.W_OK).then(
    () => undefined,
    () => '/dev/net/tun is absent',
  );
  return tun ?? (await runs('nft', ['list', 'tables'])) ?? (await runs('ip', ['netns', 'list']));
}

async function runs(program: string, args: readonly string[]): Promise<string | undefined> {
  return runTool(program, args).then(
    () => undefined,
    (error: Error) => error.message,
  );
}

// Owns what Thaw needs of the host beyond npm: programs, the Debian package of each, and why.
// Refuses to own versions: what the distribution has is what is used.
// Invariant: nothing is installed that is there already, and nothing without its reason having been said.
import { spawn } from 'node:child_process';
import { access, constants } from 'node:fs/promises';
import { buildPrograms, type HostProgram } from '../../images/packages.ts';
import { findCloudHypervisor } from '../../pool/hypervisor/choose.ts';
import type { Config } from '../../shared/config.ts';
import { ThawError } from '../../shared/errors.ts';

const hostPrograms: readonly HostProgram[] = [
  { program: 'qemu-system-x86_64', debianPackage: 'qemu-system-x86', why: 'runs the microVMs' },
  { program: 'qemu-img', debianPackage: 'qemu-utils', why: 'formats their disks' },
  { program: 'redis-server', debianPackage: 'redis-server', why: 'keeps what is deployed' },
  ...buildPrograms,
];

/** For the networks of VMs. Those of QEMU have their own inside the VMM; a way out of it takes these, and root. */
const networkPrograms: readonly HostProgram[] = [
  { program: 'ip', debianPackage: 'iproute2', why: 'makes the networks of VMs' },
  { program: 'nft', debianPackage: 'nftables', why: 'closes them' },
  { program: 'sysctl', debianPackage: 'procps', why: 'lets them forward what is allowed' },
];

/** What this configuration needs on this machine. */
export async function neededPrograms(
  config: Pick<Config, 'hypervisor' | 'cloudHypervisor' | 'egress'>,
): Promise<readonly HostProgram[]> {
  const mayUseIt = config.hypervisor === 'auto' || config.hypervisor === 'cloud-hypervisor';
  const usesIt = mayUseIt && (await findCloudHypervisor(config.cloudHypervisor)) !== undefined;
  const opensQemu = config.hypervisor !== 'process' && config.egress === 'auto' && process.getuid?.() === 0;
  return usesIt || opensQemu ? [...hostPrograms, ...networkPrograms] : hostPrograms;
}

/** Programs may be where only root looks for them. */
const searchPath = () => [...new Set([...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/sbin'])];

export async function missingPrograms(wanted: readonly HostProgram[]): Promise<HostProgram[]> {
  const missing: HostProgram[] = [];
  for (const needed of wanted) if (!(await isInstalled(needed.program))) missing.push(needed);
  return missing;
}

export async function isInstalled(program: string): Promise<boolean> {
  for (const dir of searchPath()) {
    const found = await access(`${dir}/${program}`, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (found) return true;
  }
  return false;
}

/** @throws ThawError `missing-package` with the command to run, where this user may not install. */
export async function installPackages(
  missing: readonly HostProgram[],
  onLine: (line: string) => void,
): Promise<void> {
  const packages = [...new Set(missing.map(({ debianPackage }) => debianPackage))];
  const command = `apt-get install --no-install-recommends ${packages.join(' ')}`;
  const asRoot = await rootPrefix();
  if (asRoot === undefined || !(await isInstalled('apt-get')))
    throw new ThawError('missing-package', `missing on this machine; run as root: ${command}`);
  const run = (args: string[]) => runToEnd([...asRoot, 'apt-get', ...args], onLine);
  await run(['update', '-q']);
  const failure = await run(['install', '-q', '-y', '--no-install-recommends', ...packages]).catch(
    (error: Error) => error,
  );
  if (failure) throw new ThawError('missing-package', `${failure.message}; run as root: ${command}`);
}

/** Debian starts some services when they are installed; Thaw wants their programs only. */
const withoutServices = { DEBIAN_FRONTEND: 'noninteractive', RUNLEVEL: '1' };

async function rootPrefix(): Promise<string[] | undefined> {
  if (process.getuid?.() === 0) return [];
  if (!(await isInstalled('sudo'))) return undefined;
  // -n: a password prompt in the middle of a start would look like a hang.
  const allowed = await runToEnd(['sudo', '-n', 'true'], () => {}).then(
    () => true,
    () => false,
  );
  return allowed ? ['sudo', '-n', '--preserve-env=DEBIAN_FRONTEND,RUNLEVEL'] : undefined;
}

async function runToEnd(argv: string[], onLine: (line: string) => void): Promise<void> {
  const child = spawn(argv[0]!, argv.slice(1), {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...withoutServices },
  });
  let tail = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => {
      tail = (tail + text).slice(-2_000);
      onLine(text.trimEnd().split('\n').at(-1) ?? '');
    });
  const exitCode = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  if (exitCode !== 0)
    throw new Error(`${argv.join(' ')} failed: ${tail.trim().split('\n').slice(-3).join(' ')}`);
}

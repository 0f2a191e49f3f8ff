// Owns the work of one build: a sandbox of its source, its steps, its start command, and the capture of all that.
// Refuses to own records, names and deadlines (templates.ts) and what a plan may hold (template-plan.ts).
// Invariant: the sandbox is nobody's and ends with the build, however that ends; a snapshot exists only of a build
// whose every step went well.
import { randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { posix } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { CommandEnd } from '../../shared/command-stream.ts';
import { ThawError } from '../../shared/errors.ts';
import { newSandboxId, newSecret } from '../../shared/ids.ts';
import type { BuildLog } from './build-log.ts';
import { GuestCommands } from './guest-commands.ts';
import type { NodeClient, SandboxSize } from './node-client.ts';
import { type BuildPlan, type BuildStep, expanded } from './template-plan.ts';

export interface BuildRequest {
  node: NodeClient;
  plan: BuildPlan;
  sourceSnapshotId: string;
  /** The name that its snapshot gets. */
  snapshotName: string;
  minFreeDiskMb: number | null;
  filesPath(hash: string): string;
  log: BuildLog;
  readyTimeoutMs: number;
  /** When the node ends the sandbox, should this gateway have died. */
  endAtMs: number;
  signal: AbortSignal;
}

export interface BuiltTemplate {
  snapshotId: string;
  facts: SandboxSize;
}

/** A step that did not go well. `step` as E2B counts: `base`, from 1, `finalize`. */
export class StepError extends Error {
  readonly step: string;

  constructor(step: string, cause: Error) {
    super(cause.message, { cause });
    this.step = step;
  }
}

/** What commands of the next step start with. */
interface Setting {
  user: string;
  workdir: string;
  env: Record<string, string>;
}

const defaults = { user: 'user', workdir: '/home/user' };
/** What Debian's login shells set; a step may build on it. */
const searchPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
const readyPollMs = 250;

export async function buildTemplate(request: BuildRequest): Promise<BuiltTemplate> {
  const { node, plan, log, signal, endAtMs } = request;
  const sandboxId = newSandboxId();
  const accessToken = newSecret();
  log.beginStep('base', `FROM ${plan.from}`);
  const wanted = { sandboxId, snapshotId: request.sourceSnapshotId, accessToken, envVars: {}, endAtMs };
  const { cpuCount, memoryMb, diskSizeMb } = await inStep('base', () => node.createSandbox(wanted));
  try {
    const guest = new GuestCommands(node, sandboxId, accessToken, signal);
    const setting = await inStep('base', () => inheritedSetting(guest));
    for (const [index, step] of plan.steps.entries()) {
      const name = String(index + 1);
      log.beginStep(name, `[${name}/${plan.steps.length}] ${titleOf(step)}`);
      await inStep(name, () => perform(request, guest, setting, step, name));
      signal.throwIfAborted();
    }
    const facts = { cpuCount, memoryMb, diskSizeMb };
    return await inStep('finalize', () => finalise(request, guest, setting, sandboxId, accessToken, facts));
  } finally {
    await node.killSandbox(sandboxId).catch(() => false);
  }
}

async function inStep<T>(step: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw new StepError(step, error as Error);
  }
}

/** From another template a build goes on where that one's ended. */
async function inheritedSetting(guest: GuestCommands): Promise<Setting> {
  const env = await guest.variables();
  const lines: Buffer[] = [];
  const onOutput = (stream: string, chunk: Buffer) => void (stream === 'stdout' && lines.push(chunk));
  // As the default user, in its default directory.
  const end = await guest.run({ script: 'id -un; pwd', user: '', onOutput });
  const [user, workdir] = Buffer.concat(lines).toString().split('\n');
  if (end.exitCode !== 0 || !user || !workdir) return { ...defaults, env };
  return { user, workdir, env };
}

function titleOf(step: BuildStep): string {
  switch (step.kind) {
    case 'run':
      return `RUN ${step.script}`;
    case 'copy':
      return `COPY ${step.source} ${step.target}`;
    case 'env':
      return `ENV ${step.values.map(([name]) => name).join(' ')}`;
    case 'workdir':
      return `WORKDIR ${step.path}`;
    case 'user':
      return `USER ${step.user}`;
  }
}

/** What a step of variables can refer to: those set before, and what every program has. */
const known = ({ user, env }: Setting): Record<string, string> => ({
  PATH: searchPath,
  HOME: user === 'root' ? '/root' : `/home/${user}`,
  USER: user,
  ...env,
});

async function perform(
  request: BuildRequest,
  guest: GuestCommands,
  setting: Setting,
  step: BuildStep,
  name: string,
): Promise<void> {
  switch (step.kind) {
    case 'env': {
      // All of one step see what was before it, as in a Dockerfile.
      const before = known(setting);
      for (const [key, value] of step.values) setting.env[key] = expanded(value, before);
      const { PATH: path } = Object.fromEntries(step.values);
      if (path !== undefined) await mustRun(request, guest, name, keepPath(setting.env.PATH!), titleOf(step));
      return;
    }
    case 'user':
      await mustRun(request, guest, name, { script: 'true', user: step.user, cwd: '/' }, titleOf(step));
      setting.user = step.user;
      return;
    case 'workdir': {
      const path = posix.resolve(setting.workdir, expanded(step.path, known(setting)));
      const script = `[ -d ${quoted(path)} ] || install -d -o ${quoted(setting.user)} ${quoted(path)}`;
      await mustRun(request, guest, name, { script, user: 'root', cwd: '/' }, titleOf(step));
      setting.workdir = path;
      return;
    }
    case 'run': {
      const user = step.user?.split(':', 1)[0] ?? setting.user;
      const { workdir: cwd, env } = setting;
      await mustRun(request, guest, name, { script: step.script, user, cwd, env });
      return;
    }
    case 'copy':
      await copy(request, guest, setting, step, name);
  }
}

/** A login shell sets its own search path, whatever it was given, and every command runs in one. */
const keepPath = (path: string) => ({
  script: `printf 'export PATH=%q\\n' ${quoted(path)} > /etc/profile.d/template-path.sh`,
  user: 'root',
  cwd: '/',
});

/** @throws ThawError with the end of its output when it fails. */
async function mustRun(
  { log }: BuildRequest,
  guest: GuestCommands,
  step: string,
  command: { script: string; user: string; cwd: string; env?: Record<string, string> },
  title = command.script,
): Promise<void> {
  const output = log.output(step);
  const end = await guest.run({ ...command, onOutput: output.onOutput });
  output.end();
  if (end.exitCode !== 0) throw failureOf(title, end, log);
}

function failureOf(what: string, { status }: CommandEnd, log: BuildLog): ThawError {
  const said = log.tail === '' ? '' : `\n${log.tail}`;
  return new ThawError('build-failed', `${what.slice(0, 200)}: ${status}${said}`);
}

async function copy(
  request: BuildRequest,
  guest: GuestCommands,
  setting: Setting,
  step: BuildStep & { kind: 'copy' },
  name: string,
): Promise<void> {
  const archive = `/tmp/.thaw-copy-${randomUUID()}.tar`;
  await guest.upload(archive, createReadStream(request.filesPath(step.filesHash)));
  const env = {
    ARCHIVE: archive,
    SOURCE: posix.normalize(step.source),
    TARGET: expanded(step.target, known(setting)),
    OWNER: step.user ?? setting.user,
    MODE: step.mode ?? '',
  };
  const command = { script: copyScript, user: 'root', cwd: '/', env: { ...env, BASE: setting.workdir } };
  await mustRun(request, guest, name, command, titleOf(step));
}

/**
 * A directory's content goes into the target, whose own directories keep what they have; a file becomes the target, or
 * goes into it when that is a directory or ends with a slash; what a pattern matches goes into it. New directories on
 * the way are the owner's too.
 */
const copyScript = `
set -euo pipefail
shopt -s dotglob nullglob globstar
trap 'rm -rf "$ARCHIVE" "$ARCHIVE.d"' EXIT
mkdir -m 700 "$ARCHIVE.d"
tar --extract --warning=no-timestamp --no-same-owner --same-permissions --file "$ARCHIVE" --directory "$ARCHIVE.d"
rm -f "$ARCHIVE"
target=$TARGET
[[ $target == '~' || $target == '~/'* ]] && target=$(getent passwd "\${OWNER%%:*}" | cut -d: -f6)\${target:1}
[[ $target == /* ]] || target=$BASE/$target
owner=$OWNER
[[ $owner == *:* ]] || owner=$owner:
cd "$ARCHIVE.d"
IFS=
if [ -e "$SOURCE" ] || [ -L "$SOURCE" ]; then found=("$SOURCE"); else found=($SOURCE); fi
[ \${#found[@]} -gt 0 ] || { echo "nothing in the upload matches $SOURCE" >&2; exit 1; }
chown -hR "$owner" .
[ -z "$MODE" ] || chmod -R "$MODE" "\${found[@]}"
make() { [ -d "$1" ] || { make "$(dirname "$1")"; mkdir "$1"; chown "$owner" "$1"; }; }
if [ \${#found[@]} -eq 1 ] && [ -d "\${found[0]}" ] && [ ! -L "\${found[0]}" ]; then
  make "$target"
  tar --create --directory "\${found[0]}" . | tar --extract --warning=no-timestamp --no-overwrite-dir --same-permissions --same-owner --directory "$target"
elif [ \${#found[@]} -gt 1 ] || [[ $target == */ ]] || [ -d "$target" ]; then
  make "$target"
  cp -a --target-directory "$target" "\${found[@]}"
else
  make "$(dirname "$target")"
  cp -a --no-target-directory "\${found[0]}" "$target"
fi
`;

/** Settings into the agent, then the start command, then the check, then the capture of all that. */
async function finalise(
  request: BuildRequest,
  guest: GuestCommands,
  setting: Setting,
  sandboxId: string,
  accessToken: string,
  facts: SandboxSize,
): Promise<BuiltTemplate> {
  const { node, plan, log, signal, snapshotName, minFreeDiskMb } = request;
  const { user, workdir, env } = setting;
  log.beginStep('finalize', 'Starting what the template runs');
  const init = { accessToken, envVars: env, defaultUser: user, defaultWorkdir: workdir };
  await node.setUpSandbox(sandboxId, init);
  if (minFreeDiskMb) await requireDisk(request, guest, minFreeDiskMb);
  const leave = await startAndWait(request, guest);
  signal.throwIfAborted();
  leave();
  log.add('finalize', 'Taking the snapshot');
  const capture = { names: [snapshotName], keepRunning: false };
  const { snapshotId } = await node.captureSandbox(sandboxId, capture);
  log.add(
    'finalize',
    `Build finished: ${snapshotId}${plan.startCmd ? ', with its start command running' : ''}`,
  );
  return { snapshotId, facts };
}

async function requireDisk(request: BuildRequest, guest: GuestCommands, neededMb: number): Promise<void> {
  const script = `free=$(df --output=avail -m / | tail -n 1); [ "$free" -ge ${neededMb} ] || { echo "$free MB of the disk are free, ${neededMb} MB were asked for" >&2; exit 1; }`;
  await mustRun(request, guest, 'finalize', { script, user: 'root', cwd: '/' }, 'minFreeDiskMb');
}

/** @returns what stops watching the start command, which runs on. */
async function startAndWait(request: BuildRequest, guest: GuestCommands): Promise<() => void> {
  const { plan, log } = request;
  if (plan.startCmd === undefined) {
    await waitUntilReady(request, guest, new Promise<never>(() => {}));
    return () => {};
  }
  log.add('finalize', `START ${plan.startCmd}`);
  const output = log.output('finalize');
  const started = await guest.begin({ script: plan.startCmd, user: '', onOutput: output.onOutput });
  // What goes to the background by itself ends well: only a failure is one.
  const failed = started.ended.then((end) => {
    if (end.exitCode === 0) return new Promise<never>(() => {});
    output.end();
    throw failureOf(plan.startCmd!, end, log);
  });
  failed.catch(() => {});
  await waitUntilReady(request, guest, failed);
  return () => started.leave();
}

/** @param failed rejects when it will never be ready. */
async function waitUntilReady(
  { plan, log, signal, readyTimeoutMs }: BuildRequest,
  guest: GuestCommands,
  failed: Promise<never>,
): Promise<void> {
  log.add('finalize', `READY ${plan.readyCmd}`);
  const tooLate = delay(readyTimeoutMs, undefined, { signal, ref: false }).then(() => {
    const said = log.tail === '' ? '' : `\n${log.tail}`;
    throw new ThawError('start-failed', `not ready within ${readyTimeoutMs} ms: ${plan.readyCmd}${said}`);
  });
  tooLate.catch(() => {});
  const hopeless = Promise.race([failed, tooLate]);
  for (;;) {
    const { exitCode } = await Promise.race([guest.run({ script: plan.readyCmd, user: '' }), hopeless]);
    if (exitCode === 0) return;
    await Promise.race([delay(readyPollMs, undefined, { signal }), hopeless]);
  }
}

const quoted = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`;

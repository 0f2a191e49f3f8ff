// Owns the part of the conformance suite that captures running clones: what goes on in the clone, what comes out, and
// what a third VM is that starts from it. Called by conformance.ts, for hypervisors that capture memory.
import assert from 'node:assert/strict';
import { access, rm } from 'node:fs/promises';
import { it } from 'node:test';
import type { ControlClient } from '../guest/control-client.ts';
import { GuestShell } from '../guest/guest-shell.ts';
import { handshake } from '../guest/handshake.ts';
import type { CapturedFiles, CloneCaptureTarget, Machine, PageDelta } from './hypervisor.ts';

export interface CloneWorld {
  /** The snapshot that the first clone is of, and its nonce. */
  captured(): CapturedFiles;
  nonce: string;
  path(name: string): string;
  clone(from: CapturedFiles, delta?: PageDelta): Promise<{ machine: Machine; control: ControlClient }>;
  digestOf(path: string): Promise<string>;
}

interface Greeted {
  machine: Machine;
  control: ControlClient;
  shell: GuestShell;
}

/** A snapshot of a clone, as a restore needs it. */
interface Saved {
  files: CapturedFiles;
  delta: PageDelta;
  nonce: string;
}

/** Counts twenty times a second in a file that is memory only; starts no program, which is slow under emulation. */
const count = 'exec 9<> <(:); i=0; while :; do echo $((++i)) > /dev/shm/count; read -t 0.05 -u 9; done';

export function describeCloneCaptures(world: CloneWorld): void {
  const targetOf = (name: string): CloneCaptureTarget => ({
    deltaPath: world.path(`${name}-delta`),
    devicesPath: world.path(`${name}-devices`),
    diskPath: world.path(`${name}-disk`),
  });
  const greet = async (from: CapturedFiles, nonce: string, delta?: PageDelta): Promise<Greeted> => {
    const { machine, control } = await world.clone(from, delta);
    const { ports, secret } = await handshake(control, machine.vmId, nonce, 30_000);
    return { machine, control, shell: await GuestShell.open(await machine.addressOf(ports.agent), secret) };
  };
  const counted = async ({ shell }: Greeted) =>
    // The file is empty for an instant at each step.
    Number(await shell.run('until read -r n < /dev/shm/count; do :; done; echo $n'));
  const save = async ({ machine, control }: Greeted, name: string, stages: string[] = []): Promise<Saved> => {
    const nonce = Buffer.from(name.padEnd(16, '.')).toString('hex').slice(0, 32);
    const target = targetOf(name);
    await control.request({ op: 'hold', nonce }, 10_000);
    const delta = await machine.captureClone(target, {
      resume: true,
      onStage: (stage) => stages.push(stage),
    });
    await control.request({ op: 'proceed', nonce, wallClockMs: Date.now() }, 10_000);
    const { devicesPath, diskPath } = target;
    return { files: { pagesPath: world.captured().pagesPath, devicesPath, diskPath }, delta, nonce };
  };
  let source: Greeted;
  let saved: Saved;
  let countWhenSaved: number;

  it('saves a running clone, which goes on as if nothing had been', async () => {
    const pagesDigest = await world.digestOf(world.captured().pagesPath);
    source = await greet(world.captured(), world.nonce);
    await source.shell.start(count);
    await source.shell.run(
      'head -c 3000000 /dev/urandom > /root/noise; sync; sha256sum /root/noise > /root/sum',
    );
    const stages: string[] = [];
    countWhenSaved = await counted(source);
    saved = await save(source, 'first', stages);
    assert.deepEqual(stages, ['pause', 'state', 'scan', 'copy', 'disk', 'resume', 'write']);
    const after = await counted(source);
    await source.shell.run('sha256sum --quiet -c /root/sum; sleep 0.2');
    assert.ok((await counted(source)) > after, 'the clone stands still');
    assert.ok(after >= countWhenSaved);
    assert.equal(await world.digestOf(world.captured().pagesPath), pagesDigest);
  });

  it('starts a third VM where the clone stood, with its disk', async () => {
    const third = await greet(saved.files, saved.nonce, saved.delta);
    const atStart = await counted(third);
    assert.ok(
      atStart >= countWhenSaved && atStart < countWhenSaved + 200,
      `${atStart}, ${countWhenSaved} saved`,
    );
    // From the disk, not from memory.
    await third.shell.run('echo 3 > /proc/sys/vm/drop_caches; sha256sum --quiet -c /root/sum; sleep 0.2');
    assert.ok((await counted(third)) > atStart);
    await third.shell.run('echo third > /root/whose; sync');
    await source.shell.run('test ! -e /root/whose');
    await third.machine.destroy();
  });

  it('saves a clone again and again, each time as it then is', async () => {
    for (const round of ['second', 'third']) {
      await source.shell.run(`echo ${round} > /root/round; echo ${round} > /dev/shm/round`);
      const again = await save(source, round);
      const clone = await greet(again.files, again.nonce, again.delta);
      assert.equal(await clone.shell.run('cat /root/round /dev/shm/round'), `${round}\n${round}`);
      await clone.machine.destroy();
    }
  });

  it('saves a clone of a saved clone', async () => {
    const second = await greet(saved.files, saved.nonce, saved.delta);
    await second.shell.run('echo generation > /dev/shm/two; echo generation > /root/two; sync');
    const before = await counted(second);
    const deeper = await save(second, 'deeper');
    await second.machine.destroy();
    const third = await greet(deeper.files, deeper.nonce, deeper.delta);
    assert.ok((await counted(third)) >= before);
    const script =
      'cat /dev/shm/two; echo 3 > /proc/sys/vm/drop_caches; cat /root/two; sha256sum --quiet -c /root/sum';
    assert.equal(await third.shell.run(script), 'generation\ngeneration');
    await third.machine.destroy();
  });

  it('holds a nonce that tells a clone of the capture from one of its base', async () => {
    const { machine, control } = await world.clone(saved.files, saved.delta);
    const health = await control.request<{ state: string }>({ op: 'health' }, 30_000);
    assert.equal(health.state, 'held');
    await assert.rejects(handshake(control, machine.vmId, world.nonce, 30_000), { code: 'restore-failed' });
    await machine.destroy();
  });

  it('lets a clone go on when a capture fails, and leaves no file', async () => {
    const target = targetOf('absent-directory/blocked');
    await assert.rejects(source.machine.captureClone(target, { resume: true }), {
      code: 'hypervisor-failed',
    });
    for (const path of Object.values(target)) await assert.rejects(access(path), path);
    const refusal = { resume: true, beforePause: () => Promise.reject(new Error('not now')) };
    await assert.rejects(source.machine.captureClone(targetOf('refused'), refusal), /not now/);
    for (const path of Object.values(targetOf('refused'))) await assert.rejects(access(path), path);
    const before = await counted(source);
    await source.shell.run('sleep 0.2');
    assert.ok((await counted(source)) > before);
  });

  it('does not capture a clone twice at once', async () => {
    const captures = ['one', 'other'].map((name) =>
      source.machine.captureClone(targetOf(name), { resume: true }),
    );
    const outcomes = await Promise.allSettled(captures);
    assert.deepEqual(outcomes.map(({ status }) => status).sort(), ['fulfilled', 'rejected']);
    const refused = outcomes.find((outcome) => outcome.status === 'rejected');
    assert.equal(refused?.reason.code, 'conflict');
  });

  it('leaves a clone paused when asked to, until it is resumed', async () => {
    const stages: string[] = [];
    const target = targetOf('paused');
    await source.machine.captureClone(target, { resume: false, onStage: (stage) => stages.push(stage) });
    assert.ok(!stages.includes('resume'));
    await source.machine.resume();
    const before = await counted(source);
    await source.shell.run('sleep 0.2');
    assert.ok((await counted(source)) > before);
    await source.machine.destroy();
    await Promise.all(Object.values(target).map((path) => rm(path)));
  });

  it('tells that the VMM is gone, and leaves no file', async () => {
    const { machine } = await world.clone(world.captured());
    await machine.destroy();
    const target = targetOf('gone');
    await assert.rejects(machine.captureClone(target, { resume: true }), { code: 'hypervisor-failed' });
    for (const path of Object.values(target)) await assert.rejects(access(path), path);
  });
}

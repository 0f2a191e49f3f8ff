// Owns the conformance suite: what every hypervisor adapter must do, in the port's words. An adapter's test calls
// `describeConformance` with a real image. Checks that do not apply by Capabilities are skipped with that reason.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { access, copyFile, mkdir, mkdtemp, readFile, rm, stat, truncate } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { request } from 'undici';
import { newVmId } from '../../shared/ids.ts';
import { ControlClient } from '../guest/control-client.ts';
import { handshake } from '../guest/handshake.ts';
import { capturedFilesIn } from '../host/paths.ts';
import { describeCloneCaptures } from './conformance-clones.ts';
import type { GuestImage, Hypervisor, Machine, PageDelta } from './hypervisor.ts';

const shape = { memoryMb: 256, vcpus: 1 };
const nonce = 'c0ffee00c0ffee00c0ffee00c0ffee00';
/** Of a guest that is emulated in an emulated machine. */
const bootTimeoutMs = 300_000;

interface Running {
  machine: Machine;
  control: ControlClient;
  runDir: string;
}

export function describeConformance(
  makeHypervisor: () => Hypervisor,
  makeImage: () => Promise<GuestImage>,
  /** `stands-in`: nothing runs in it, so that it cannot be told to do something. */
  guest: 'runs' | 'stands-in' = 'runs',
): void {
  const hypervisor = makeHypervisor();
  const { capabilities } = hypervisor;
  const needs = (holds: boolean, what: string) =>
    holds ? {} : { skip: `${hypervisor.name} has no ${what}` };

  describe(`hypervisor conformance: ${hypervisor.name}`, () => {
    let dir: string;
    let image: GuestImage;
    const machines: Machine[] = [];
    const captured = () => capturedFilesIn(join(dir, 'snapshot'));

    before(async () => {
      dir = await mkdtemp(join(tmpdir(), 'thaw-hv-'));
      await mkdir(join(dir, 'snapshot'));
      image = await makeImage();
    });
    after(async () => {
      await Promise.all(machines.map((machine) => machine.destroy()));
      await rm(dir, { recursive: true, force: true });
    });

    const runDirOf = async (vmId: string) => {
      const runDir = join(dir, vmId);
      await mkdir(runDir);
      return runDir;
    };
    const clone = async (from = captured(), delta?: PageDelta): Promise<Running> => {
      const vmId = newVmId();
      const runDir = await runDirOf(vmId);
      const given = { vmId, shape, image, runDir, from, memory: 'private' as const };
      const machine = await hypervisor.restore(delta ? { ...given, delta } : given);
      machines.push(machine);
      return { machine, control: new ControlClient(await machine.openControl()), runDir };
    };
    const healthOf = async (machine: Machine, agentPort: number) => {
      const address = await machine.addressOf(agentPort);
      const url = `http://${address.host}:${address.port}/health`;
      return (await request(url, { reset: true })).statusCode;
    };

    it('boots, is greeted, and is captured in place', async () => {
      const vmId = newVmId();
      const runDir = await runDirOf(vmId);
      const files = captured();
      const machine = await hypervisor.boot({ vmId, shape, image, runDir, pagesPath: files.pagesPath });
      machines.push(machine);
      const control = new ControlClient(await machine.openControl());
      const identity = await handshake(control, vmId, '', bootTimeoutMs);
      assert.equal(await healthOf(machine, identity.ports.agent), 204);
      await control.request({ op: 'seal', nonce }, 10_000);
      const stages: string[] = [];
      await machine.captureInPlace(files, (stage) => stages.push(stage));
      assert.deepEqual(stages, ['pause', 'state', 'disk']);
      await machine.exited;
      for (const path of Object.values(files)) await access(path);
    });

    it('restores a clone that proves its snapshot and answers', async () => {
      const { machine, control } = await clone();
      const identity = await handshake(control, machine.vmId, nonce, 30_000);
      assert.equal(await healthOf(machine, identity.ports.agent), 204);
    });

    it('tells a clone of another snapshot by its nonce', async () => {
      const { machine, control } = await clone();
      await assert.rejects(handshake(control, machine.vmId, 'f'.repeat(32), 30_000), {
        code: 'restore-failed',
      });
    });

    it('serves nothing before the handshake of this generation', async () => {
      const { machine, control } = await clone();
      const health = await control.request<{ state: string }>({ op: 'health' }, 30_000);
      assert.equal(health.state, capabilities.capturesMemory ? 'sealed' : 'booted');
      await machine.destroy();
    });

    it('gives one address per guest port', async () => {
      const { machine, control } = await clone();
      const { ports } = await handshake(control, machine.vmId, nonce, 30_000);
      assert.deepEqual(await machine.addressOf(ports.agent), await machine.addressOf(ports.agent));
      assert.notDeepEqual(await machine.addressOf(ports.agent), await machine.addressOf(3000));
    });

    it(
      'runs clones side by side without touching the page file',
      needs(capabilities.copyOnWriteMemory, 'page file'),
      async () => {
        const { pagesPath } = captured();
        const before = await stat(pagesPath);
        const digest = await sha256(pagesPath);
        const pair = await Promise.all([clone(), clone()]);
        for (const { machine, control } of pair) {
          const { ports } = await handshake(control, machine.vmId, nonce, 30_000);
          assert.equal(await healthOf(machine, ports.agent), 204);
        }
        await Promise.all(pair.map(({ machine }) => machine.destroy()));
        assert.equal((await stat(pagesPath)).mtimeMs, before.mtimeMs);
        assert.equal(await sha256(pagesPath), digest);
      },
    );

    it(
      'maps the page file privately: no anonymous copy of guest memory',
      needs(capabilities.copyOnWriteMemory, 'page file'),
      async () => {
        const { machine, control } = await clone();
        await handshake(control, machine.vmId, nonce, 30_000);
        const maps = await readFile(`/proc/${machine.pid}/smaps`, 'utf8');
        // By the file's number: a driver may give its VMM the file by another name.
        const { ino } = await stat(captured().pagesPath);
        const mapping = maps
          .split(/\n(?=[0-9a-f]+-[0-9a-f]+ )/)
          .find((block) => block.split(/\s+/)[4] === String(ino));
        assert.match(mapping ?? '', /^[0-9a-f]+-[0-9a-f]+ rw-p/);
        const anonymousKb = Number(/^Anonymous:\s+(\d+) kB/m.exec(mapping ?? '')?.[1]);
        assert.ok(anonymousKb < (shape.memoryMb * 1024) / 4, `${anonymousKb} kB of guest memory were copied`);
      },
    );

    const captures = needs(capabilities.capturesMemory && guest === 'runs', 'memory of a running guest');
    describe('captures of running clones', captures, () => {
      describeCloneCaptures({
        captured,
        nonce,
        path: (name) => join(dir, name),
        clone,
        digestOf: sha256,
      });
    });

    it('reports the death of its process', async () => {
      const { machine } = await clone();
      process.kill(machine.pid, 'SIGKILL');
      const exit = await machine.exited;
      assert.equal(exit.signal, 'SIGKILL');
    });

    it('destroys twice without complaint and leaves no process', async () => {
      const { machine } = await clone();
      await machine.destroy();
      await machine.destroy();
      assert.throws(() => process.kill(machine.pid, 0), { code: 'ESRCH' });
    });

    it(
      'refuses a torn device state with a typed error',
      needs(capabilities.capturesMemory, 'device state'),
      async () => {
        const files = captured();
        const torn = join(dir, 'torn');
        await copyFile(files.devicesPath, torn);
        await truncate(torn, 1000);
        const vmId = newVmId();
        const runDir = await runDirOf(vmId);
        const from = { ...files, devicesPath: torn };
        await assert.rejects(hypervisor.restore({ vmId, shape, image, runDir, from, memory: 'private' }), {
          code: 'restore-failed',
        });
      },
    );
  });
}

async function sha256(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

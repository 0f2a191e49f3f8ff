// What is chosen where nothing can be tried, and what is refused; a trial that succeeds needs a KVM and is part of the
// main job's tests.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { silentLog } from '../../shared/log.ts';
import { pathsOf } from '../host/paths.ts';
import { chooseHypervisor, rememberedChoice } from './choose.ts';
import { imageIn } from './cloud-hypervisor/stand-in-world.ts';

const dir = await mkdtemp(join(tmpdir(), 'thaw-choose-'));
after(() => rm(dir, { recursive: true, force: true }));
const paths = pathsOf(join(dir, 'data'));
const image = await imageIn(dir);
const standIn = join(import.meta.dirname, 'cloud-hypervisor/api-stand-in.ts');
const choose = (options: object) =>
  chooseHypervisor({ image, paths, log: silentLog, kvmDevice: join(dir, 'no-kvm'), ...options });

describe('the choice of hypervisor', () => {
  it('refuses Cloud Hypervisor by name where it cannot run, and tries nothing else', async () => {
    await assert.rejects(choose({ asked: 'cloud-hypervisor' }), {
      code: 'hypervisor-failed',
      message: /there is no cloud-hypervisor binary/,
    });
    await assert.rejects(choose({ asked: 'cloud-hypervisor', cloudHypervisor: join(dir, 'absent') }), {
      code: 'hypervisor-failed',
      message: /cannot be run/,
    });
  });

  it('cannot be given the stand-in of the tests', async () => {
    const asked = { asked: 'cloud-hypervisor', cloudHypervisor: standIn };
    await assert.rejects(choose(asked), { code: 'hypervisor-failed', message: /cannot be run.*EACCES/ });
  });

  it('refuses a program that is not Cloud Hypervisor', async () => {
    await assert.rejects(choose({ asked: 'cloud-hypervisor', cloudHypervisor: '/bin/true' }), {
      message: /\/bin\/true is not Cloud Hypervisor/,
    });
  });

  it('falls back under auto, remembers that and says why', async () => {
    const { hypervisor, choice, close } = await choose({ cloudHypervisor: join(dir, 'absent') });
    await close();
    assert.equal(hypervisor.name, 'qemu');
    assert.equal(choice.accelerator, 'tcg');
    assert.match(
      choice.reason,
      /^software emulation: .*no-kvm is absent.*; not Cloud Hypervisor: .*cannot be run/,
    );
    assert.deepEqual(await rememberedChoice(paths.hypervisorChoice), choice);
    const other = await choose({ asked: 'qemu' });
    assert.doesNotMatch(other.choice.reason, /Cloud Hypervisor/);
  });
});

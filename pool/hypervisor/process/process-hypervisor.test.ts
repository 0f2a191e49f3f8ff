// The conformance suite on host processes, and a function built and cloned on them: its program is started anew for
// every clone, which sees the bundle's files as they were captured and ends with its machine.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { pack } from 'tar-stream';
import { request } from 'undici';
import { type FunctionManifest, parseFunctionManifest } from '../../../shared/function-manifest.ts';
import { silentLog } from '../../../shared/log.ts';
import { type Paths, pathsOf } from '../../host/paths.ts';
import { readProcessRecord, readStartTime } from '../../host/process-table.ts';
import { LocalSnapshotBuilder } from '../../snapshot-builder.ts';
import type { Vm } from '../../vm.ts';
import { LocalVmFactory } from '../../vm-factory.ts';
import { describeConformance } from '../conformance.ts';
import { createProcessHypervisor, hostAsImage } from './process-hypervisor.ts';

const agentProgram = join(import.meta.dirname, '../../../services/guest-agent/main.ts');
const makeHypervisor = () => createProcessHypervisor({ agentProgram });

describeConformance(makeHypervisor, async () => hostAsImage);

/** Answers with its pid and counts its requests in a file of its bundle. */
const counting = `
import { appendFileSync, readFileSync } from 'node:fs';
export default { fetch() {
  appendFileSync('count', 'x');
  return Response.json({ pid: process.pid, count: readFileSync('count', 'utf8').length });
} };
`;

describe('functions on host processes', () => {
  let paths: Paths;
  let builder: LocalSnapshotBuilder;
  let factory: LocalVmFactory;
  const vms: Vm[] = [];

  before(async () => {
    paths = pathsOf(await mkdtemp(join(tmpdir(), 'thaw-process-')));
    const parts = { hypervisor: makeHypervisor(), image: hostAsImage, paths, log: silentLog };
    builder = new LocalSnapshotBuilder(parts);
    factory = new LocalVmFactory(parts);
  });
  after(async () => {
    await Promise.all(vms.map((vm) => vm.destroy()));
    await rm(paths.dataDir, { recursive: true, force: true });
  });

  const build = async (manifest: FunctionManifest, files: Record<string, string>) => {
    const bundlePath = join(paths.dataDir, 'bundle.tar');
    await writeTar(bundlePath, files);
    const wanted = { manifest: parseFunctionManifest(manifest), bundlePath, bundleSha256: '0'.repeat(64) };
    return builder.buildFunction(wanted, AbortSignal.timeout(30_000));
  };
  const clone = async (snapshotId: string) => {
    const vm = await factory.restore(snapshotId, AbortSignal.timeout(30_000));
    vms.push(vm);
    return vm;
  };
  const ask = async (vm: Vm) => {
    const response = await request(`http://${vm.runner!.host}:${vm.runner!.port}/`);
    return (await response.body.json()) as { pid: number; count: number };
  };

  it('gives each clone a program of its own on the captured files', async () => {
    const snapshotId = await build(
      { name: 'count', runtime: 'node', prime: ['/'] },
      { 'index.mjs': counting },
    );
    const [one, other] = [await clone(snapshotId), await clone(snapshotId)];
    const first = await ask(one);
    assert.equal((await ask(one)).count, first.count + 1);
    const answer = await ask(other);
    assert.equal(answer.count, first.count);
    assert.notEqual(answer.pid, first.pid);
    assert.deepEqual(await readdir(paths.vmsDir), [one.vmId, other.vmId].sort());
  });

  it('ends the program of an agent that was killed', async () => {
    const command = ['python3', '-m', 'http.server', '--bind', '127.0.0.1'];
    const sh = ['sh', '-c', `exec ${command.join(' ')} "$PORT"`];
    const snapshotId = await build({ name: 'files', runtime: 'command', command: sh }, { hello: 'hello' });
    const vm = await clone(snapshotId);
    const program = (await childrenOf(vm.pid))[0]!;
    assert.notEqual(await readStartTime(program), undefined);
    process.kill(vm.pid, 'SIGKILL');
    assert.match(await vm.ended, /SIGKILL/);
    await vm.destroy();
    await gone(program);
  });

  it('records its process for the next start', async () => {
    const snapshotId = await builder.ensureTemplate({ memoryMb: 256, vcpus: 1 });
    const vm = await clone(snapshotId);
    assert.equal((await readProcessRecord(paths.vmDir(vm.vmId)))?.pid, vm.pid);
  });
});

async function writeTar(path: string, files: Record<string, string>): Promise<void> {
  const archive = pack();
  const written = once(archive.pipe(createWriteStream(path)), 'close');
  for (const [name, content] of Object.entries(files)) archive.entry({ name }, content);
  archive.finalize();
  await written;
}

async function childrenOf(pid: number): Promise<number[]> {
  const text = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8');
  return text.trim().split(' ').map(Number);
}

/** An orphan is reaped by init, in its own time. */
async function gone(pid: number): Promise<void> {
  const deadlineMs = performance.now() + 5_000;
  while ((await readStartTime(pid)) !== undefined)
    assert.ok(performance.now() < deadlineMs, `process ${pid} still runs`);
}

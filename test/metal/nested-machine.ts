// Owns the nested machine: a QEMU process whose emulated CPU has AMD SVM, so that /dev/kvm inside is real, only slow.
// Refuses to own what runs in it. Invariant: disposing leaves no process; a machine that hangs ends at the deadlines.
import { connect, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import type { Duplex } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { type Child, startChild } from '../../pool/host/child.ts';
import { parseForwards } from '../../pool/hypervisor/qemu/qemu-machine.ts';
import { Qmp } from '../../pool/hypervisor/qemu/qmp.ts';
import { withDeadline } from '../../shared/deadline.ts';
import { type CommandReport, type CommandRequest, commandPort } from './command-server.ts';
import type { MachineDisks } from './machine-disks.ts';

const bootTimeoutMs = 180_000;
const connectRetryMs = 500;
const qmpFd = 3;

export interface MachineOptions {
  memoryMb?: number;
  /** More than one: QEMU emulates each in a thread of its own, and now and then all of them stand still. */
  cpus?: number;
  /** More words for QEMU. */
  words?: readonly string[];
}

export interface RunOptions {
  onOutput?: (text: string, stream: 'stdout' | 'stderr') => void;
  stdin?: Buffer;
  timeoutMs: number;
}

export class NestedMachine implements AsyncDisposable {
  readonly #child: Child;
  /** Loopback port of its command server. */
  readonly port: number;

  private constructor(child: Child, port: number) {
    this.#child = child;
    this.port = port;
  }

  /** @throws ThawError `deadline-exceeded` when its command server does not answer in time. */
  static async start(disks: MachineDisks, options: MachineOptions = {}): Promise<NestedMachine> {
    const child = await startChild('qemu-system-x86_64', machineArgs(disks, options), {
      extraStdio: ['pipe'],
    });
    try {
      const qmp = new Qmp(child.process.stdio[qmpFd] as Duplex);
      const usernet = String(
        await qmp.execute('human-monitor-command', { 'command-line': 'info usernet' }, 60_000),
      );
      const port = parseForwards(usernet).get(commandPort);
      if (port === undefined) throw new Error(`no forwarded port in: ${usernet}`);
      const machine = new NestedMachine(child, port);
      await withDeadline('the boot of the nested machine', bootTimeoutMs, machine.#answering());
      return machine;
    } catch (error) {
      child.process.kill('SIGKILL');
      throw error;
    }
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** @returns the exit code; a program ended by a signal counts as 1. */
  async run(request: CommandRequest, options: RunOptions): Promise<number> {
    const socket = connect(this.port, '127.0.0.1');
    try {
      const running = converse(socket, request, options);
      const ended = this.#child.exited.then(() => Promise.reject(new Error('the nested machine ended')));
      return await withDeadline(request.argv.join(' '), options.timeoutMs, Promise.race([running, ended]));
    } finally {
      socket.destroy();
    }
  }

  async #answering(): Promise<void> {
    for (;;) {
      // QEMU accepts for a guest that does not listen yet, then closes: only an exit code is an answer.
      const answer = await this.run({ argv: ['true'] }, { timeoutMs: bootTimeoutMs }).catch(() => undefined);
      if (answer === 0) return;
      if (this.#child.process.exitCode !== null) throw new Error('the nested machine did not start');
      await delay(connectRetryMs);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.process.kill('SIGKILL');
    await withDeadline('the end of the nested machine', 10_000, this.#child.exited);
  }
}

async function converse(socket: Socket, request: CommandRequest, options: RunOptions): Promise<number> {
  socket.on('error', () => {});
  const { stdin = Buffer.alloc(0) } = options;
  socket.write(`${JSON.stringify({ ...request, stdinBytes: stdin.length })}\n`);
  socket.write(stdin);
  for await (const line of createInterface({ input: socket })) {
    const report = JSON.parse(line) as CommandReport;
    if ('stream' in report) options.onOutput?.(report.text, report.stream);
    else return report.exitCode ?? 1;
  }
  throw new Error(`the connection closed before ${request.argv[0]} ended`);
}

function machineArgs(disks: MachineDisks, options: MachineOptions): string[] {
  const { memoryMb = 6144, cpus = 1, words = [] } = options;
  const drive = (path: string, id: string) => [
    '-drive',
    `file=${path},format=raw,if=none,id=${id},cache=unsafe,discard=unmap`,
    '-device',
    `virtio-blk-pci,drive=${id}`,
  ];
  return [
    ['-nodefaults', '-no-reboot', '-display', 'none'],
    ['-accel', 'tcg,thread=multi,tb-size=1024', '-M', 'q35'],
    // x2apic and 1 GB pages are what the emulation of nested paging cannot do.
    ['-cpu', 'EPYC,-x2apic,-pdpe1gb', '-m', String(memoryMb), '-smp', String(cpus)],
    ['-kernel', disks.kernelPath, '-initrd', disks.initrdPath],
    [
      '-append',
      'net.ifnames=0 root=/dev/vda rw init=/init.sh console=ttyS0 quiet panic=-1 mitigations=off nokaslr',
    ],
    drive(disks.rootPath, 'd0'),
    drive(disks.payloadPath, 'd1'),
    ['-netdev', `user,id=n0,hostfwd=tcp:127.0.0.1:0-:${commandPort}`],
    ['-device', 'virtio-net-pci,netdev=n0,romfile='],
    ['-object', 'rng-random,filename=/dev/urandom,id=r0', '-device', 'virtio-rng-pci,rng=r0'],
    ['-chardev', `socket,id=qmp,fd=${qmpFd}`, '-mon', 'chardev=qmp,mode=control'],
    ['-serial', disks.consolePath === undefined ? 'null' : `file:${disks.consolePath}`],
    words,
  ].flat();
}

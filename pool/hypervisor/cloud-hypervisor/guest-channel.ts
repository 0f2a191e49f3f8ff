// Owns the host's end of the vsock: the socket that the guest agent's call arrives at.
// Refuses to own what is said (pool/guest/control-client.ts). The guest calls, not the host: a clone's first call is
// then a new connection on numbers of its own, which no reset of the template's old ones can hit.
// Invariant: one connection is handed out; when the VMM ends or the time is over, whoever waits for it is told.
import { chmod } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { withDeadline } from '../../../shared/deadline.ts';
import { ThawError } from '../../../shared/errors.ts';
import type { MachineExit } from '../hypervisor.ts';

export class GuestChannel {
  readonly #server: Server;
  readonly #called: Promise<Socket>;
  #taken = false;

  private constructor(server: Server) {
    this.#server = server;
    this.#called = new Promise((resolve) => {
      server.on('connection', (socket) => {
        socket.on('error', () => {});
        if (this.#taken) socket.destroy();
        this.#taken = true;
        resolve(socket);
      });
    });
  }

  /** Must stand before the guest runs. */
  static async listen(path: string): Promise<GuestChannel> {
    const server = createServer();
    const channel = new GuestChannel(server);
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(path, resolve);
    });
    // The VMM, which has a uid of its own, connects for the guest; the directory is closed to all others.
    await chmod(path, 0o666);
    return channel;
  }

  async connection(timeoutMs: number, exited: Promise<MachineExit>): Promise<Duplex> {
    const died = exited.then(({ signal, exitCode, stderrTail }) => {
      throw new ThawError(
        'hypervisor-failed',
        `Cloud Hypervisor ended (${signal ?? exitCode}) before its guest called: ${stderrTail.trim()}`,
      );
    });
    died.catch(() => {});
    return withDeadline("the guest's first call", timeoutMs, Promise.race([this.#called, died]));
  }

  close(): void {
    this.#server.close();
    void this.#called.then((socket) => socket.destroy());
  }
}

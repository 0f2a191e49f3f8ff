// Owns the encrypted door of a gateway: a TLS listener whose connections go to the gateway's one HTTP server, and the
// certificate that it shows, read again when its files change.
// Refuses to own any request: past the handshake nothing differs from the plain door, limits and closing included.
// Invariant: a pair of files that cannot be used never takes the place of one that can; a key that others may read is refused.
import { unwatchFile, watchFile } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import type { AddressInfo, Socket } from 'node:net';
import { createSecureContext, createServer, type SecureContextOptions, type Server } from 'node:tls';
import type { FastifyInstance } from 'fastify';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';

export interface TlsDoorOptions {
  certPath: string;
  keyPath: string;
  log: Log;
  /** How often the files are looked at, milliseconds. */
  lookEveryMs?: number;
}

/** Certificates are replaced days before they end. */
const defaultLookEveryMs = 10_000;
/** Ample for any honest client; ends those that connect and say nothing. */
const handshakeTimeoutMs = 10_000;
const protocol = { minVersion: 'TLSv1.2', ALPNProtocols: ['http/1.1'] } as const;
const othersMayRead = 0o077;

export class TlsDoor {
  readonly #options: TlsDoorOptions;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #onChange = () => void this.#reload();

  /** Before `app` is ready: the door closes with it. @throws ThawError `bad-config`. */
  static async open(app: FastifyInstance, options: TlsDoorOptions): Promise<TlsDoor> {
    return new TlsDoor(app, options, await readTlsPair(options));
  }

  private constructor(app: FastifyInstance, options: TlsDoorOptions, pair: SecureContextOptions) {
    this.#options = options;
    this.#server = createServer({ ...protocol, ...pair, handshakeTimeout: handshakeTimeoutMs });
    this.#server.on('connection', (socket) => {
      this.#sockets.add(socket);
      socket.on('close', () => this.#sockets.delete(socket));
    });
    this.#server.on('secureConnection', (socket) => {
      socket.setNoDelay(true);
      app.server.emit('connection', socket);
    });
    this.#server.on('tlsClientError', (_error, socket) => socket.destroy());
    app.addHook('preClose', async () => this.#stop());
    app.addHook('onClose', async () => {
      for (const socket of this.#sockets) socket.destroy();
    });
    const interval = options.lookEveryMs ?? defaultLookEveryMs;
    for (const path of this.#paths) watchFile(path, { interval, persistent: false }, this.#onChange);
  }

  /** @returns the port. @throws the listen error. */
  async listen(host: string, port: number): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(port, host, resolve);
    });
    return (this.#server.address() as AddressInfo).port;
  }

  get #paths(): string[] {
    return [this.#options.certPath, this.#options.keyPath];
  }

  #stop(): void {
    for (const path of this.#paths) unwatchFile(path, this.#onChange);
    this.#server.close();
  }

  async #reload(): Promise<void> {
    const { log, certPath } = this.#options;
    try {
      this.#server.setSecureContext({
        minVersion: protocol.minVersion,
        ...(await readTlsPair(this.#options)),
      });
      log.info({ certPath }, 'the TLS certificate was read again');
    } catch (error) {
      // Of a pair that is being replaced, one file is newer than the other for a moment.
      log.error({ err: error, certPath }, 'the changed TLS certificate cannot be used; the one before stays');
    }
  }
}

/** @throws ThawError `bad-config` naming what is wrong with which file. */
export async function readTlsPair({
  certPath,
  keyPath,
}: Pick<TlsDoorOptions, 'certPath' | 'keyPath'>): Promise<{ cert: Buffer; key: Buffer }> {
  const cert = await read(certPath, 'THAW_TLS_CERT');
  const key = await read(keyPath, 'THAW_TLS_KEY');
  const mode = (await stat(keyPath)).mode & 0o777;
  if ((mode & othersMayRead) !== 0)
    throw new ThawError(
      'bad-config',
      `THAW_TLS_KEY: others than its owner may use ${keyPath} (mode ${mode.toString(8)}); run chmod 600 ${keyPath}`,
    );
  try {
    createSecureContext({ cert, key });
  } catch (error) {
    throw new ThawError(
      'bad-config',
      `THAW_TLS_CERT and THAW_TLS_KEY cannot be used together: ${(error as Error).message}`,
      { cause: error },
    );
  }
  return { cert, key };
}

async function read(path: string, variable: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    throw new ThawError('bad-config', `${variable}: ${path} cannot be read: ${(error as Error).message}`);
  }
}

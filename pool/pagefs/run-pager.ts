// Owns a pager process from its settings to its end: mount, control socket, orderly end.
// Refuses to own where images come from: the program hands in `load`. Invariant: it answers its starter exactly once;
// no thread that waits on a mount that cannot go away keeps the process alive.
import { text } from 'node:stream/consumers';
import { ThawError } from '../../shared/errors.ts';
import { createLog } from '../../shared/log.ts';
import { Pager, type PagerLimits, type PagerOptions } from './pager.ts';
import { PagerServer } from './pager-server.ts';

/** What pager-process.ts gives every pager; a program may want more. */
export interface PagerSettings {
  mountDir: string;
  socketPath: string;
  logPath: string;
  limits?: Partial<PagerLimits>;
  orphanTimeoutMs?: number;
}

type OpenImages<S> = (settings: S) => Promise<{ load: PagerOptions['load']; close?: () => Promise<void> }>;

const defaultOrphanTimeoutMs = 10 * 60_000;

/** @param open turns the program's settings into what loads images. */
export async function runPager<S extends PagerSettings>(open: OpenImages<S>): Promise<void> {
  try {
    const settings = JSON.parse(await text(process.stdin)) as S;
    await serve(settings, open);
    process.stdout.write(`${JSON.stringify({ ready: true })}\n`);
  } catch (error) {
    const code = error instanceof ThawError ? error.code : 'internal';
    process.stdout.write(
      `${JSON.stringify({ error: { code, detail: (error as Error).message } })}\n`,
      endAtOnce,
    );
  }
}

async function serve<S extends PagerSettings>(settings: S, open: OpenImages<S>): Promise<void> {
  const { mountDir, socketPath, limits, orphanTimeoutMs = defaultOrphanTimeoutMs } = settings;
  const log = createLog({ path: settings.logPath });
  const { load, close: closeImages } = await open(settings);
  let server: PagerServer | undefined;
  const pager = await Pager.start({
    mountDir,
    load,
    log,
    onEvent: (event) => server?.broadcast(event),
    ...(limits ? { limits } : {}),
  });
  const stop = async (reason: string) => {
    log.info({ reason }, 'the pager ends');
    const unmounted = await pager.close().catch((error) => log.error({ err: error }, 'not unmounted'));
    await server?.close();
    await closeImages?.();
    if (unmounted) process.exit(0);
    endAtOnce();
  };
  server = new PagerServer({
    socketPath,
    mountDir,
    pager,
    log,
    orphanTimeoutMs,
    onEnd: (reason) => void stop(reason),
  });
  await server.listen();
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => void stop(signal));
  void pager.ended.then((how) => void stop(`the mount is gone: ${how}`));
  log.info({ mountDir, pid: process.pid }, 'the pager serves');
}

/** Node's own exit waits for its threads, and one that reads the device of a mount in use never returns. */
function endAtOnce(): void {
  process.kill(process.pid, 'SIGKILL');
}

// A stand-in for Cloud Hypervisor's API, FOR TESTS ONLY: it runs no guest. It speaks the API over a unix socket with the
// quirks and the words of v53, maps the page file as the real one does, writes and reads real snapshot directories.
// It is source text without the right to be executed, so that no configuration can name it as a binary.
// Environment: THAW_STAND_IN_ADDRESS where its guest answers HTTP; THAW_STAND_IN_REFUSALS scripted answers, see Refusals;
// THAW_STAND_IN_VERSION another release.
import { createWriteStream, existsSync, statSync } from 'node:fs';
import { open, readFile, writeFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createSocketServer } from 'node:net';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { lowMemoryBytes } from './device-state.ts';
import { GuestMemory, StandInGuest } from './stand-in-guest.ts';
import type { VmConfig } from './vm-config.ts';

/** By call: what it answers instead of working, or that it never answers or dies of it. */
export type Refusals = Record<string, { status: number; chain: string[] } | 'hang' | 'die'>;

class Refusal extends Error {
  readonly status: number;
  readonly chain: readonly string[];

  constructor(chain: readonly string[], status = 500) {
    super(chain.join(' ← '));
    this.status = status;
    this.chain = chain;
  }
}

const maxBodyBytes = 51_200;
const version = process.env.THAW_STAND_IN_VERSION ?? '53.0.0';
const refusals = JSON.parse(process.env.THAW_STAND_IN_REFUSALS ?? '{}') as Refusals;
const withoutBody = ['vm.boot', 'vm.pause', 'vm.resume', 'vm.shutdown', 'vm.delete', 'vmm.shutdown'];
const notFound = 'No such file or directory (os error 2)';
const zoneId = 'mem0';

let emit: (event: string) => void = () => {};
let vm: { config: VmConfig; state: 'Created' | 'Running' | 'Paused'; guest?: StandInGuest } | undefined;

const calls: Record<string, (body: Record<string, unknown>) => unknown> = {
  'vmm.ping': () => ({ build_version: `v${version}-stand-in`, version, pid: process.pid, features: ['kvm'] }),
  'vm.info': () => ({ config: held().config, state: held().state, memory_actual_size: 0 }),
  'vm.create': (body) => {
    if (vm) throw new Refusal(['Error from API', 'VM is already created']);
    vm = { config: body as unknown as VmConfig, state: 'Created' };
  },
  'vm.boot': async () => {
    const created = held();
    const { config } = created;
    if (!existsSync(config.payload.kernel))
      throw new Refusal(['Error from API', 'Cannot open kernel file', notFound]);
    created.guest = await guestOf(config);
    created.guest.memory.mark();
    run('booted');
  },
  'vm.pause': () => change('Running', 'Paused', 'paused'),
  'vm.resume': () => change('Paused', 'Running', 'resumed'),
  'vm.snapshot': (body) => snapshot(pathOf(String(body.destination_url))),
  'vm.restore': (body) => restore(body),
};

function held() {
  if (!vm) throw new Refusal(['Error from API', 'VM is not created'], 404);
  return vm;
}

function change(from: 'Running' | 'Paused', to: 'Running' | 'Paused', event: string): void {
  const machine = held();
  if (machine.state !== from)
    throw new Refusal([
      'Error from API',
      'The VM could not change',
      `InvalidStateTransition(${machine.state}, ${to})`,
    ]);
  if (to === 'Running') run(event);
  else {
    machine.state = to;
    machine.guest?.pause();
    emit(event);
  }
}

function run(event: string): void {
  const machine = held();
  machine.state = 'Running';
  // Memory that holds no guest is a triple fault: the real one resets and boots from the payload, which is not there.
  if (!machine.guest!.memory.isMarked) {
    emit('rebooting');
    setImmediate(() => process.exit(1));
    return;
  }
  machine.guest!.resume();
  emit(event);
}

async function guestOf(config: VmConfig): Promise<StandInGuest> {
  const zone = config.memory.zones[0]!;
  if (config.memory.size !== 0) throw new Refusal(['Error from API', 'Memory configuration is not valid']);
  if (!existsSync(zone.file))
    throw new Refusal(['Error from API', 'Memory manager error', 'Failed to stat filesystem', notFound]);
  for (const { path } of config.disks)
    if (!existsSync(path))
      throw new Refusal([
        'Error from API',
        'Cannot open disk path',
        `I/O error (path=${path} op=open)`,
        notFound,
      ]);
  if (config.payload.initramfs && !existsSync(config.payload.initramfs))
    throw new Refusal(['Error from API', 'Cannot open initramfs file', notFound]);
  await listenVsock(config.vsock.socket);
  if (statSync(zone.file).size < zone.size) {
    // The answer is good, the first touch behind the end of the file is the end.
    setTimeout(() => process.kill(process.pid, 'SIGSYS'), 20);
  }
  const memory = await GuestMemory.map(zone.file, Math.min(zone.size, statSync(zone.file).size), zone.shared);
  return new StandInGuest(memory, config.vsock.socket, process.env.THAW_STAND_IN_ADDRESS);
}

function listenVsock(path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    createSocketServer()
      .once('error', (error: NodeJS.ErrnoException) => {
        const cause = error.code === 'EADDRINUSE' ? 'Address already in use (os error 98)' : notFound;
        const chain = [
          'Cannot create virtio-vsock backend',
          'Error binding to the host-side Unix socket',
          cause,
        ];
        reject(new Refusal(['Error from API', ...chain]));
      })
      .listen(path, resolve);
  });
}

const pathOf = (url: string): string => url.replace(/^file:\/\//, '');
const failed = ['Error from API', 'The VM could not be snapshotted', 'Cannot send VM snapshot'];

async function snapshot(dir: string): Promise<void> {
  const { config, state, guest } = held();
  if (state !== 'Paused')
    throw new Refusal([
      'Error from API',
      'The VM could not be snapshotted',
      'Trying to snapshot while VM is running',
    ]);
  if (!existsSync(dir) || !statSync(dir).isDirectory())
    throw new Refusal([...failed, `Destination is not a directory: "${dir}"`]);
  const zone = config.memory.zones[0]!;
  const rangesOf = zone.shared ? [] : memoryRanges(zone.size);
  await writeNew(dir, 'config.json', JSON.stringify(config));
  await writeNew(dir, 'state.json', JSON.stringify(stateOf(rangesOf, zone.size), null, 1));
  if (rangesOf.length > 0) await writeMemory(join(dir, 'memory-ranges'), guest!);
  emit('snapshotted');
}

async function writeNew(dir: string, name: string, text: string): Promise<void> {
  await writeFile(join(dir, name), text, { flag: 'wx' }).catch(() => {
    throw new Refusal([...failed, `Error creating ${name}`, 'File exists (os error 17)']);
  });
}

async function writeMemory(path: string, guest: StandInGuest): Promise<void> {
  const file = await open(path, 'wx').catch(() => {
    const chain = [
      'Failed to send migratable component snapshot',
      `Error creating memory snapshot file "${path}"`,
    ];
    throw new Refusal([...failed, ...chain, 'File exists (os error 17)']);
  });
  for (const piece of guest.memory.pieces) await file.write(piece);
  await file.close();
}

function memoryRanges(sizeBytes: number): { gpa: number; length: number }[] {
  const low = { gpa: 0, length: Math.min(sizeBytes, lowMemoryBytes) };
  return sizeBytes > lowMemoryBytes
    ? [low, { gpa: 4 * 1024 ** 3, length: sizeBytes - lowMemoryBytes }]
    : [low];
}

/** Each leaf is a JSON document inside a string, with numbers that JavaScript cannot hold. */
const stateOf = (ranges: object[], sizeBytes: number) => ({
  snapshots: {
    'cpu-manager': { snapshots: {}, snapshot_data: { state: '{"tsc_offset":18446744073709551615}' } },
    'memory-manager': {
      snapshots: {},
      snapshot_data: {
        state: `{"memory_ranges":{"data":${JSON.stringify(ranges)}},"guest_ram_mappings":[{"slot":0,"gpa":0,"size":${sizeBytes},"zone_id":"${zoneId}","virtio_mem":false,"file_offset":0}]}`,
      },
    },
  },
  snapshot_data: { state: '{}' },
});

async function restore(body: Record<string, unknown>): Promise<void> {
  const { source_url: source, memory_restore_mode: mode, resume } = body;
  if (mode !== 'Copy' && mode !== 'OnDemand')
    throw new Refusal(
      [
        'Error from API',
        'Failed to deserialize JSON',
        `unknown variant \`${mode}\`, expected \`Copy\` or \`OnDemand\``,
      ],
      400,
    );
  if (vm) throw new Refusal(['Error from API', 'VM is already created']);
  const dir = pathOf(String(source));
  const config = JSON.parse(await readFile(join(dir, 'config.json'), 'utf8')) as VmConfig;
  const state = parseState(await readFile(join(dir, 'state.json'), 'utf8'));
  if (!config.payload) throw new Refusal(['Error from API', 'Payload configuration is not bootable']);
  if (config.memory.zones[0]?.id !== zoneId) throw new Refusal(['Error from API', 'No memory region found']);
  const memoryState = state.snapshots['memory-manager']!.snapshot_data.state;
  if (!memoryState.includes('"memory_ranges":{"data":[]}') && !existsSync(join(dir, 'memory-ranges')))
    throw new Refusal(['Error from API', 'Error opening memory snapshot file', notFound]);
  const guest = await guestOf(config);
  await fillMemory(guest, memoryState, join(dir, 'memory-ranges'));
  vm = { config, state: 'Paused', guest };
  emit('restored');
  if (resume) run('resumed');
}

/** Packed in the order of the list; a hole in the file leaves what is there, as the real one does. */
async function fillMemory({ memory }: StandInGuest, state: string, path: string): Promise<void> {
  const { memory_ranges: ranges } = JSON.parse(state) as {
    memory_ranges: { data: { gpa: number; length: number }[] };
  };
  if (ranges.data.length === 0) return;
  const file = await open(path, 'r');
  let at = 0;
  for (const { gpa, length } of ranges.data) {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, at);
    if (bytesRead !== length) throw new Refusal(['Error from API', 'Error reading memory snapshot file']);
    memory.fill(gpa, buffer);
    at += length;
  }
  await file.close();
}

function parseState(text: string): { snapshots: Record<string, { snapshot_data: { state: string } }> } {
  try {
    return JSON.parse(text);
  } catch {
    const where = `EOF while parsing a string at line 1 column ${text.length}`;
    throw new Refusal(['Error from API', 'Error deserialising VM state snapshot', where]);
  }
}

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const call = /^\/api\/v1\/([a-z.]+)$/.exec(request.url ?? '')?.[1] ?? '';
  response.setHeader('server', 'Cloud Hypervisor API');
  const text = await bodyOf(request);
  if (request.headers['transfer-encoding'] !== undefined || text.length > maxBodyBytes) {
    response.setHeader('server', 'Firecracker API');
    // Not JSON: the line break stands inside the string.
    response
      .writeHead(400)
      .end('{ "error": "Invalid request.\nAll previous unanswered requests will be dropped." }');
    return;
  }
  const scripted = refusals[call];
  if (scripted === 'hang') return;
  if (scripted === 'die') process.kill(process.pid, 'SIGKILL');
  try {
    if (scripted && scripted !== 'die') throw new Refusal(scripted.chain, scripted.status);
    if (call === 'vmm.shutdown' && text === '') return end(response);
    const work = calls[call];
    if (!work) throw new Refusal(['Not Found'], 404);
    if (text !== '' && withoutBody.includes(call)) throw new Refusal(['Bad Request'], 400);
    const value = await work(text === '' ? {} : (JSON.parse(text) as Record<string, unknown>));
    if (value === undefined) response.writeHead(204).end();
    else response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(value));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    response.writeHead(error.status, { 'content-type': 'application/json' }).end(JSON.stringify(error.chain));
  }
}

/** The real one is gone before its answer is sure to arrive. */
function end(response: ServerResponse): void {
  response.socket?.destroy();
  process.exit(0);
}

async function bodyOf(request: IncomingMessage): Promise<string> {
  let text = '';
  for await (const chunk of request.setEncoding('utf8')) text += chunk;
  return text;
}

function serve(): void {
  const { values } = parseArgs({
    options: {
      'api-socket': { type: 'string' },
      'event-monitor': { type: 'string' },
      version: { type: 'boolean' },
    },
  });
  if (values.version) {
    process.stdout.write(`cloud-hypervisor v${version}\n`);
    return;
  }
  const events = createWriteStream('', { fd: Number(values['event-monitor']!.replace('fd=', '')) });
  emit = (event) =>
    void events.write(
      `${JSON.stringify({ timestamp: { secs: 0, nanos: 0 }, source: 'vm', event, properties: null }, null, 2)}\n\n`,
    );
  // One request at a time, whatever the number of connections.
  let turn: Promise<void> = Promise.resolve();
  createServer((request, response) => {
    turn = turn.then(() => answer(request, response));
  }).listen(values['api-socket']!.replace('path=', ''));
}

if (import.meta.main) serve();

// Owns the guest's end of the control channel: lines in, replies and events out.
// Refuses to own what a request does (main.ts) and how bytes travel (control-link.ts).
// Invariant: every request line gets exactly one reply; a line over the limit or without JSON gets none.
import type {
  ControlEvent,
  ControlFailure,
  ControlRequest,
  HealthReply,
  RestoreReply,
} from '../../shared/agent-protocol.ts';

export type ControlReply = RestoreReply | HealthReply | { id: number; ok: true };
export type ControlHandler = (request: ControlRequest) => Promise<ControlReply> | ControlReply;

/** Where replies and events are written. `pendingBytes` is what the host has not taken yet. */
export interface ControlSink {
  write(text: string): void;
  readonly pendingBytes: number;
}

const maxLineChars = 256 * 1024;
const maxPendingEventBytes = 256 * 1024;

export class ControlChannel {
  readonly #handle: ControlHandler;
  readonly #sink: ControlSink;
  #partial = '';
  #overlong = false;
  // All but health change the same state: one after the other. Health must answer while they run.
  #turn: Promise<unknown> = Promise.resolve();

  constructor(sink: ControlSink, handle: ControlHandler) {
    this.#sink = sink;
    this.#handle = handle;
  }

  receive(text: string): void {
    const lines = text.split('\n');
    lines[0] = this.#partial + lines[0];
    this.#partial = lines.pop()!;
    for (const line of lines) {
      if (this.#overlong) this.#overlong = false;
      // An empty line only ends what stood before it: parsing it would throw, and each clone would pay for the stack.
      else if (line !== '') this.#dispatch(line);
    }
    if (this.#partial.length > maxLineChars) {
      this.#partial = '';
      this.#overlong = true;
    }
  }

  /** @returns false when the event was dropped because the host reads too slowly. */
  emit(event: ControlEvent): boolean {
    if (this.#sink.pendingBytes > maxPendingEventBytes) return false;
    this.#sink.write(`${JSON.stringify(event)}\n`);
    return true;
  }

  #dispatch(line: string): void {
    const request = parseRequest(line);
    if (request === undefined) return;
    if (request.op === 'health') void this.#answer(request);
    else this.#turn = this.#turn.then(() => this.#answer(request));
  }

  async #answer(request: ControlRequest): Promise<void> {
    let reply: ControlReply | ControlFailure;
    try {
      const fault = faultOf(request);
      if (fault !== undefined) throw new Error(`${request.op}: ${fault}`);
      reply = await this.#handle(request);
    } catch (error) {
      reply = { id: request.id, ok: false, message: (error as Error).message };
    }
    this.#sink.write(`${JSON.stringify(reply)}\n`);
  }
}

function parseRequest(line: string): ControlRequest | undefined {
  try {
    const value = JSON.parse(line) as Partial<ControlRequest> | null;
    return typeof value?.id === 'number' && typeof value.op === 'string'
      ? (value as ControlRequest)
      : undefined;
  } catch {
    return undefined;
  }
}

const patterns: Record<string, Record<string, RegExp>> = {
  restore: {
    generation: /^.{1,128}$/,
    seed: /^[A-Za-z0-9+/]{86}==$/,
    hostname: /^[a-zA-Z0-9][a-zA-Z0-9-]{0,62}$/,
    machineId: /^[0-9a-f]{32}$/,
    secret: /^.{16,256}$/,
  },
  seal: { nonce: /^.{1,128}$/ },
  hold: { nonce: /^.{1,128}$/ },
  proceed: { nonce: /^.{1,128}$/ },
  clock: {},
  health: {},
};

/** @returns what is wrong with the request's fields, naming the field and never its value. */
function faultOf(request: ControlRequest): string | undefined {
  const fields = Object.hasOwn(patterns, request.op) ? patterns[request.op] : undefined;
  if (fields === undefined) return 'unknown operation';
  for (const [field, pattern] of Object.entries(fields)) {
    const value = (request as unknown as Record<string, unknown>)[field];
    if (typeof value !== 'string' || !pattern.test(value)) return `${field} must match ${pattern.source}`;
  }
  if (request.op === 'seal' && !['undefined', 'boolean'].includes(typeof request.dropCaches))
    return 'dropCaches must be true or false';
  const timed = request.op === 'restore' || request.op === 'proceed' || request.op === 'clock';
  if (timed && !(Number.isFinite(request.wallClockMs) && request.wallClockMs > 0))
    return 'wallClockMs must be a positive number';
  return undefined;
}

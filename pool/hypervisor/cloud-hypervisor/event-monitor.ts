// Owns the events of one Cloud Hypervisor process: JSON objects over several lines, an empty line after each.
// Invariant: an object that is not understood is left out, and never holds up the next.
import type { Readable } from 'node:stream';

export interface VmmEvent {
  source: string;
  event: string;
}

const maxPartialChars = 64 * 1024;

export function readEvents(stream: Readable, listener: (event: VmmEvent) => void): void {
  let partial = '';
  stream.setEncoding('utf8').on('data', (text: string) => {
    const pieces = (partial + text).split('\n\n');
    partial = (pieces.pop() ?? '').slice(-maxPartialChars);
    for (const piece of pieces) {
      const event = parseEvent(piece);
      if (event) listener(event);
    }
  });
  // The end of the process is told by its exit, not by its last event.
  stream.on('error', () => {});
}

function parseEvent(text: string): VmmEvent | undefined {
  try {
    const { source, event } = JSON.parse(text) as Partial<VmmEvent>;
    return typeof source === 'string' && typeof event === 'string' ? { source, event } : undefined;
  } catch {
    return undefined;
  }
}

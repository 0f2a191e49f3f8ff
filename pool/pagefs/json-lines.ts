// Owns JSON lines on a stream: one object a line, whole lines only.
// Invariant: a peer that sends no JSON, or a line without end, loses the connection and costs no memory.
import type { Duplex } from 'node:stream';

export function onJsonLines(stream: Duplex, maxLineBytes: number, onValue: (value: unknown) => void): void {
  let partial: string[] = [];
  let partialBytes = 0;
  stream.setEncoding('utf8');
  stream.on('data', (text: string) => {
    const lines = text.split('\n');
    for (const [index, line] of lines.entries()) {
      partial.push(line);
      partialBytes += line.length;
      if (partialBytes > maxLineBytes) return void stream.destroy(new Error('a line is too long'));
      if (index === lines.length - 1) return;
      const whole = partial.join('');
      partial = [];
      partialBytes = 0;
      try {
        onValue(JSON.parse(whole));
      } catch (error) {
        return void stream.destroy(error as Error);
      }
    }
  });
}

export const jsonLine = (value: unknown): string => `${JSON.stringify(value)}\n`;

// Owns bodies that are longer than any deadline: each piece has one, the whole has none.
// Invariant: a piece is read only when the reader asks for it, and the time the reader takes is not counted.
import type { Deadline } from './deadline.ts';
import { errorOfFetch } from './errors.ts';

/** @param deadline of the request; it is taken over and ended with the body. */
export function readPiecewise(
  response: Response,
  deadline: Deadline,
  what: string,
  timeoutMs: number,
): ReadableStream<Uint8Array> {
  const reader = response.body?.getReader();
  deadline.pause();
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        deadline.restart(what, timeoutMs);
        try {
          const { done, value } = (await reader?.read()) ?? { done: true };
          deadline.pause();
          if (value !== undefined) controller.enqueue(value);
          if (!done) return;
          deadline.clear();
          controller.close();
        } catch (error) {
          deadline.clear();
          throw errorOfFetch(error, new URL(response.url).origin);
        }
      },
      async cancel(reason) {
        deadline.clear();
        await reader?.cancel(reason);
      },
    },
    { highWaterMark: 0 },
  );
}

/** Restarts the deadline whenever the sender has taken a piece of `body`. */
export function sendPiecewise(
  body: ReadableStream<Uint8Array>,
  deadline: Deadline,
  what: string,
  timeoutMs: number,
): ReadableStream<Uint8Array> {
  return body.pipeThrough(
    new TransformStream<Uint8Array, Uint8Array>({
      transform(piece, controller) {
        deadline.restart(what, timeoutMs);
        controller.enqueue(piece);
      },
    }),
  );
}

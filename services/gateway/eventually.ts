// Owns waiting for a condition in tests: asked again until it holds or the deadline passes.
import { setTimeout as delay } from 'node:timers/promises';

export async function eventually(
  what: string,
  condition: () => boolean | Promise<boolean>,
  timeoutMs = 5_000,
): Promise<void> {
  const deadlineMs = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > deadlineMs) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await delay(5);
  }
}

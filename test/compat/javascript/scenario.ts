// Owns what a scenario of the JavaScript client is given. Types are those of the newest client: older ones have less.
import type * as E2b from 'e2b';

export type { E2b };

export interface Stage {
  e2b: typeof E2b;
  /** A new sandbox of `base`, killed afterwards. */
  sandbox: E2b.Sandbox;
  /** Address of the server. */
  url: string;
  /** Ends the scenario as not to be tested with this client. */
  skip(reason: string): never;
}

export class Skipped extends Error {}

export async function eventually(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  const endMs = performance.now() + 30_000;
  while (!(await condition())) {
    if (performance.now() > endMs) throw new Error(`not within 30 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

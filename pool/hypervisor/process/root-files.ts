// Owns what of an agent's root stands for its running state, and the form in which a capture keeps it.
// Refuses to own the rest of the root, which is the `disk`. Invariant: restoring what a capture kept gives the
// agent the nonce and the program it had.

import { join } from 'node:path';
import { ThawError } from '../../../shared/errors.ts';

/** What would be in memory in a VM: which snapshot it is, and the specification of the program that runs. */
export interface RunningState {
  nonce: string;
  /** Text of the agent's own record; null when no program ran. */
  runner: string | null;
}

export const rootFilesOf = (rootDir: string) => ({
  nonce: join(rootDir, 'nonce'),
  runner: join(rootDir, 'runner.json'),
});

/** @throws ThawError `restore-failed`. */
export function parseRunningState(text: string): RunningState {
  try {
    const { nonce, runner } = JSON.parse(text) as Partial<RunningState>;
    if (typeof nonce === 'string' && (runner === null || typeof runner === 'string'))
      return { nonce, runner };
  } catch {}
  throw new ThawError('restore-failed', 'the captured state of the agent is torn');
}

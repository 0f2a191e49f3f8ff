// Owns running scenarios with one installed JavaScript client, one after the other.
// Usage: run.ts CLIENT_DIR SCENARIO…  Prints one line of JSON for each. Invariant: a scenario ends within its time.
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { withDeadline } from '../../../shared/deadline.ts';
import { type E2b, Skipped, type Stage } from './scenario.ts';

const scenarioTimeoutMs = 120_000;
const [clientDir, ...names] = process.argv.slice(2);
const require = createRequire(join(clientDir!, 'package.json'));
const e2b = require('e2b') as typeof E2b;

async function play(name: string): Promise<void> {
  const { default: scenario } = (await import(`./${name}.ts`)) as {
    default: (stage: Stage) => Promise<void>;
  };
  const sandbox = await e2b.Sandbox.create('base', { timeoutMs: 300_000 });
  const skip = (reason: string): never => {
    throw new Skipped(reason);
  };
  try {
    await scenario({ e2b, sandbox, url: process.env.E2B_API_URL!, skip });
  } finally {
    await sandbox.kill().catch(() => {});
  }
}

function outcomeOf(error: unknown): { status: string; reason: string } {
  const message = error instanceof Error ? error.message : String(error);
  const [reason] = message.split('\n');
  if (error instanceof Skipped) return { status: 'skipped', reason: reason! };
  if (/not.offered|\b501\b|unimplemented/i.test(message))
    return { status: 'skipped', reason: `Thaw does not offer it: ${reason}` };
  return { status: 'failed', reason: reason! };
}

for (const name of names) {
  const outcome = await withDeadline(name, scenarioTimeoutMs, play(name)).then(
    () => ({ status: 'passed', reason: '' }),
    outcomeOf,
  );
  console.log(JSON.stringify({ scenario: name, ...outcome }));
}
process.exit(0);

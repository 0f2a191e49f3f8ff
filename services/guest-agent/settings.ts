// Owns how the agent is told what it is: its environment variables and the places of its files.
// Invariant: a wrong or missing variable ends the agent at once with the name of the variable.
import { join } from 'node:path';

export interface Settings {
  mode: 'guest' | 'process';
  controlPath: string;
  rootDir: string;
  httpPort: number;
  httpHost: string;
}

export function readSettings(env: NodeJS.ProcessEnv): Settings {
  const mode = required(env, 'THAW_AGENT_MODE');
  if (mode !== 'guest' && mode !== 'process')
    throw new Error(`THAW_AGENT_MODE: expected guest or process, got ${mode}`);
  const port = required(env, 'THAW_AGENT_PORT');
  if (!/^\d{1,5}$/.test(port)) throw new Error(`THAW_AGENT_PORT: expected a port number, got ${port}`);
  return {
    mode,
    controlPath: required(env, 'THAW_AGENT_CONTROL'),
    rootDir: required(env, 'THAW_AGENT_ROOT'),
    httpPort: Number(port),
    // A guest is reached from outside; a host process must not be.
    httpHost: mode === 'guest' ? '0.0.0.0' : '127.0.0.1',
  };
}

function required(env: NodeJS.ProcessEnv, name: string): string {
  const value = env[name];
  if (!value) throw new Error(`${name} is not set`);
  return value;
}

export const functionDirOf = (settings: Settings): string => join(settings.rootDir, 'function');

// The agent is one bundled file in a guest and source files in process mode: its companions lie beside it or in runner/.
const bundled = import.meta.url.endsWith('.mjs');
export const runnerDir = bundled ? import.meta.dirname : join(import.meta.dirname, 'runner');
export const runnerFile = (name: string): string => join(runnerDir, bundled ? `${name}.mjs` : `${name}.ts`);

// Owns the list of what is tried with each client. Invariant: each is one file for each language, of this name.

export interface Scenario {
  name: string;
  feature: string;
  /** False: an agent that is a process of the host does as well. */
  needsVms: boolean;
}

const anywhere = (name: string, feature: string): Scenario => ({ name, feature, needsVms: false });
const inVms = (name: string, feature: string): Scenario => ({ name, feature, needsVms: true });

export const scenarios: readonly Scenario[] = [
  anywhere('lifecycle', 'create, info, list, connect, time-out, kill'),
  anywhere('commands', 'commands: output, exit code, environment, directory, time-out'),
  anywhere('background', 'commands in the background, found again by pid'),
  anywhere('stdin', 'standard input'),
  anywhere('files', 'files: text, bytes, streams, listing, moving, removing'),
  anywhere('metadata', 'metadata of files'),
  anywhere('watching', 'watching a directory'),
  anywhere('terminal', 'terminals'),
  anywhere('links', 'signed links'),
  anywhere('ports', 'ports by host name'),
  anywhere('hosts', 'host names over TLS, tokens of ports, signed links'),
  anywhere('network', 'network settings'),
  anywhere('templates', 'templates: build, lines, exists'),
  anywhere('logs', 'logs'),
  anywhere('failures', 'error classes'),
  inVms('users', 'users'),
  inVms('isolation', 'no internet access'),
  inVms('metrics', 'metrics'),
  inVms('pause', 'pause and resume'),
  inVms('timeouts', 'pause at the time-out, resume by traffic'),
  inVms('snapshots', 'snapshots'),
  inVms('fork', 'fork'),
];

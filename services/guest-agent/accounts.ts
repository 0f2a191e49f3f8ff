// Owns who a request acts as: names, ids, homes and groups of the guest's users.
// Refuses to own authorisation (access.ts).
// Invariant: in process mode every name is the agent's own user with a home below its root: nothing outside is touched.
import { mkdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Settings } from './settings.ts';

export interface Account {
  name: string;
  uid: number;
  gid: number;
  home: string;
  /** Groups beyond the primary one. */
  groups: number[];
  /** False when children simply inherit the agent's identity. */
  switches: boolean;
}

export interface Accounts {
  find(name: string): Account | undefined;
  userName(uid: number): string;
  groupName(gid: number): string;
}

const namePattern = /^[A-Za-z_][A-Za-z0-9_.-]{0,31}$/;

/** Reads the user database as it is now: programs in a sandbox may add users. */
export function readAccounts(settings: Settings): Accounts {
  const users = readDatabase('/etc/passwd');
  const groups = readDatabase('/etc/group');
  const [userNames, groupNames] = [namesById(users), namesById(groups)];
  const find = (name: string): Account | undefined => {
    const row = namePattern.test(name) ? users.find((user) => user[0] === name) : undefined;
    if (row === undefined) return undefined;
    const gid = Number(row[3]);
    const others = groups.filter((group) => group[3]?.split(',').includes(name) && Number(group[2]) !== gid);
    return {
      name,
      uid: Number(row[2]),
      gid,
      home: row[5] || '/',
      groups: others.map((group) => Number(group[2])),
      switches: true,
    };
  };
  return {
    find: settings.mode === 'guest' ? find : (name) => ownAccount(settings, name),
    userName: (uid) => userNames.get(uid) ?? String(uid),
    groupName: (gid) => groupNames.get(gid) ?? String(gid),
  };
}

/** Of several names of one id the first counts, as for every program. */
const namesById = (rows: string[][]) =>
  new Map(rows.toReversed().map((row): [number, string] => [Number(row[2]), row[0]!]));

function ownAccount(settings: Settings, name: string): Account | undefined {
  if (!namePattern.test(name)) return undefined;
  const home = join(settings.rootDir, 'home');
  mkdirSync(home, { recursive: true });
  return { name, uid: process.getuid!(), gid: process.getgid!(), home, groups: [], switches: false };
}

function readDatabase(path: string): string[][] {
  const lines = readFileSync(path, 'utf8').split('\n');
  return lines.filter((line) => line !== '' && !line.startsWith('#')).map((line) => line.split(':'));
}

export const searchPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** What every program the agent starts is told about itself. */
export function baseEnvironment(account: Account): Record<string, string> {
  return {
    // A host may have another node first in its path, one that cannot run what this one can.
    PATH: account.switches ? searchPath : `${dirname(process.execPath)}:${process.env.PATH ?? searchPath}`,
    HOME: account.home,
    USER: account.name,
    LOGNAME: account.name,
  };
}

// Owns what a build is asked to do: E2B's body as checked steps, and everything that is refused before a VM is taken.
// Refuses to own doing it (template-build.ts). Everything here is pure.
// Invariant: a plan can only fail by what its commands do; whatever no build can do is refused here, and says why.
import { ThawError } from '../../shared/errors.ts';
import type { StartBuildBody } from './template-schemas.ts';

export type BuildStep =
  | { kind: 'run'; script: string; user: string | undefined }
  | {
      kind: 'copy';
      source: string;
      target: string;
      user: string | undefined;
      mode: string | undefined;
      filesHash: string;
    }
  | { kind: 'env'; values: [name: string, value: string][] }
  | { kind: 'workdir'; path: string }
  | { kind: 'user'; user: string };

export interface BuildPlan {
  /** A template or snapshot of this Thaw; `base` when it began with E2B's own base image. */
  from: string;
  steps: BuildStep[];
  startCmd: string | undefined;
  readyCmd: string;
}

/** E2B's own base image, for which Thaw's `base` stands. */
const baseImage = /^(?:(?:docker\.io\/)?e2bdev\/base|base)(?::latest)?$/;
/** What a start command without a check is given, as clients expect. */
const uncheckedStart = 'sleep 20';
const alwaysReady = 'true';
const userPattern = /^[A-Za-z_][A-Za-z0-9_.-]{0,31}(?::[A-Za-z0-9_.-]{1,32})?$/;
const variablePattern = /^[A-Za-z_][A-Za-z0-9_]{0,255}$/;
const modePattern = /^[0-7]{3,4}$/;
const maxVariables = 512;

/** @throws ThawError `bad-request` | `not-implemented`. */
export function planOf(body: StartBuildBody): BuildPlan {
  const steps = (body.steps ?? []).map((step, at) => stepOf(step, at + 1));
  const startCmd = body.startCmd || undefined;
  return {
    from: sourceOf(body),
    steps,
    startCmd,
    readyCmd: body.readyCmd || (startCmd === undefined ? alwaysReady : uncheckedStart),
  };
}

function sourceOf({ fromImage, fromTemplate, fromImageRegistry }: StartBuildBody): string {
  if (fromImage && fromTemplate)
    throw new ThawError('bad-request', 'fromImage and fromTemplate exclude each other');
  if (fromImageRegistry !== undefined && fromImageRegistry !== null)
    throw noImages('pulling from a registry with credentials');
  if (fromTemplate === 'mcp-gateway' || fromTemplate === 'devcontainer')
    throw new ThawError(
      'not-implemented',
      `the template ${fromTemplate} is E2B's own and not offered by Thaw`,
    );
  if (fromTemplate) return fromTemplate;
  if (!fromImage) throw new ThawError('bad-request', 'one of fromImage and fromTemplate must be given');
  if (!baseImage.test(fromImage))
    throw noImages(`the container image ${JSON.stringify(fromImage.slice(0, 128))}`);
  return 'base';
}

const noImages = (what: string) =>
  new ThawError(
    'not-implemented',
    `${what} is not offered: this version of Thaw builds from e2bdev/base or from a template of its own (fromTemplate)`,
  );

type StepBody = NonNullable<NonNullable<StartBuildBody['steps']>[number]>;

function stepOf({ type, args, filesHash }: StepBody, number: number): BuildStep {
  const words = args ?? [];
  switch (type) {
    case 'RUN':
      return { kind: 'run', script: needed(words, 0, number, type), user: userOf(words[1], number) };
    case 'COPY':
      return copyOf(words, filesHash, number);
    case 'ENV':
    case 'ARG':
      return { kind: 'env', values: valuesOf(words, number) };
    case 'WORKDIR':
      return { kind: 'workdir', path: needed(words, 0, number, type) };
    case 'USER': {
      const user = userOf(needed(words, 0, number, type), number)!;
      return { kind: 'user', user: user.split(':', 1)[0]! };
    }
    default:
      throw new ThawError('not-implemented', `step ${number}: ${type} is no kind of step that Thaw offers`);
  }
}

function copyOf(words: string[], filesHash: string | null | undefined, number: number): BuildStep {
  const mode = words[3] || undefined;
  if (!filesHash) throw fault(number, 'COPY needs filesHash');
  if (mode !== undefined && !modePattern.test(mode)) throw fault(number, `${quoted(mode)} is no mode`);
  return {
    kind: 'copy',
    source: needed(words, 0, number, 'COPY'),
    target: needed(words, 1, number, 'COPY'),
    user: userOf(words[2], number),
    mode,
    filesHash,
  };
}

function valuesOf(words: string[], number: number): [string, string][] {
  if (words.length % 2 !== 0 || words.length === 0) throw fault(number, 'ENV needs names and values in turn');
  const values: [string, string][] = [];
  for (let at = 0; at < words.length; at += 2) {
    if (!variablePattern.test(words[at]!))
      throw fault(number, `${quoted(words[at]!)} is no name of a variable`);
    if (words[at + 1]!.includes('\0')) throw fault(number, `the value of ${words[at]} holds a NUL`);
    values.push([words[at]!, words[at + 1]!]);
  }
  if (values.length > maxVariables) throw fault(number, `ENV may set ${maxVariables} variables`);
  return values;
}

function userOf(word: string | undefined, number: number): string | undefined {
  if (!word) return undefined;
  if (!userPattern.test(word)) throw fault(number, `${quoted(word)} is no user`);
  return word;
}

function needed(words: string[], at: number, number: number, type: string): string {
  const word = words[at] ?? '';
  if (word === '') throw fault(number, `${type} needs ${at + 1} or more arguments`);
  if (word.includes('\0')) throw fault(number, `${type} must not hold a NUL`);
  return word;
}

const quoted = (text: string): string => JSON.stringify(text.slice(0, 64));
const fault = (number: number, what: string) => new ThawError('bad-request', `step ${number}: ${what}`);

/** As in Dockerfiles: $NAME, ${NAME}, ${NAME:-otherwise}, ${NAME:+instead}; a backslash keeps the dollar. */
const reference = /\\\$|\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?::([-+])([^}]*))?\})/g;

export function expanded(text: string, env: Readonly<Record<string, string>>): string {
  return text.replace(reference, (whole, plain, braced, sign, word) => {
    if (whole === '\\$') return '$';
    const name = plain ?? braced;
    const value = Object.hasOwn(env, name) ? env[name] : '';
    if (sign === '-') return value === '' ? word : value;
    if (sign === '+') return value === '' ? '' : word;
    return value;
  });
}

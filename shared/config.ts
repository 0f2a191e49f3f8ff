// Owns the configuration of every Thaw program: one schema, its defaults, and how flags, environment and file combine.
// Refuses to own reading files or the environment (services/cli). docs/config.md is made from it.
// Invariant: flags win over environment over file over defaults; an unknown key or a value of the wrong kind is an error
// that names where it stands; secrets have no flag and are never shown.
import { type Static, type TSchema, Type } from 'typebox';
import { Value } from 'typebox/value';
import { ThawError } from './errors.ts';
import { apiKeyPattern } from './ids.ts';

const text = (description: string, options: object = {}) =>
  Type.String({ minLength: 1, maxLength: 4096, description, ...options });
const integer = (description: string, minimum: number, maximum: number, options: object = {}) =>
  Type.Integer({ description, minimum, maximum, ...options });

export const configSchema = Type.Object(
  {
    dataDir: text('Where snapshots, state, logs and the API key are kept.', {
      shown: '`.thaw` in the project',
    }),
    host: text('Address the public port listens on.', { default: '127.0.0.1' }),
    port: integer('Public port: functions, sandboxes, management. 0 picks a free one.', 0, 65535, {
      default: 8080,
    }),
    adminPort: integer(
      'Port of metrics and health checks, always on 127.0.0.1. 0 picks a free one.',
      0,
      65535,
      {
        default: 8081,
      },
    ),
    hypervisor: Type.Union(
      [Type.Literal('auto'), Type.Literal('cloud-hypervisor'), Type.Literal('qemu'), Type.Literal('process')],
      {
        description:
          'How VMs are run. `auto` boots the guest once to see whether KVM works, and prefers Cloud Hypervisor where its binary is. `process` isolates nothing: tests only.',
        default: 'auto',
      },
    ),
    cloudHypervisor: Type.Optional(
      text('Cloud Hypervisor binary, v53 or newer; a static one can be confined best.', {
        shown: '`cloud-hypervisor` on the path',
      }),
    ),
    strict: Type.Boolean({
      description: 'Refuses to start unless every hardening measure of the hypervisor is in force.',
      default: false,
    }),
    store: Type.Optional(
      text('Where snapshots are kept for other nodes and for later: `file:///DIR` or `s3://BUCKET/PREFIX`.', {
        pattern: '^(file:///|s3://[a-z0-9])',
        shown: 'none: snapshots stay in the data directory',
      }),
    ),
    s3Endpoint: Type.Optional(
      text(
        'Address of an S3 server other than AWS. Credentials come from the variables that AWS programs read.',
        {
          pattern: '^https?://',
        },
      ),
    ),
    clusterKey: Type.Optional(
      text('Key that signs what is in the store, 64 hex digits; the same on every node that shares it.', {
        pattern: '^[0-9a-f]{64}$',
        secret: true,
        shown: 'made at first start, in `cluster-key` in the data directory',
      }),
    ),
    redisUrl: Type.Optional(
      text('Redis to share state through.', {
        pattern: '^rediss?://',
        secret: true,
        shown: 'a private server in the data directory',
      }),
    ),
    apiKey: Type.Optional(
      text('API key to admit at start, and to send from the CLI.', {
        pattern: apiKeyPattern.source,
        secret: true,
        shown: 'made at first start, in `api-key` in the data directory',
      }),
    ),
    cacheDir: Type.Optional(
      text('Where the guest image is kept, so that several data directories share it.', {
        shown: '`~/.cache/thaw`',
      }),
    ),
    maxMemoryMb: Type.Optional(
      integer('Guest memory all VMs together may have, MiB.', 256, 16_777_216, {
        shown: "half of the host's memory",
      }),
    ),
    maxVms: integer('VMs at one time.', 1, 100_000, { default: 64 }),
    maxConcurrentRestores: Type.Optional(
      integer('Restores at one time.', 1, 1_024, { shown: 'one for each CPU, at least 2' }),
    ),
    maxBundleBytes: integer('Largest function upload, bytes.', 1_024, 17_179_869_184, {
      default: 268_435_456,
    }),
    baseMemoryMb: integer('Memory of a sandbox of the `base` template, MiB.', 128, 16_384, { default: 256 }),
    baseWarm: integer('Sandboxes of the `base` template kept warm.', 0, 256, { default: 1 }),
    minFreeDiskMb: integer('Free disk space without which Thaw does not start, MiB.', 0, 16_777_216, {
      default: 2_048,
    }),
    evictAbovePercent: integer(
      'How full the disk of the data directory may get, percent. Above it local copies of snapshots that are in the store, and caches, are removed, least recently used first. 100: never.',
      1,
      100,
      { default: 85 },
    ),
    evictToPercent: integer('How full it may be when that ends, percent.', 0, 99, { default: 80 }),
    drainTimeoutMs: integer('How long a shutdown waits for requests in work, milliseconds.', 0, 3_600_000, {
      default: 30_000,
    }),
    logLevel: Type.Union(
      [Type.Literal('debug'), Type.Literal('info'), Type.Literal('warn'), Type.Literal('error')],
      {
        description: 'What goes into `thaw.log` in the data directory.',
        default: 'info',
      },
    ),
    egress: Type.Union([Type.Literal('auto'), Type.Literal('closed')], {
      description:
        'Whether sandboxes on QEMU may reach the internet. `auto`: yes, filtered, where Thaw is root and nftables is there.',
      default: 'auto',
    }),
    resolver: Type.String({
      description: 'IPv4 address that answers the name queries of sandboxes that may reach the internet.',
      pattern: '^([0-9]{1,3}\\.){3}[0-9]{1,3}$',
      default: '1.1.1.1',
    }),
    domain: Type.Optional(
      text(
        'Domain of the sandboxes: clients reach a port of one at `PORT-SANDBOX.DOMAIN`. May end in `:PORT`.',
        {
          pattern: '^[a-z0-9-]+(\\.[a-z0-9-]+)*(:[1-9][0-9]{0,4})?$',
          maxLength: 200,
        },
      ),
    ),
    tlsCert: Type.Optional(
      text(
        'Certificate chain (PEM) of `DOMAIN` and `*.DOMAIN`: opens a TLS port. Read again when it changes.',
      ),
    ),
    tlsKey: Type.Optional(text('Private key (PEM) of the certificate; only its owner may read it.')),
    tlsPort: integer(
      'TLS port, beside the public one, for the same requests. 0 picks a free one.',
      0,
      65535,
      {
        default: 8443,
      },
    ),
    trustForwarded: Type.Boolean({
      description: 'Behind a proxy of your own: incoming X-Forwarded-* headers are extended, not replaced.',
      default: false,
    }),
  },
  { additionalProperties: false },
);

export type Config = Static<typeof configSchema>;
export type ConfigKey = keyof Config;
export type ConfigSource = 'flag' | 'environment' | 'file' | 'default';

interface KeyFacts {
  key: ConfigKey;
  /** Name in the environment. */
  env: string;
  /** Absent for secrets: arguments can be read by every user of the host. */
  flag: string | undefined;
  secret: boolean;
  description: string;
  /** What the reference page shows as the default. */
  shown: string;
  schema: TSchema;
}

type Annotated = TSchema & { description?: string; shown?: string; secret?: boolean; default?: unknown };

const words = (key: string): string[] => key.split(/(?=[A-Z])/).map((word) => word.toLowerCase());

/** Every key in the order of the schema. */
export const configKeys: readonly KeyFacts[] = Object.entries(configSchema.properties).map(
  ([key, schema]) => {
    const { description = '', shown, secret = false, default: standard } = schema as Annotated;
    return {
      key: key as ConfigKey,
      env: `THAW_${words(key).join('_').toUpperCase()}`,
      flag: secret ? undefined : `--${words(key).join('-')}`,
      secret,
      description,
      shown: shown ?? (standard === undefined ? 'none' : `\`${standard}\``),
      schema,
    };
  },
);

export interface ConfigInput {
  /** By key, as given on the command line; undefined: not given. */
  flags?: Partial<Record<ConfigKey, string | undefined>>;
  env: Record<string, string | undefined>;
  /** The parsed configuration file and its path. */
  file?: { path: string; value: unknown } | undefined;
  /** Defaults that depend on where the program is. */
  defaults: { dataDir: string };
}

export interface ResolvedConfig {
  config: Config;
  sources: Partial<Record<ConfigKey, ConfigSource>>;
}

/** @throws ThawError `bad-config` naming the key, where it stands and what was expected. */
export function resolveConfig(input: ConfigInput): ResolvedConfig {
  const { flags = {}, env, file, defaults } = input;
  refuseUnknownVariables(env);
  const fileValues = file === undefined ? {} : fileObject(file);
  const values: Record<string, unknown> = {};
  const sources: ResolvedConfig['sources'] = {};
  for (const facts of configKeys) {
    const found = firstGiven(facts, flags[facts.key], env[facts.env], fileValues[facts.key], file?.path);
    const fallback =
      (facts.schema as Annotated).default ?? (facts.key === 'dataDir' ? defaults.dataDir : undefined);
    const value = found?.value ?? fallback;
    if (value === undefined) continue;
    values[facts.key] = value;
    sources[facts.key] = found?.source ?? 'default';
  }
  const config = values as Config;
  refuseHalfOfAPair(config);
  refuseCrossedMarks(config);
  return { config, sources };
}

function refuseCrossedMarks({ evictAbovePercent: above, evictToPercent: to }: Config): void {
  if (to >= above)
    throw new ThawError(
      'bad-config',
      `THAW_EVICT_TO_PERCENT (${to}) must be below THAW_EVICT_ABOVE_PERCENT (${above})`,
    );
}

function refuseHalfOfAPair({ tlsCert, tlsKey }: Config): void {
  if ((tlsCert === undefined) !== (tlsKey === undefined))
    throw new ThawError('bad-config', 'THAW_TLS_CERT and THAW_TLS_KEY go together: one of them is not set');
}

function firstGiven(
  facts: KeyFacts,
  flag: string | undefined,
  variable: string | undefined,
  fileValue: unknown,
  filePath: string | undefined,
): { value: unknown; source: ConfigSource } | undefined {
  if (flag !== undefined)
    return { value: checked(facts, fromText(facts, flag), facts.flag!), source: 'flag' };
  if (variable !== undefined)
    return { value: checked(facts, fromText(facts, variable), facts.env), source: 'environment' };
  if (fileValue !== undefined)
    return { value: checked(facts, fileValue, `${filePath}: ${facts.key}`), source: 'file' };
  return undefined;
}

function fromText({ schema }: KeyFacts, given: string): unknown {
  if (Type.IsInteger(schema) && /^-?[0-9]{1,15}$/.test(given)) return Number(given);
  if (Type.IsBoolean(schema) && (given === 'true' || given === 'false')) return given === 'true';
  return given;
}

function checked(facts: KeyFacts, value: unknown, where: string): unknown {
  if (Value.Check(facts.schema, value)) return value;
  const got = facts.secret ? 'a value that is none' : JSON.stringify(value)?.slice(0, 80);
  throw new ThawError('bad-config', `${where}: expected ${expectedOf(facts.schema)}, got ${got}`);
}

function expectedOf(schema: TSchema): string {
  const { minimum, maximum, pattern, anyOf } = schema as {
    minimum?: number;
    maximum?: number;
    pattern?: string;
    anyOf?: { const: string }[];
  };
  if (anyOf)
    return anyOf
      .map((choice) => choice.const)
      .join(', ')
      .replace(/, ([^,]*)$/, ' or $1');
  if (Type.IsInteger(schema)) return `a whole number from ${minimum} to ${maximum}`;
  if (Type.IsBoolean(schema)) return 'true or false';
  return pattern === undefined ? 'a text that is not empty' : `a text that matches ${pattern}`;
}

/** Of the SDKs: a shell that talks to a server may also start one. */
const clientVariables = ['THAW_API_URL'];

function refuseUnknownVariables(env: ConfigInput['env']): void {
  const known = [...configKeys.map((facts) => facts.env), ...clientVariables];
  for (const name of Object.keys(env))
    if (name.startsWith('THAW_') && !known.includes(name))
      throw new ThawError('bad-config', `${name} is no variable of Thaw${suggestion(name, known)}`);
}

function fileObject({ path, value }: { path: string; value: unknown }): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new ThawError('bad-config', `${path}: expected a JSON object`);
  const known: string[] = configKeys.map((facts) => facts.key);
  for (const key of Object.keys(value))
    if (!known.includes(key))
      throw new ThawError('bad-config', `${path}: ${key} is no key of Thaw${suggestion(key, known)}`);
  return value as Record<string, unknown>;
}

/** "; did you mean X?" for a name one or two slips away from a known one. */
export function suggestion(name: string, known: readonly string[]): string {
  const nearest = known
    .map((candidate) => ({ candidate, distance: editDistance(name, candidate) }))
    .sort((a, b) => a.distance - b.distance)[0];
  return nearest !== undefined && nearest.distance <= 2 ? `; did you mean ${nearest.candidate}?` : '';
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (const [i, letter] of [...a].entries()) {
    const next = [i + 1];
    for (const [j, other] of [...b].entries())
      next.push(Math.min(next[j]! + 1, row[j + 1]! + 1, row[j]! + (letter === other ? 0 : 1)));
    row = next;
  }
  return row.at(-1)!;
}

/** The values for people: a secret is shown as being there. */
export function shownConfig({
  config,
  sources,
}: ResolvedConfig): { key: ConfigKey; value: unknown; source: string }[] {
  return configKeys.map(({ key, secret }) => ({
    key,
    value: config[key] === undefined ? null : secret ? '(set)' : config[key],
    source: sources[key] ?? 'default',
  }));
}

export function renderConfigPage(): string {
  const rows = configKeys.map(({ key, env, flag, shown, description }) => {
    const names = [`\`${env}\``, flag === undefined ? '' : `\`${flag}\``, `\`${key}\``];
    return `| ${names.join(' | ')} | ${shown} | ${description} |`;
  });
  return `# Configuration

Made from \`shared/config.ts\` by \`thaw config page\`; a test holds them equal.

A value comes from a flag, else from the environment, else from \`thaw.config.json\` in the data directory (or the file that
\`--config\` names), else from its default. Unknown keys are errors. Secrets have no flag, because arguments can be read
by every user of the host. \`thaw config print\` shows each value and where it comes from.

| variable | flag | key in the file | default | what it is |
|---|---|---|---|---|
${rows.join('\n')}
`;
}

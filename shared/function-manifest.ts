// Owns thaw.json: its schema, defaults and error messages, and the same for a function that is made from a snapshot.
// Used by the CLI before upload and by the gateway after.
// Invariant: what passes `parseFunctionManifest` or `manifestOfEndpoint` needs no further checks anywhere.
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import { agentPort } from './agent-protocol.ts';
import { ThawError } from './errors.ts';
import { functionNamePattern } from './ids.ts';

const argv = Type.Array(Type.String({ minLength: 1, maxLength: 4096 }), { minItems: 1, maxItems: 64 });

export const functionManifestSchema = Type.Object(
  {
    name: Type.String({ pattern: functionNamePattern.source }),
    runtime: Type.Union([Type.Literal('node'), Type.Literal('python'), Type.Literal('command')]),
    entry: Type.Optional(Type.String({ pattern: '^(?!/)(?!.*(^|/)\\.\\.(/|$))[A-Za-z0-9._/-]{1,255}$' })),
    command: Type.Optional(argv),
    build: Type.Optional(argv),
    port: Type.Optional(Type.Integer({ minimum: 1024, maximum: 65535 })),
    memoryMb: Type.Optional(Type.Integer({ minimum: 128, maximum: 16384 })),
    vcpus: Type.Optional(Type.Integer({ minimum: 1, maximum: 32 })),
    env: Type.Optional(
      Type.Record(
        Type.String({ pattern: '^[A-Za-z_][A-Za-z0-9_]{0,127}$' }),
        Type.String({ maxLength: 32768 }),
      ),
    ),
    concurrency: Type.Optional(Type.Integer({ minimum: 1, maximum: 256 })),
    recycle: Type.Optional(Type.Union([Type.Literal('reuse'), Type.Literal('fresh')])),
    warm: Type.Optional(
      Type.Object(
        { min: Type.Integer({ minimum: 0, maximum: 256 }), max: Type.Integer({ minimum: 1, maximum: 1024 }) },
        { additionalProperties: false },
      ),
    ),
    timeoutMs: Type.Optional(Type.Integer({ minimum: 1, maximum: 900_000 })),
    prime: Type.Optional(Type.Array(Type.String({ pattern: '^/', maxLength: 1024 }), { maxItems: 16 })),
    auth: Type.Optional(Type.Union([Type.Literal('public'), Type.Literal('key')])),
  },
  { additionalProperties: false },
);

export type FunctionManifest = Static<typeof functionManifestSchema>;

/** A manifest with every default filled in. */
export type ResolvedManifest = Required<Omit<FunctionManifest, 'entry' | 'command' | 'build' | 'port'>> &
  Pick<FunctionManifest, 'entry' | 'command' | 'build' | 'port'>;

export const manifestDefaults = {
  memoryMb: 256,
  vcpus: 1,
  env: {},
  concurrency: 1,
  recycle: 'reuse',
  warm: { min: 1, max: 8 },
  timeoutMs: 30_000,
  prime: ['/'],
  auth: 'public',
} as const satisfies Partial<FunctionManifest>;

/** @throws ThawError `bad-manifest` naming the key and what was expected. */
export function parseFunctionManifest(value: unknown): ResolvedManifest {
  if (!Value.Check(functionManifestSchema, value)) {
    const first = Value.Errors(functionManifestSchema, value)[0];
    const extra = (first?.params as { additionalProperties?: string[] } | undefined)?.additionalProperties;
    const key = extra
      ? extra.join(', ')
      : (first?.instancePath ?? '').replace(/^\//, '').replaceAll('/', '.') || '(root)';
    throw new ThawError('bad-manifest', `thaw.json: ${key}: ${first?.message ?? 'invalid'}`);
  }
  const manifest = { ...manifestDefaults, ...value } as ResolvedManifest;
  if (manifest.runtime === 'command' && !manifest.command)
    throw new ThawError(
      'bad-manifest',
      'thaw.json: command: expected an array of strings when runtime is "command"',
    );
  if (manifest.warm.min > manifest.warm.max)
    throw new ThawError('bad-manifest', 'thaw.json: warm.min: expected a number not above warm.max');
  return manifest;
}

const { command, memoryMb, vcpus, env, concurrency, recycle, warm, timeoutMs, auth } =
  functionManifestSchema.properties;

/** Body of `POST /v1/functions`. */
export const endpointBodySchema = Type.Object(
  {
    name: Type.String({ maxLength: 128 }),
    /** Id or name. */
    fromSnapshot: Type.String({ minLength: 1, maxLength: 128 }),
    /** Starts the server; absent: one listens already. */
    command,
    /** Where the server answers, inside the sandbox. */
    port: Type.Integer({ minimum: 1, maximum: 65535 }),
    prime: Type.Optional(
      Type.Array(Type.String({ pattern: '^/', maxLength: 1024 }), { minItems: 1, maxItems: 16 }),
    ),
    ...{ memoryMb, vcpus, env, concurrency, recycle, warm, timeoutMs, auth },
  },
  { additionalProperties: false },
);

export type EndpointBody = Static<typeof endpointBodySchema>;

/** Its name is checked like one in an address. @throws ThawError `bad-request` naming the key and what was expected. */
export function manifestOfEndpoint(
  { fromSnapshot: _, ...wanted }: EndpointBody,
  shape: { memoryMb: number; vcpus: number },
): ResolvedManifest & { port: number } {
  if (wanted.port === agentPort)
    throw new ThawError('bad-request', `port: ${agentPort} is Thaw's own inside a sandbox`);
  if (wanted.env && !wanted.command)
    throw new ThawError(
      'bad-request',
      'env: a server that runs already keeps its environment; give a command',
    );
  for (const key of ['memoryMb', 'vcpus'] as const)
    if (wanted[key] !== undefined && wanted[key] !== shape[key])
      throw new ThawError('bad-request', `${key}: the snapshot has ${shape[key]}, which cannot be changed`);
  const { memoryMb, vcpus } = shape;
  const manifest = { ...manifestDefaults, ...wanted, runtime: 'command', memoryMb, vcpus } as const;
  if (manifest.warm.min > manifest.warm.max)
    throw new ThawError('bad-request', 'warm.min: expected a number not above warm.max');
  return manifest as ResolvedManifest & { port: number };
}

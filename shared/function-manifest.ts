// Owns thaw.json: its schema, defaults and error messages. Used by the CLI before upload and by the gateway after.
// Invariant: what passes `parseFunctionManifest` needs no further checks anywhere.
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
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

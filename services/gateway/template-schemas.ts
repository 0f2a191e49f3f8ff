// Owns the shapes of E2B's template requests. Unknown fields pass: newer clients send more than we know.
import { type Static, Type } from 'typebox';
import { functionManifestSchema } from '../../shared/function-manifest.ts';
import { tagPattern } from './template-names.ts';

const { memoryMb, vcpus } = functionManifestSchema.properties;
const tag = Type.String({ pattern: tagPattern.source });
const tags = Type.Array(tag, { maxItems: 32 });
const text = Type.String({ maxLength: 65_536 });
const nullable = <T extends Parameters<typeof Type.Union>[0][number]>(schema: T) =>
  Type.Optional(Type.Union([schema, Type.Null()]));

export const requestBuildBody = Type.Object({
  name: nullable(Type.String({ minLength: 1, maxLength: 128 })),
  alias: nullable(Type.String({ minLength: 1, maxLength: 128 })),
  tags: nullable(tags),
  cpuCount: nullable(vcpus),
  memoryMB: nullable(memoryMb),
  minFreeDiskMb: nullable(Type.Integer({ minimum: 0 })),
});
export type RequestBuildBody = Static<typeof requestBuildBody>;

const step = Type.Object({
  type: Type.String({ maxLength: 64 }),
  args: nullable(Type.Array(text, { maxItems: 1_024 })),
  filesHash: nullable(Type.String({ pattern: '^[0-9a-f]{64}$' })),
});

export const startBuildBody = Type.Object({
  fromImage: nullable(text),
  fromTemplate: nullable(text),
  fromImageRegistry: nullable(Type.Unknown()),
  startCmd: nullable(text),
  readyCmd: nullable(text),
  steps: nullable(Type.Array(step, { maxItems: 1_000 })),
});
export type StartBuildBody = Static<typeof startBuildBody>;

export const assignTagsBody = Type.Object({
  target: text,
  tags: Type.Array(tag, { minItems: 1, maxItems: 32 }),
});
export type AssignTagsBody = Static<typeof assignTagsBody>;

export const removeTagsBody = Type.Object({
  name: text,
  tags: Type.Array(tag, { minItems: 1, maxItems: 32 }),
});
export type RemoveTagsBody = Static<typeof removeTagsBody>;

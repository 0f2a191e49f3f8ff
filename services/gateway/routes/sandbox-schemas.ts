// Owns the shapes of E2B control-plane requests. Unknown fields pass: newer clients send more than we know.
import { type Static, Type } from 'typebox';
import { snapshotNamePattern } from '../../../shared/ids.ts';
import { networkConfig } from '../network-config.ts';

const text = Type.String({ maxLength: 4_096 });
const name = Type.String({ minLength: 1, maxLength: 256 });
const seconds = Type.Integer({ minimum: 0 });
const nullable = <T extends ReturnType<typeof Type.Object> | ReturnType<typeof Type.Unknown>>(schema: T) =>
  Type.Optional(Type.Union([schema, Type.Null()]));

export const createSandboxBody = Type.Object({
  templateID: Type.String({ pattern: snapshotNamePattern.source }),
  timeout: Type.Optional(seconds),
  metadata: Type.Optional(Type.Union([Type.Record(name, text, { maxProperties: 128 }), Type.Null()])),
  envVars: Type.Optional(
    Type.Union([
      Type.Record(
        Type.String({ pattern: '^[A-Za-z_][A-Za-z0-9_]{0,255}$' }),
        Type.String({ maxLength: 32_768 }),
        { additionalProperties: false, maxProperties: 512 },
      ),
      Type.Null(),
    ]),
  ),
  autoPause: Type.Optional(Type.Boolean()),
  autoPauseMemory: Type.Optional(Type.Boolean()),
  autoResume: nullable(Type.Object({ enabled: Type.Optional(Type.Boolean()) })),
  allow_internet_access: Type.Optional(Type.Union([Type.Boolean(), Type.Null()])),
  network: Type.Optional(Type.Union([networkConfig, Type.Null()])),
  volumeMounts: Type.Optional(Type.Union([Type.Array(Type.Unknown()), Type.Null()])),
  mcp: nullable(Type.Unknown()),
  iam: nullable(Type.Unknown()),
});
export type CreateSandboxBody = Static<typeof createSandboxBody>;

export const connectSandboxBody = Type.Object({
  timeout: Type.Optional(seconds),
  memory: Type.Optional(Type.Boolean()),
});
export type ConnectSandboxBody = Static<typeof connectSandboxBody>;

export const setTimeoutBody = Type.Object({ timeout: seconds });
export type SetTimeoutBody = Static<typeof setTimeoutBody>;

export const refreshBody = Type.Object({ duration: Type.Optional(seconds) });
export type RefreshBody = Static<typeof refreshBody>;

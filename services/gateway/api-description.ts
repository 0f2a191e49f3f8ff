// Owns what is said about Thaw's own routes to people and programs: one row a route, with the shapes of its answers.
// Refuses to own what routes check (their own schemas) and the document (openapi.ts).
// Invariant: every route under /v1 and /health has a row and every row a route; a test holds answers to these shapes.
import { type TSchema, Type } from 'typebox';
import { type ErrorCode, errorKinds } from '../../shared/errors.ts';
import { functionManifestSchema } from '../../shared/function-manifest.ts';
import { functionNamePattern, snapshotIdPattern, versionPattern } from '../../shared/ids.ts';

export interface RouteDescription {
  /** What generated clients call it. */
  id: string;
  tag: 'functions' | 'snapshots' | 'service';
  summary: string;
  description?: string;
  /** False: needs no API key. */
  key?: false;
  params?: Record<string, TSchema>;
  headers?: Record<string, TSchema>;
  /** Of a body that is not JSON. */
  bodyType?: string;
  /** By status; undefined for an answer without a body. */
  answers: Record<number, { description: string; body?: TSchema; type?: string }>;
  /** Failures of its own, besides those of every route. */
  failures?: ErrorCode[];
}

const text = Type.String();
const count = Type.Integer({ minimum: 0 });
const moment = Type.String({ format: 'date-time' });
const orNull = (schema: TSchema) => Type.Union([schema, Type.Null()]);
const ref = (name: keyof typeof sharedShapes) => Type.Unsafe({ $ref: `${name}#` });
const words = (...values: string[]) => Type.Unsafe<string>({ type: 'string', enum: values });

const { env: _env, ...manifestWithoutEnv } = functionManifestSchema.properties;
const versionState = words('building', 'ready', 'failed', 'retired');

/** Shapes that several routes answer with. */
export const sharedShapes = {
  Problem: Type.Object(
    {
      type: text,
      title: text,
      status: Type.Integer(),
      detail: text,
      code: words(...Object.keys(errorKinds)),
      retryable: Type.Boolean({ description: 'whether the same request may succeed if it is sent again' }),
      requestId: text,
    },
    { description: 'RFC 9457 problem details; the header X-Thaw-Error repeats the code' },
  ),
  FunctionVersion: Type.Object({
    name: text,
    version: Type.Integer({ minimum: 1 }),
    state: versionState,
    manifest: Type.Object(
      {
        ...manifestWithoutEnv,
        env: Type.Array(text, { description: 'names only: values are often secrets' }),
      },
      { description: 'as deployed, with every default filled in' },
    ),
    bundle: orNull(Type.Object({ sha256: text, sizeBytes: count })),
    fromSnapshot: orNull(
      Type.String({ description: 'of one that was made from a snapshot; it need not exist any more' }),
    ),
    snapshotId: orNull(text),
    createdAt: moment,
    finishedAt: orNull(moment),
    error: orNull(Type.Object({ code: text, detail: text, output: text })),
  }),
  Function: Type.Object({
    name: text,
    url: Type.String({ description: 'where it answers, on this server' }),
    createdAt: moment,
    currentVersion: orNull(Type.Integer()),
    current: orNull(Type.Unsafe({ $ref: 'FunctionVersion#' })),
    versions: Type.Array(Type.Object({ version: Type.Integer(), state: versionState })),
    pool: Type.Optional(Type.Record(text, count, { description: 'VMs of the current version, by state' })),
  }),
  Snapshot: Type.Object({
    snapshotId: Type.String({ pattern: snapshotIdPattern.source }),
    names: Type.Array(text),
    kind: words('template', 'function', 'sandbox'),
    sandboxId: orNull(Type.String({ description: 'the sandbox it was taken of' })),
    parent: orNull(text),
    children: Type.Array(text),
    clones: Type.Integer({ minimum: 0, description: 'VMs that were restored from it and run' }),
    memoryMb: count,
    vcpus: count,
    sizeBytes: Type.Integer({ minimum: 0, description: 'guest memory that it stands for' }),
    uniqueBytes: Type.Integer({ minimum: 0, description: 'room that it takes beyond what it shares' }),
    here: Type.Boolean({ description: 'false: it is in the store only, and comes when it is needed' }),
    stored: words('yes', 'waiting', 'refused', 'no'),
    storedBytes: orNull(count),
    dirtyPages: orNull(count),
    pauseMs: Type.Record(text, Type.Number(), {
      description: 'how long its sandbox stood still, in milliseconds: by stage, and in all (`total`)',
    }),
    compatibility: Type.Record(text, text, { description: 'what a host must be to restore it' }),
    createdAt: moment,
    workingSet: Type.Optional(
      orNull(
        Type.Object(
          { pages: count, clones: count },
          {
            description:
              'of one that is inspected: pages that clones touch before their first answer, learnt of so many',
          },
        ),
      ),
    ),
  }),
};

const verifiedCopy = Type.Object({
  copy: words('local', 'store'),
  units: words('files', 'frames'),
  checked: count,
  bytes: Type.Integer({ minimum: 0, description: 'that were read' }),
  damaged: Type.Array(Type.Object({ what: text, reason: text })),
});

const functionName = { name: Type.String({ pattern: functionNamePattern.source }) };
const functionVersion = { ...functionName, version: Type.String({ pattern: versionPattern.source }) };
const snapshotWord = { id: Type.String({ description: 'its id or one of its names' }) };
const waiting = {
  prefer: Type.Optional(
    Type.String({ description: '`wait=SECONDS`: answer when the build has ended, or after that time' }),
  ),
};
const deployed = {
  201: { description: 'it is ready and serves', body: ref('FunctionVersion') },
  202: { description: 'it is being built: see Location', body: ref('FunctionVersion') },
};
const gone = { description: 'it is gone' };

export const routeDescriptions: Record<string, RouteDescription> = {
  'GET /health': {
    id: 'getHealth',
    tag: 'service',
    summary: 'Whether the server answers',
    key: false,
    answers: {
      200: { description: 'it does', body: Type.Object({ status: Type.Literal('ok'), version: text }) },
    },
  },
  'GET /v1/openapi.json': {
    id: 'getOpenapi',
    tag: 'service',
    summary: 'This document',
    key: false,
    answers: { 200: { description: 'OpenAPI 3.1', body: Type.Object({ openapi: text }) } },
  },
  'GET /v1/functions': {
    id: 'listFunctions',
    tag: 'functions',
    summary: 'All functions',
    answers: {
      200: { description: 'by name', body: Type.Object({ functions: Type.Array(ref('Function')) }) },
    },
  },
  'POST /v1/functions': {
    id: 'createFunctionFromSnapshot',
    tag: 'functions',
    summary: "Make a function of a sandbox's snapshot: the server in it answers",
    headers: waiting,
    answers: deployed,
    failures: [
      ...(['bad-request', 'bad-name', 'template-not-found', 'conflict', 'build-failed'] as const),
      ...(['start-failed', 'overloaded', 'no-space'] as const),
    ],
  },
  'GET /v1/functions/:name': {
    id: 'getFunction',
    tag: 'functions',
    summary: 'One function',
    params: functionName,
    answers: { 200: { description: 'as it stands now', body: ref('Function') } },
    failures: ['bad-name', 'function-not-found'],
  },
  'PATCH /v1/functions/:name': {
    id: 'changeFunction',
    tag: 'functions',
    summary: 'Change how it is served, without a build',
    description: '`version` makes another ready version serve.',
    params: functionName,
    answers: { 200: { description: 'as it is now', body: ref('Function') } },
    failures: ['bad-request', 'bad-name', 'function-not-found'],
  },
  'DELETE /v1/functions/:name': {
    id: 'removeFunction',
    tag: 'functions',
    summary: 'Remove a function with all its versions',
    params: functionName,
    answers: { 204: gone },
    failures: ['bad-name', 'function-not-found', 'conflict'],
  },
  'GET /v1/functions/:name/versions': {
    id: 'listVersions',
    tag: 'functions',
    summary: 'All versions of a function, newest first',
    params: functionName,
    answers: {
      200: {
        description: 'newest first',
        body: Type.Object({ versions: Type.Array(ref('FunctionVersion')) }),
      },
    },
    failures: ['bad-name', 'function-not-found'],
  },
  'POST /v1/functions/:name/versions': {
    id: 'deployVersion',
    tag: 'functions',
    summary: 'Deploy a new version',
    description:
      "The body is the function's directory as a tar or tar.gz archive, with a thaw.json in it or by convention. " +
      'It serves as soon as it is ready; a failure leaves the version before it serving.',
    params: functionName,
    headers: waiting,
    bodyType: 'application/x-tar',
    answers: deployed,
    failures: [
      ...(['bad-name', 'bad-bundle', 'bad-manifest', 'conflict', 'body-too-large'] as const),
      ...(['build-failed', 'start-failed', 'overloaded', 'no-space'] as const),
    ],
  },
  'GET /v1/functions/:name/versions/:version': {
    id: 'getVersion',
    tag: 'functions',
    summary: 'One version of a function',
    params: functionVersion,
    answers: { 200: { description: 'as it stands now', body: ref('FunctionVersion') } },
    failures: ['bad-name', 'function-not-found'],
  },
  'GET /v1/functions/:name/logs': {
    id: 'followLogs',
    tag: 'functions',
    summary: 'What a function writes, as it comes',
    description:
      'Server-sent events named `log`: the last lines first, then new ones until the client leaves.',
    params: functionName,
    answers: { 200: { description: 'a stream without an end', body: text, type: 'text/event-stream' } },
    failures: ['bad-name', 'function-not-found'],
  },
  'POST /v1/functions/:name/invocations': {
    id: 'invokeLater',
    tag: 'functions',
    summary: 'Call a function without waiting for its answer',
    params: functionName,
    answers: {},
    failures: ['bad-name', 'not-implemented'],
  },
  'GET /v1/invocations/:id': {
    id: 'getInvocation',
    tag: 'functions',
    summary: 'How a call without waiting went',
    params: { id: text },
    answers: {},
    failures: ['not-implemented'],
  },
  'GET /v1/snapshots': {
    id: 'listSnapshots',
    tag: 'snapshots',
    summary: 'All snapshots, newest first',
    answers: {
      200: { description: 'newest first', body: Type.Object({ snapshots: Type.Array(ref('Snapshot')) }) },
    },
  },
  'GET /v1/snapshots/:id': {
    id: 'getSnapshot',
    tag: 'snapshots',
    summary: 'One snapshot',
    params: snapshotWord,
    answers: { 200: { description: 'what it costs and what it fits to', body: ref('Snapshot') } },
    failures: ['template-not-found'],
  },
  'GET /v1/snapshots/:id/verification': {
    id: 'verifySnapshot',
    tag: 'snapshots',
    summary: 'Read all of a snapshot and say whether it is whole',
    params: snapshotWord,
    answers: {
      200: {
        description: 'each copy of it: on this node, and in the store',
        body: Type.Object({ snapshotId: text, copies: Type.Array(verifiedCopy) }),
      },
    },
    failures: ['template-not-found', 'store-unavailable'],
  },
  'DELETE /v1/snapshots/:id': {
    id: 'removeSnapshot',
    tag: 'snapshots',
    summary: 'Remove a snapshot; clones and children keep what they need',
    params: snapshotWord,
    answers: { 204: gone },
    failures: ['template-not-found', 'conflict'],
  },
};

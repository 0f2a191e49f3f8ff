// Owns the OpenAPI 3.1 document of Thaw's own routes: made from the routes as they are registered, their own schemas and
// their descriptions. Refuses to own what is said (api-description.ts) and E2B's routes, whose contract is E2B's.
// Invariant: a route that is not described is still in the document; nothing here changes how a route works.
import swagger, { type FastifyDynamicSwaggerOptions } from '@fastify/swagger';
import fastify, { type FastifyInstance, type FastifySchema, type RouteOptions } from 'fastify';
import { Type } from 'typebox';
import { type ErrorCode, errorKinds } from '../../shared/errors.ts';
import { problemContentType } from '../../shared/problem.ts';
import { type RouteDescription, routeDescriptions, sharedShapes } from './api-description.ts';

/** What any route with an API key may answer. */
const everywhere: ErrorCode[] = ['unauthenticated', 'internal', 'shutting-down'];
const ownPaths = /^\/(v1\/|health$)/;

const options: FastifyDynamicSwaggerOptions = {
  openapi: {
    openapi: '3.1.0',
    info: {
      title: 'Thaw',
      version: '1',
      description:
        'Functions and snapshots of a Thaw server. Sandboxes and templates speak the E2B contract on the same port, ' +
        'and deployed functions answer under /fn/NAME/. Failures are problem details; docs/errors.md lists their codes.',
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [{ url: '/' }],
    tags: [
      { name: 'functions', description: 'deployed code and its versions' },
      { name: 'snapshots', description: 'saved VMs' },
      { name: 'service', description: 'the server itself' },
    ],
    components: {
      securitySchemes: {
        apiKey: { type: 'apiKey', in: 'header', name: 'X-API-Key' },
        bearer: { type: 'http', scheme: 'bearer' },
      },
    },
    security: [{ apiKey: [] }, { bearer: [] }],
  },
  exposeHeadRoutes: false,
  refResolver: { buildLocalReference: (schema, _base, _fragment, at) => String(schema.$id ?? `def-${at}`) },
  transform: ({ schema, url, route }) => ({ url, schema: describe(schema, url, route) }),
};

/** Registers `routes` and serves their document at /v1/openapi.json. */
export function withOpenapi(routes: (app: FastifyInstance) => void) {
  return async (app: FastifyInstance): Promise<void> => {
    await app.register(swagger, options);
    for (const [name, shape] of Object.entries(sharedShapes)) app.addSchema({ $id: name, ...shape });
    app.get('/v1/openapi.json', async () => app.swagger());
    routes(app);
  };
}

/** The document of routes that nobody will call. */
export async function documentOf(routes: (app: FastifyInstance) => void): Promise<object> {
  const app = fastify();
  app.setValidatorCompiler(() => () => true);
  app.register(withOpenapi(routes));
  const answer = await app.inject('/v1/openapi.json');
  await app.close();
  return answer.json();
}

function describe(schema: FastifySchema | undefined, url: string, { method }: RouteOptions): FastifySchema {
  if (!ownPaths.test(url)) return { hide: true };
  const described = routeDescriptions[`${method} ${url}`];
  return described === undefined ? (schema ?? {}) : { ...schema, ...describedSchema(described) };
}

function describedSchema(row: RouteDescription): FastifySchema {
  const { id, tag, summary, description, key, params, headers, bodyType } = row;
  return {
    tags: [tag],
    summary,
    operationId: id,
    ...(description === undefined ? {} : { description }),
    ...(key === false ? { security: [] } : {}),
    ...(params === undefined ? {} : { params: Type.Object(params) }),
    ...(headers === undefined ? {} : { headers: Type.Object(headers) }),
    ...(bodyType === undefined ? {} : { body: { content: { [bodyType]: { schema: {} } } } }),
    response: { ...answersOf(row), ...failuresOf(row) },
  };
}

function answersOf({ answers }: RouteDescription): Record<string, object> {
  const rows = Object.entries(answers).map(([status, { description, body, type = 'application/json' }]) => [
    status,
    body === undefined
      ? { description, type: 'null' }
      : { description, content: { [type]: { schema: body } } },
  ]);
  return Object.fromEntries(rows);
}

/** Codes of one status stand together, as a document knows statuses only. */
function failuresOf({ failures = [], key }: RouteDescription): Record<string, object> {
  const codes = key === false ? failures : [...failures, ...everywhere];
  const statuses = [...new Set(codes.map((code) => errorKinds[code].status))].sort();
  const rows = statuses.map((status) => {
    const those = codes.filter((code) => errorKinds[code].status === status);
    const description = those.map((code) => `\`${code}\`: ${errorKinds[code].title}`).join('\n\n');
    return [status, { description, content: { [problemContentType]: { schema: { $ref: 'Problem#' } } } }];
  });
  return Object.fromEntries(rows);
}

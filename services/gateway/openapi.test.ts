// The OpenAPI document: valid, complete, served to everybody, and true of what the routes answer.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, describe, it } from 'node:test';
import { Validator } from '@seriousme/openapi-schema-validator';
import { Sandbox } from 'e2b';
import { Check, Errors } from 'typebox/schema';
import { routeDescriptions } from './api-description.ts';
import { type GatewayForTests, startGateway } from './gateway-for-tests.ts';
import { pageUrl } from './reference-pages.ts';

type Json = Record<string, unknown>;
interface Document {
  openapi: string;
  paths: Record<
    string,
    Record<string, { responses: Record<string, { content?: Record<string, { schema: Json }> }> }>
  >;
  components: { schemas: Record<string, Json> };
}

let gateway: GatewayForTests;
let document: Document;
before(async () => {
  gateway = await startGateway();
  document = JSON.parse(await readFile(pageUrl('openapi.json'), 'utf8'));
  await gateway.deployEcho('echo');
  const connection = { apiKey: gateway.apiKey, apiUrl: gateway.url };
  await (await Sandbox.create('base', connection)).createSnapshot({ name: 'saved' });
});
after(() => gateway.close());

/** With every reference in its place, and without room for what is not said. */
function strict(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(strict);
  if (typeof schema !== 'object' || schema === null) return schema;
  const { $ref } = schema as { $ref?: string };
  if ($ref !== undefined)
    return strict(document.components.schemas[$ref.replace('#/components/schemas/', '')]);
  const rows = Object.entries(schema).map(([key, value]) => [key, key === 'enum' ? value : strict(value)]);
  return { ...('properties' in schema ? { additionalProperties: false } : {}), ...Object.fromEntries(rows) };
}

describe('the OpenAPI document', () => {
  it('is valid OpenAPI 3.1', async () => {
    const validator = new Validator();
    assert.deepEqual(await validator.validate(structuredClone({ ...document })), { valid: true });
    assert.equal(validator.version, '3.1');
  });

  it('has every own route, and each is described', () => {
    const routes = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => `${method.toUpperCase()} ${path.replaceAll(/\{(\w+)\}/g, ':$1')}`),
    );
    assert.deepEqual(routes.sort(), Object.keys(routeDescriptions).sort());
  });

  it('is served without a key, as it is committed', async () => {
    const answer = await fetch(`${gateway.url}/v1/openapi.json`);
    assert.equal(answer.status, 200);
    assert.deepEqual(await answer.json(), document);
  });

  for (const [path, url, status] of [
    ['/health', '/health', 200],
    ['/v1/functions', '/v1/functions', 200],
    ['/v1/functions/{name}', '/v1/functions/echo', 200],
    ['/v1/functions/{name}', '/v1/functions/none', 404],
    ['/v1/functions/{name}', '/v1/functions/No', 400],
    ['/v1/functions/{name}/versions', '/v1/functions/echo/versions', 200],
    ['/v1/functions/{name}/versions/{version}', '/v1/functions/echo/versions/1', 200],
    ['/v1/invocations/{id}', '/v1/invocations/x', 501],
    ['/v1/snapshots', '/v1/snapshots', 200],
    ['/v1/snapshots/{id}', '/v1/snapshots/saved', 200],
    ['/v1/snapshots/{id}', '/v1/snapshots/none', 404],
    ['/v1/snapshots/{id}/verification', '/v1/snapshots/saved/verification', 200],
  ] as const)
    it(`tells what GET ${url} answers`, async () => {
      const answer = await gateway.call(url);
      assert.equal(answer.status, status);
      const type = answer.headers.get('content-type')!.split(';')[0]!;
      const schema = document.paths[path]?.get?.responses[status]?.content?.[type]?.schema;
      assert.ok(schema, `${status} ${type} is not described`);
      const body = await answer.json();
      assert.ok(
        Check(strict(schema) as object, body),
        JSON.stringify([Errors(strict(schema) as object, body), body]),
      );
    });
});

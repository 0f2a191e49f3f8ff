// Owns checking JSON bodies by TypeBox schemas at the edge.
// Invariant: a handler with a schema gets exactly what the schema says, or the caller gets `bad-request` naming the field.
import type { FastifySchemaCompiler } from 'fastify';
import type { TSchema } from 'typebox';
import { Value } from 'typebox/value';
import { ThawError } from '../../shared/errors.ts';

export const validatorCompiler: FastifySchemaCompiler<TSchema> = ({ schema }) => {
  return (data: unknown) => {
    if (Value.Check(schema, data)) return { value: data };
    const first = Value.Errors(schema, data)[0];
    const field = (first?.instancePath ?? '').replace(/^\//, '').replaceAll('/', '.');
    const reason = first?.message ?? 'is invalid';
    return {
      error: new ThawError('bad-request', field === '' ? `the body ${reason}` : `${field}: ${reason}`),
    };
  };
};

// Owns turning what fastify and handlers throw into registered errors.
// Invariant: fastify's own failures (bad JSON, body limit) come out under the same codes as ours.
import { ThawError } from '../../shared/errors.ts';
import { asThawError } from '../../shared/problem.ts';

export function fromFramework(error: unknown): ThawError {
  if (error instanceof ThawError) return error;
  const { statusCode, message } = error as { statusCode?: number; message?: string };
  if (statusCode === 413) return new ThawError('body-too-large', 'the body is larger than this route allows');
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500)
    return new ThawError('bad-request', message ?? 'the request is malformed');
  return asThawError(error);
}

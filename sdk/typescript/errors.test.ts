import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type ErrorCode, errorKinds, ThawError as PlatformError } from '../../shared/errors.ts';
import { problemHeadersOf, problemOf } from '../../shared/problem.ts';
import { errorOfResponse, NotFoundError, ThawError } from './errors.ts';

describe('errors', () => {
  it('have a class of their own for every code of docs/errors.md, save the unexpected ones', () => {
    for (const code of Object.keys(errorKinds) as ErrorCode[]) {
      const platform = new PlatformError(code, 'the detail');
      const headers = new Headers(problemHeadersOf(platform, 'request-1'));
      const body = JSON.stringify(problemOf(platform, 'request-1'));
      const error = errorOfResponse(platform.status, headers, body);
      assert.equal(error.constructor === ThawError, platform.status === 500, code);
      assert.equal(error.name, error.constructor.name);
      assert.equal(error.code, code);
      assert.equal(error.message, 'the detail');
      assert.equal(error.retryable, platform.retryable, code);
      assert.equal(error.requestId, 'request-1');
      const isOverload = platform.status === 429 || platform.status === 503;
      assert.equal(error.retryAfterMs, isOverload ? 1_000 : undefined, code);
    }
  });

  it('keep their words whatever the body is', () => {
    const none = new Headers();
    assert.equal(errorOfResponse(500, none, '').message, 'HTTP 500');
    assert.equal(errorOfResponse(500, none, '<html>').message, '<html>');
    assert.equal(errorOfResponse(500, none, 'null').message, 'null');
    assert.equal(
      errorOfResponse(400, none, '{"code":"invalid_argument","message":"m"}').code,
      'invalid-argument',
    );
    assert.equal(errorOfResponse(507, none, '{"code":507,"message":"full"}').code, 'no-space');
  });

  it('call a sandbox that is gone not found, though it is answered 502', () => {
    const headers = new Headers({ 'x-thaw-error': 'sandbox-not-found', 'should-retry': 'false' });
    const error = errorOfResponse(502, headers, '{"code":502,"message":"The sandbox was not found"}');
    assert.ok(error instanceof NotFoundError);
    assert.equal(error.retryable, false);
  });
});

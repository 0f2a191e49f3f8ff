import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isTraceparent, newTraceparent, requestIdOf } from './request-identity.ts';

const trace = '0af7651916cd43dd8448eb211c80319c';
const span = 'b7ad6b7169203331';

describe('request identity', () => {
  it('knows a traceparent', () => {
    for (const good of [`00-${trace}-${span}-01`, `00-${trace}-${span}-00`, `01-${trace}-${span}-01-more`])
      assert.equal(isTraceparent(good), true, good);
    const bad = [
      '',
      `00-${trace}-${span}`,
      `00-${trace}-${span}-01-more`,
      `ff-${trace}-${span}-01`,
      `00-${'0'.repeat(32)}-${span}-01`,
      `00-${trace}-${'0'.repeat(16)}-01`,
      `00-${trace.toUpperCase()}-${span}-01`,
      `00-${trace}-${span}-01\n`,
    ];
    for (const value of bad) assert.equal(isTraceparent(value), false, JSON.stringify(value));
  });

  it('makes ids that are valid and never twice the same', () => {
    const made = new Set<string>();
    for (let count = 0; count < 5_000; count++) {
      const traceparent = newTraceparent();
      assert.ok(isTraceparent(traceparent));
      made.add(traceparent);
      made.add(requestIdOf({}));
    }
    assert.equal(made.size, 10_000);
  });

  it('keeps a valid request id and no other', () => {
    assert.equal(requestIdOf({ 'x-request-id': 'abc_-1' }), 'abc_-1');
    for (const bad of ['', 'a b', 'a\r\nb', 'x'.repeat(65)])
      assert.notEqual(requestIdOf({ 'x-request-id': bad }), bad);
  });
});

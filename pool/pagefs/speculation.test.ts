import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Speculation } from './speculation.ts';

const page = 4096;

describe('speculation', () => {
  it('refuses a read of many pages once', () => {
    const speculation = new Speculation(100 * page);
    assert.equal(speculation.refuses(0, 32 * page), true);
    assert.equal(speculation.refuses(0, 32 * page), false);
  });

  it('never refuses one page, nor a part of what was refused', () => {
    const speculation = new Speculation(100 * page);
    assert.equal(speculation.refuses(5 * page, page), false);
    assert.equal(speculation.refuses(0, 32 * page), true);
    assert.equal(speculation.refuses(8 * page, 4 * page), false);
    assert.equal(speculation.refuses(16 * page, 32 * page), false, 'half of it was refused already');
    assert.equal(speculation.refuses(48 * page, 32 * page), true);
  });
});

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { buildAdminApp } from './admin-app.ts';

const adminOver = (readiness: () => Promise<{ ready: boolean; notes: string[] }>) =>
  buildAdminApp({ gateway: { readiness }, version: '1.2.3' });

describe('the admin port', () => {
  it('says ready, or not and why', async () => {
    const ready = await adminOver(async () => ({ ready: true, notes: [] })).inject('/readyz');
    assert.equal(ready.statusCode, 200);
    const waiting = await adminOver(async () => ({ ready: false, notes: ['draining'] })).inject('/readyz');
    assert.equal(waiting.statusCode, 503);
    assert.deepEqual(waiting.json(), { ready: false, notes: ['draining'] });
    const broken = await adminOver(async () => {
      throw new Error('the node does not answer');
    }).inject('/readyz');
    assert.equal(broken.statusCode, 503);
    assert.deepEqual(broken.json().notes, ['the node does not answer']);
  });

  it('does not wait for a node that hangs, and lives on', async () => {
    const admin = adminOver(() => new Promise(() => {}));
    const [stuck, live] = await Promise.all([admin.inject('/readyz'), admin.inject('/livez')]);
    assert.equal(stuck.statusCode, 503);
    assert.match(stuck.json().notes[0], /longer than 2000 ms/);
    assert.equal(live.statusCode, 200);
  });

  it('serves the series', async () => {
    const answer = await adminOver(async () => ({ ready: true, notes: [] })).inject('/metrics');
    assert.match(String(answer.headers['content-type']), /^text\/plain/);
    assert.match(answer.body, /# TYPE thaw_invocation_duration_seconds histogram/);
  });
});

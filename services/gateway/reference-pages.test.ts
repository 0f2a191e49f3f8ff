import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { describe, it } from 'node:test';
import { errorKinds } from '../../shared/errors.ts';
import { registry } from '../../shared/metrics.ts';
import { pageUrl, referencePages } from './reference-pages.ts';

describe('reference pages', () => {
  for (const [name, render] of Object.entries(referencePages))
    it(`docs/${name} is up to date`, async () => {
      const written = await readFile(pageUrl(name), 'utf8');
      assert.equal(
        written,
        await render(),
        'run: node_modules/.bin/node services/gateway/reference-pages.ts',
      );
    });

  it('list every error code and every registered series', async () => {
    const errors = referencePages['errors.md']();
    for (const code of Object.keys(errorKinds)) assert.ok(errors.includes(`| \`${code}\` |`), code);
    const series = referencePages['metrics.md']();
    for (const { name, type, help } of await registry.getMetricsAsJSON()) {
      assert.ok(series.includes(`| \`${name}\` | ${type} |`), name);
      assert.ok(series.includes(help), name);
    }
  });
});

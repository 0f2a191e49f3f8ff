// Holds docs/failures.md to the tests: every row of the matrix is there once, and every test that it names exists.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, it } from 'node:test';

const page = join(import.meta.dirname, '../../docs/failures.md');
const rowCount = 28;
const rows = readFileSync(page, 'utf8')
  .split('\n')
  .filter((line) => /^\| \d+ \|/.test(line))
  .map((line) => line.split('|').map((cell) => cell.trim()))
  .map(([, number, failure, answer, tests]) => ({ number: Number(number), failure, answer, tests: tests! }));
const named = rows.flatMap(({ number, tests }) =>
  [...tests.matchAll(/\[([^\]]+)\]\(([^)]+)\)/g)].map(([, name, path]) => ({
    number,
    name: name!,
    path: path!,
  })),
);

const sources = new Map<string, string>();
function sourceOf(path: string): string {
  const known = sources.get(path) ?? readFileSync(join(dirname(page), path), 'utf8');
  sources.set(path, known);
  return known;
}

describe('the page of failures', () => {
  it('has every row of the matrix, in order', () => {
    assert.deepEqual(
      rows.map(({ number }) => number),
      Array.from({ length: rowCount }, (_, index) => index + 1),
    );
  });

  it('names a test for each row that it says is held, and for no other', () => {
    for (const { number, answer, tests } of rows)
      assert.equal(answer === '', tests === 'not yet', `row ${number}`);
  });

  it('names only tests that there are', () => {
    assert.ok(named.length > 0);
    const missing = named.filter(({ name, path }) => {
      // As a test's first argument; its quotes are left out of it by the formatter's choice.
      const quoted = [`'${name}'`, `"${name}"`].map((text) => sourceOf(path).indexOf(text));
      return quoted.every((at) => at < 0);
    });
    assert.deepEqual(missing, []);
  });

  it('gives a test that is named for a row that row’s number', () => {
    for (const { number, name } of named) {
      const own = /^(?:row )?([\d, ]+)[:,] /.exec(name)?.[1];
      if (own) assert.ok(own.split(', ').map(Number).includes(number), `row ${number}: ${name}`);
    }
  });
});

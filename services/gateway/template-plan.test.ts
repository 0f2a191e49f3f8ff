import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { ThawError } from '../../shared/errors.ts';
import { expanded, planOf } from './template-plan.ts';
import type { StartBuildBody } from './template-schemas.ts';

const filesHash = 'a'.repeat(64);
const fromBase = (over: Partial<StartBuildBody> = {}): StartBuildBody => ({
  fromImage: 'e2bdev/base',
  ...over,
});
const withStep = (type: string, args: string[], over: object = {}) =>
  fromBase({ steps: [{ type, args, ...over }] });

describe('plans', () => {
  it('take the base image for base, and every kind of step', () => {
    for (const fromImage of ['e2bdev/base', 'e2bdev/base:latest', 'docker.io/e2bdev/base', 'base'])
      assert.equal(planOf({ fromImage }).from, 'base');
    const { steps } = planOf(
      fromBase({
        steps: [
          { type: 'RUN', args: ['make', 'root'] },
          { type: 'COPY', args: ['src', '/app', 'user:group', '0644'], filesHash },
          { type: 'ENV', args: ['A', '1', 'B', '2'] },
          { type: 'WORKDIR', args: ['/app'] },
          { type: 'USER', args: ['user:group'] },
        ],
      }),
    );
    assert.deepEqual(steps, [
      { kind: 'run', script: 'make', user: 'root' },
      { kind: 'copy', source: 'src', target: '/app', user: 'user:group', mode: '0644', filesHash },
      {
        kind: 'env',
        values: [
          ['A', '1'],
          ['B', '2'],
        ],
      },
      { kind: 'workdir', path: '/app' },
      { kind: 'user', user: 'user' },
    ]);
  });

  it('give a start command without a check the time that clients expect', () => {
    assert.equal(planOf(fromBase({ startCmd: 'serve' })).readyCmd, 'sleep 20');
    assert.equal(planOf(fromBase()).readyCmd, 'true');
    assert.equal(planOf(fromBase({ startCmd: 'serve', readyCmd: 'check' })).readyCmd, 'check');
  });

  const refused: [what: string, body: StartBuildBody, code: string, words: RegExp][] = [
    ['an image', { fromImage: 'node:20' }, 'not-implemented', /node:20.*builds from e2bdev\/base/],
    ['an image like base', { fromImage: 'e2bdev/base-other' }, 'not-implemented', /base-other/],
    ['a registry', fromBase({ fromImageRegistry: { type: 'aws' } }), 'not-implemented', /registry/],
    ['MCP', { fromTemplate: 'mcp-gateway' }, 'not-implemented', /mcp-gateway/],
    ['no source', {}, 'bad-request', /must be given/],
    ['two sources', fromBase({ fromTemplate: 'x' }), 'bad-request', /exclude/],
    ['an unknown step', withStep('HEALTHCHECK', ['x']), 'not-implemented', /step 1: HEALTHCHECK/],
    ['an empty command', withStep('RUN', []), 'bad-request', /step 1: RUN needs/],
    ['a NUL', withStep('RUN', ['a\0b']), 'bad-request', /NUL/],
    ['a user that is none', withStep('USER', ['a b']), 'bad-request', /no user/],
    ['files without a hash', withStep('COPY', ['a', 'b']), 'bad-request', /filesHash/],
    ['a mode that is none', withStep('COPY', ['a', 'b', '', '999'], { filesHash }), 'bad-request', /no mode/],
    ['half a variable', withStep('ENV', ['A']), 'bad-request', /in turn/],
    ['a variable without a name', withStep('ENV', ['=', '1']), 'bad-request', /no name/],
  ];
  for (const [what, body, code, words] of refused)
    it(`refuse ${what}`, () =>
      assert.throws(
        () => planOf(body),
        (error) => error instanceof ThawError && error.code === code && words.test(error.message),
      ));

  it('expand variables as Dockerfiles do', () => {
    const env = { A: 'x', EMPTY: '' };
    const expected = {
      '$A-${A}': 'x-x',
      '${EMPTY:-other}${A:-other}${NONE:-}': 'otherx',
      '${A:+yes}${NONE:+yes}': 'yes',
      '\\$A \\n $': '$A \\n $',
      $NONE$toString: '',
      '$AB${A}B': 'xB',
    };
    for (const [text, value] of Object.entries(expected)) assert.equal(expanded(text, env), value, text);
  });

  it('leave text without a dollar as it is', () =>
    fc.assert(
      fc.property(
        fc.string().filter((text) => !text.includes('$')),
        (text) => expanded(text, { A: 'x' }) === text,
      ),
    ));
});

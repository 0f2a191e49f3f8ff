// Holds the direction of imports: shared ← pool ← services; inside the pool host ← hypervisor, store ← snapshot.
import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { describe, it } from 'node:test';

const root = join(import.meta.dirname, '../..');
const isTest = (path: string) =>
  /\.test\.ts$|-for-tests\.ts$|-fixture\.ts$|(^|\/)simulated-|virtual-time|conformance/.test(path);
const sources = globSync('{shared,pool,services,images,sdk}/**/*.ts', { cwd: root }).filter(
  (path) => !path.includes('node_modules') && !isTest(path),
);

/** Modules of this project that a file imports, from the root; `typeOnly` ones cost nothing at run time. */
function importsOf(path: string): { target: string; typeOnly: boolean }[] {
  const text = readFileSync(join(root, path), 'utf8');
  const found = text.matchAll(/^(?:import|export)\s+(type\s)?[^'"]*?from\s+['"](\.[^'"]+)['"]/gms);
  return [...found].map(([, type, specifier]) => ({
    target: relative(root, join(root, dirname(path), specifier!)),
    typeOnly: type !== undefined,
  }));
}

function breaches(from: RegExp, forbidden: RegExp, allowTypes = false): string[] {
  return sources
    .filter((path) => from.test(path))
    .flatMap((path) =>
      importsOf(path)
        .filter(({ target, typeOnly }) => forbidden.test(target) && !(allowTypes && typeOnly))
        .map(({ target }) => `${path} imports ${target}`),
    );
}

describe('imports point one way', () => {
  it('there is something to hold', () => assert.ok(sources.length > 50));
  it('shared imports only shared', () => assert.deepEqual(breaches(/^shared\//, /^(?!shared\/)/), []));
  it('the pool imports no service', () =>
    assert.deepEqual(breaches(/^pool\//, /^(services|sdk|images|loadtest)\//), []));
  it('the gateway reaches nodes only by its interface', () =>
    assert.deepEqual(breaches(/^services\/gateway\//, /^(pool|images)\/|^services\/(?!gateway)/), []));
  it('the guest agent and the SDKs import only shared', () => {
    assert.deepEqual(breaches(/^services\/guest-agent\//, /^(?!shared\/|services\/guest-agent\/)/), []);
    assert.deepEqual(breaches(/^sdk\//, /^(?!shared\/|sdk\/)/), []);
  });
  it('inside the pool: host ← hypervisor, store ← snapshot ← vm-factory ← pool', () => {
    assert.deepEqual(breaches(/^pool\/host\//, /^pool\/(?!host\/)/, true), []);
    assert.deepEqual(breaches(/^pool\/store\//, /^pool\/(?!store\/)/, true), []);
    assert.deepEqual(
      breaches(/^pool\/hypervisor\/(?!choose)/, /^pool\/(pool|vm|vm-factory|lease)\.ts|^pool\/guest\//, true),
      [],
    );
    assert.deepEqual(breaches(/^pool\/snapshot\//, /^pool\/(pool|vm-factory|lease)\.ts/, true), []);
  });
  it('nothing but the CLI constructs a program’s parts', () =>
    assert.deepEqual(breaches(/^services\/(?!cli)/, /^services\/cli\//), []));
});

describe('every source file', () => {
  it('opens with what it owns and stays below 500 lines', () => {
    const faults = sources.flatMap((path) => {
      const text = readFileSync(join(root, path), 'utf8');
      const lines = text.split('\n').length;
      return [
        ...(/^(#!.*\n)?(\/\/|\/\*\*)/.test(text) ? [] : [`${path}: no opening comment`]),
        ...(lines <= 501 ? [] : [`${path}: ${lines} lines`]),
      ];
    });
    assert.deepEqual(faults, []);
  });
});

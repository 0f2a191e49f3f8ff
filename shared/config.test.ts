// Holds how configuration combines and what is refused, and the reference page to the schema.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { describe, it } from 'node:test';
import { type ConfigInput, configKeys, renderConfigPage, resolveConfig, shownConfig } from './config.ts';
import { newApiKey } from './ids.ts';

const resolve = (input: Partial<ConfigInput>) =>
  resolveConfig({ env: {}, defaults: { dataDir: '/data' }, ...input });
const refusal = (input: Partial<ConfigInput>): string => {
  try {
    resolve(input);
  } catch (error) {
    return (error as Error).message;
  }
  return assert.fail('nothing was refused');
};

describe('configuration', () => {
  it('takes flags over environment over file over defaults', () => {
    const file = { path: 'f.json', value: { port: 1, host: 'file', maxVms: 3 } };
    const { config, sources } = resolve({
      flags: { port: '4' },
      env: { THAW_PORT: '2', THAW_HOST: 'env' },
      file,
    });
    assert.deepEqual([config.port, config.host, config.maxVms, config.adminPort], [4, 'env', 3, 8081]);
    assert.deepEqual(
      [sources.port, sources.host, sources.maxVms, sources.adminPort],
      ['flag', 'environment', 'file', 'default'],
    );
  });

  it('has the documented names', () => {
    const names = configKeys.map((facts) => facts.env);
    for (const name of [
      'THAW_DATA_DIR',
      'THAW_S3_ENDPOINT',
      'THAW_REDIS_URL',
      'THAW_CLOUD_HYPERVISOR',
      'THAW_STORE',
    ])
      assert.ok(names.includes(name), name);
  });

  it('refuses unknown keys wherever they stand, and suggests the one that was meant', () => {
    assert.match(
      refusal({ env: { THAW_PROT: '1' } }),
      /THAW_PROT is no variable of Thaw; did you mean THAW_PORT\?/,
    );
    assert.match(refusal({ env: { THAW_AGENT_MODE: 'guest' } }), /THAW_AGENT_MODE/);
    assert.ok(resolve({ env: { THAW_API_URL: 'http://elsewhere' } }), 'the SDKs have it in the same shell');
    assert.match(
      refusal({ file: { path: 'f.json', value: { maxVm: 1 } } }),
      /f\.json: maxVm .*did you mean maxVms/,
    );
    assert.match(refusal({ file: { path: 'f.json', value: [] } }), /expected a JSON object/);
  });

  it('names the key and what was expected', () => {
    assert.match(
      refusal({ env: { THAW_PORT: '8o8o' } }),
      /THAW_PORT: expected a whole number from 0 to 65535, got "8o8o"/,
    );
    assert.match(refusal({ flags: { port: '65536' } }), /--port: expected/);
    assert.match(refusal({ env: { THAW_HYPERVISOR: 'xen' } }), /auto, cloud-hypervisor, qemu or process/);
    assert.match(refusal({ env: { THAW_TRUST_FORWARDED: 'yes' } }), /true or false/);
    assert.match(refusal({ file: { path: 'f.json', value: { port: '80' } } }), /f\.json: port/);
    assert.match(refusal({ env: { THAW_HOST: '' } }), /THAW_HOST/);
  });

  it('takes a certificate only with its key, and a domain only as one', () => {
    assert.match(refusal({ env: { THAW_TLS_CERT: 'c.pem' } }), /THAW_TLS_CERT and THAW_TLS_KEY go together/);
    assert.equal(resolve({ env: { THAW_TLS_CERT: 'c', THAW_TLS_KEY: 'k' } }).config.tlsPort, 8443);
    assert.equal(
      resolve({ env: { THAW_DOMAIN: 'sbx.example.com:8443' } }).config.domain,
      'sbx.example.com:8443',
    );
    for (const bad of ['https://a.b', '*.a.b', 'a..b', 'a.b/', 'A.b', 'a.b:0', 'a.b:', '.a'])
      assert.match(refusal({ env: { THAW_DOMAIN: bad } }), /THAW_DOMAIN: expected/, bad);
  });

  it('takes marks of the disk only in their order', () => {
    const { evictAbovePercent, evictToPercent } = resolve({ env: {} }).config;
    assert.deepEqual([evictAbovePercent, evictToPercent], [85, 80]);
    const crossed = { THAW_EVICT_ABOVE_PERCENT: '70', THAW_EVICT_TO_PERCENT: '70' };
    assert.match(refusal({ env: crossed }), /THAW_EVICT_TO_PERCENT \(70\) must be below/);
    assert.match(refusal({ env: { THAW_EVICT_ABOVE_PERCENT: '70' } }), /must be below/);
    assert.match(refusal({ env: { THAW_EVICT_ABOVE_PERCENT: '101' } }), /from 1 to 100/);
  });

  it('never shows a secret, not even a wrong one', () => {
    const apiKey = newApiKey();
    const shown = JSON.stringify(shownConfig(resolve({ env: { THAW_API_KEY: apiKey } })));
    assert.ok(!shown.includes(apiKey));
    assert.match(shown, /\(set\)/);
    assert.doesNotMatch(refusal({ env: { THAW_API_KEY: 'hunter2' } }), /hunter2/);
    assert.deepEqual(
      configKeys.filter((facts) => facts.secret && facts.flag !== undefined),
      [],
    );
  });

  it('is the reference page', async () => {
    const page = await readFile(new URL('../docs/config.md', import.meta.url), 'utf8');
    assert.equal(page, renderConfigPage(), 'bin/thaw config page > docs/config.md');
  });
});

// The egress chain as nftables reads it; where `nft` is installed, by nftables itself.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { describe, it } from 'node:test';
import { closedEgress, openEgress } from '../../shared/egress.ts';
import { egressRules, hostRules, namespaceRules, userNetworkRules } from './network-rules.ts';

const rulesOf = (rules: Partial<typeof openEgress>) =>
  egressRules({ ...openEgress, ...rules }, '9.9.9.9')
    .trim()
    .split('\n')
    .map((line) => line.replace('add rule ip thaw egress ', ''));
const names = 'ip daddr 9.9.9.9 meta l4proto { tcp, udp } th dport 53 accept';
const flush = 'flush chain ip thaw egress';

describe('the egress chain', () => {
  it('says in order: names, what is allowed, what is denied, all else', () => {
    assert.deepEqual(rulesOf(closedEgress), [flush]);
    assert.deepEqual(rulesOf({}), [flush, names, 'accept']);
    assert.deepEqual(rulesOf({ allowOut: ['1.1.1.1'], denyOut: ['1.1.1.0/24', '::/0'] }), [
      flush,
      names,
      'ip daddr 1.1.1.1 accept',
      'ip daddr 1.1.1.0/24 drop',
      'accept',
    ]);
    assert.deepEqual(rulesOf({ allowOut: ['1.1.1.1'], denyOut: ['0.0.0.0/0'] }), [
      flush,
      names,
      'ip daddr 1.1.1.1 accept',
    ]);
    assert.deepEqual(rulesOf({ allowOut: ['0.0.0.0/0'], allowInternetAccess: false }), [
      flush,
      names,
      'accept',
    ]);
  });

  const nft = spawnSync('nft', ['--version']);
  const skip =
    nft.status !== 0
      ? 'nft is missing: apt-get install nftables'
      : process.getuid?.() !== 0
        ? 'checking rules takes root'
        : false;
  it('is one that nftables takes', { skip }, () => {
    const slot = { slotAddress: '100.127.0.1', hostAddress: '100.127.0.0', resolver: '9.9.9.9' };
    const rules = {
      allowInternetAccess: true,
      allowOut: ['1.1.1.1', '8.8.8.0/24'],
      denyOut: ['7.0.0.0/8', '8.8.0.0/16'],
    };
    const check = (text: string) => {
      const checked = spawnSync('nft', ['--check', '--file', '-'], { input: text, encoding: 'utf8' });
      assert.equal(checked.stderr, '');
      assert.equal(checked.status, 0);
    };
    check(namespaceRules(slot) + egressRules(rules, slot.resolver));
    check(userNetworkRules(slot) + egressRules(rules, slot.resolver));
    check(hostRules);
  });
});

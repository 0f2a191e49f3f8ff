// What counts as an address, what closes a guest, and which host can keep which rules.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  closedEgress,
  closesAll,
  type EgressAbility,
  isAddressOrBlock,
  isIpv4AddressOrBlock,
  openEgress,
  reachesInternet,
  requireKeepable,
} from './egress.ts';

describe('egress rules', () => {
  it('know addresses and blocks from everything else', () => {
    for (const entry of ['1.2.3.4', '1.2.3.0/24', '0.0.0.0/0', '::1', '2001:db8::/32'])
      assert.ok(isAddressOrBlock(entry), entry);
    for (const entry of [
      '',
      '1.2.3',
      '1.2.3.4/33',
      '1.2.3.4/-1',
      '1.2.3.4/08',
      '1.2.3.4/ 8',
      '::/129',
      'a.b',
      '1.2.3.4/8/8',
      '01.2.3.4',
    ])
      assert.ok(!isAddressOrBlock(entry), entry);
    assert.deepEqual(['1.1.1.1', '::1', '1.0.0.0/8', '::/0'].map(isIpv4AddressOrBlock), [
      true,
      false,
      true,
      false,
    ]);
  });

  it('are closed by one word or by a rule for all', () => {
    assert.deepEqual(
      [
        openEgress,
        closedEgress,
        { ...openEgress, denyOut: ['0.0.0.0/0'] },
        { ...openEgress, denyOut: ['1.1.1.1'] },
      ].map(closesAll),
      [false, true, true, false],
    );
  });

  it('are kept by those who can', () => {
    const keeps = (ability: EgressAbility, rules: Partial<typeof openEgress>) => {
      try {
        requireKeepable(ability, { ...openEgress, ...rules });
        return true;
      } catch (error) {
        assert.equal((error as { code: string }).code, 'not-implemented');
        return false;
      }
    };
    const allow = { allowOut: ['1.1.1.1'] };
    const deny = { denyOut: ['1.1.1.1'] };
    const close = { allowInternetAccess: false };
    const name = { allowOut: ['a.example'], denyOut: ['0.0.0.0/0'] };
    const table: [EgressAbility, boolean[]][] = [
      ['closed', [true, false, true, true, false]],
      ['by-address', [true, true, true, true, false]],
      ['open', [true, true, false, false, false]],
    ];
    for (const [ability, wanted] of table)
      assert.deepEqual(
        [{}, allow, deny, close, name].map((rules) => keeps(ability, rules)),
        wanted,
        ability,
      );
    assert.equal(reachesInternet('closed', openEgress), false);
    assert.equal(reachesInternet('by-address', openEgress), true);
    assert.equal(reachesInternet('by-address', closedEgress), false);
  });
});

// Tests the life of the agent over all pairs of state and hop.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { AgentState, type Hop, type State } from './agent-state.ts';

const reach: Record<State, (state: AgentState) => void> = {
  booted: () => {},
  ready: (state) => state.restored('g', 's'),
  sealed: (state) => {
    state.restored('g', 's');
    state.sealed('n');
  },
};
const expected: Record<State, Record<Hop, State | 'refused'>> = {
  booted: { restore: 'ready', seal: 'refused' },
  ready: { restore: 'refused', seal: 'sealed' },
  sealed: { restore: 'ready', seal: 'refused' },
};

describe('agent state', () => {
  for (const from of Object.keys(expected) as State[])
    for (const hop of Object.keys(expected[from]) as Hop[])
      it(`${from} --${hop}--> ${expected[from][hop]}`, () => {
        const state = new AgentState();
        reach[from](state);
        const jump = () => (hop === 'restore' ? state.restored('g2', 's2') : state.sealed('n2'));
        if (expected[from][hop] === 'refused') {
          assert.throws(jump, /not possible/);
          assert.equal(state.state, from);
        } else {
          jump();
          assert.equal(state.state, expected[from][hop]);
        }
      });

  it('forgets generation, secret and sandbox when sealed and keeps the nonce through the restore', () => {
    const state = new AgentState();
    state.restored('g', 's');
    state.becomeSandbox({ accessToken: 't', envVars: {}, defaultUser: 'user' });
    state.sealed('n');
    assert.deepEqual([state.generation, state.secret, state.sandbox], ['', undefined, undefined]);
    assert.throws(() => state.becomeSandbox({ accessToken: 't', envVars: {}, defaultUser: 'user' }));
    state.restored('g2', 's2');
    assert.equal(state.nonce, 'n');
    assert.equal(state.sandbox, undefined);
  });
});

// Tests the life of the agent over all pairs of state and hop.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { AgentState, type Hop, type State } from './agent-state.ts';

const reach: Record<State, (state: AgentState) => void> = {
  booted: () => {},
  ready: (state) => state.restored('g', 's'),
  held: (state) => {
    state.restored('g', 's');
    state.held('n2');
  },
  sealed: (state) => {
    state.restored('g', 's');
    state.sealed('n');
  },
};
const expected: Record<State, Record<Hop, State | 'refused'>> = {
  booted: { restore: 'ready', seal: 'refused', hold: 'refused', proceed: 'refused' },
  ready: { restore: 'refused', seal: 'sealed', hold: 'held', proceed: 'refused' },
  held: { restore: 'ready', seal: 'refused', hold: 'refused', proceed: 'ready' },
  sealed: { restore: 'ready', seal: 'refused', hold: 'refused', proceed: 'refused' },
};
const jumps: Record<Hop, (state: AgentState) => void> = {
  restore: (state) => state.restored('g2', 's2'),
  seal: (state) => state.sealed('n2'),
  hold: (state) => state.held('n2'),
  proceed: (state) => state.proceeded('n2'),
};
const init = { accessToken: 't', envVars: { A: '1', B: '1' }, defaultUser: 'app', defaultWorkdir: '/w' };

describe('agent state', () => {
  for (const from of Object.keys(expected) as State[])
    for (const hop of Object.keys(expected[from]) as Hop[])
      it(`${from} --${hop}--> ${expected[from][hop]}`, () => {
        const state = new AgentState();
        reach[from](state);
        const jump = () => jumps[hop](state);
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
    state.becomeSandbox({ accessToken: 't', envVars: {} });
    assert.equal(state.sandbox?.defaultUser, 'user');
    state.sealed('n');
    assert.deepEqual([state.generation, state.secret, state.sandbox], ['', undefined, undefined]);
    assert.throws(() => state.becomeSandbox({ accessToken: 't', envVars: {}, defaultUser: 'user' }));
    state.restored('g2', 's2');
    assert.equal(state.nonce, 'n');
    assert.equal(state.sandbox, undefined);
  });

  it('goes on after a hold as if nothing had been', async () => {
    const state = new AgentState('from');
    state.restored('g', 's');
    state.becomeSandbox(init);
    state.held('next');
    assert.deepEqual([state.nonce, state.generation, state.secret], ['next', 'g', 's']);
    let released = false;
    const waiting = state.released.then(() => {
      released = true;
    });
    assert.throws(() => state.proceeded('other'), /another capture/);
    assert.throws(() => state.becomeSandbox(init));
    await Promise.resolve();
    assert.equal(released, false);
    state.proceeded('next');
    await waiting;
    assert.deepEqual([state.nonce, state.generation, state.secret], ['from', 'g', 's']);
    assert.equal(state.sandbox?.accessToken, 't');
    await state.released;
  });

  it('is another machine after a hold and a restore, which keeps only what programs start with', async () => {
    const state = new AgentState('from');
    state.restored('g', 's');
    state.becomeSandbox(init);
    state.held('next');
    const waiting = state.released;
    state.restored('g2', 's2');
    await waiting;
    assert.deepEqual([state.nonce, state.generation, state.secret], ['next', 'g2', 's2']);
    assert.equal(state.sandbox, undefined);
    assert.throws(() => state.proceeded('next'), /not possible/);
    state.becomeSandbox({ accessToken: 't2', envVars: { B: '2' } });
    assert.deepEqual(state.sandbox, { ...init, accessToken: 't2', envVars: { A: '1', B: '2' } });
  });
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { LinkedList, ListMember } from './linked-list.ts';

class Item extends ListMember {
  readonly name: number;
  constructor(name: number) {
    super();
    this.name = name;
  }
}

test('behaves like an array under any pushes and removals', () => {
  const step = fc.record({ push: fc.boolean(), name: fc.nat({ max: 7 }) });
  fc.assert(
    fc.property(fc.array(step), (steps) => {
      const items = Array.from({ length: 8 }, (_, name) => new Item(name));
      const list = new LinkedList<Item>();
      let model: number[] = [];
      for (const { push, name } of steps) {
        model = model.filter((other) => other !== name);
        if (push) model.push(name);
        if (push) list.push(items[name]!);
        else list.remove(items[name]!);
        assert.deepEqual(
          [...list].map((item) => item.name),
          model,
        );
        assert.equal(list.size, model.length);
        assert.equal(list.first?.name, model[0]);
        assert.equal(list.last?.name, model.at(-1));
      }
    }),
  );
});

test('a member is in at most one list', () => {
  const [one, other, item] = [new LinkedList<Item>(), new LinkedList<Item>(), new Item(1)];
  one.push(item);
  assert.throws(() => other.push(item), /in another list/);
  other.remove(item);
  assert.equal(one.size, 1);
});

test('the member at hand may be removed while iterating', () => {
  const list = new LinkedList<Item>();
  for (const name of [1, 2, 3]) list.push(new Item(name));
  const seen: number[] = [];
  for (const item of list) {
    seen.push(item.name);
    list.remove(item);
  }
  assert.deepEqual(seen, [1, 2, 3]);
  assert.equal(list.size, 0);
});

// Owns an intrusive doubly linked list: order with removal of any member in constant time and without allocation.
// Invariant: a member is in at most one list.

/** What a member carries; written by the list alone. */
export abstract class ListMember {
  /** @internal */ list: LinkedList<never> | undefined = undefined;
  /** @internal */ previous: this | undefined = undefined;
  /** @internal */ next: this | undefined = undefined;
}

export class LinkedList<T extends ListMember> {
  #first: T | undefined;
  #last: T | undefined;
  #size = 0;

  get first(): T | undefined {
    return this.#first;
  }

  get last(): T | undefined {
    return this.#last;
  }

  get size(): number {
    return this.#size;
  }

  /** Makes it the last member, wherever it stood in this list. */
  push(member: T): void {
    this.remove(member);
    if (member.list) throw new Error('the member is in another list');
    member.list = this as unknown as LinkedList<never>;
    member.previous = this.#last;
    if (this.#last) this.#last.next = member;
    else this.#first = member;
    this.#last = member;
    this.#size += 1;
  }

  /** Does nothing when it is not in this list. */
  remove(member: T): void {
    if (member.list !== (this as unknown)) return;
    if (member.previous) member.previous.next = member.next;
    else this.#first = member.next;
    if (member.next) member.next.previous = member.previous;
    else this.#last = member.previous;
    member.list = member.previous = member.next = undefined;
    this.#size -= 1;
  }

  /** In order; the member at hand may be removed meanwhile. */
  *[Symbol.iterator](): Generator<T> {
    for (let member = this.#first; member; ) {
      const next: T | undefined = member.next;
      yield member;
      member = next;
    }
  }
}

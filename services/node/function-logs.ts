// Owns what functions wrote lately, by function name, and handing it to those who follow.
// Invariant: both the history and each follower's backlog are bounded; a slow follower loses lines and is told how many.
import type { LogEvent } from '../../shared/agent-protocol.ts';

/** About a screenful of a day's quiet service; followers see everything from then on. */
const historyLines = 1_000;
const backlogLines = 10_000;

interface Follower {
  backlog: LogEvent[];
  dropped: number;
  wake: () => void;
}

interface Channel {
  history: LogEvent[];
  followers: Set<Follower>;
}

export class FunctionLogs {
  readonly #channels = new Map<string, Channel>();

  add(name: string, event: LogEvent): void {
    const { history, followers } = this.#channel(name);
    history.push(event);
    if (history.length > historyLines) history.shift();
    for (const follower of followers) deliver(follower, event);
  }

  forget(name: string): void {
    if (this.#channels.get(name)?.followers.size === 0) this.#channels.delete(name);
  }

  /** The history, then new lines until the signal aborts. */
  async *follow(name: string, signal: AbortSignal): AsyncGenerator<LogEvent> {
    const channel = this.#channel(name);
    const follower: Follower = { backlog: [...channel.history], dropped: 0, wake: () => {} };
    channel.followers.add(follower);
    const onAbort = () => follower.wake();
    signal.addEventListener('abort', onAbort);
    try {
      while (!signal.aborted) {
        yield* follower.backlog.splice(0);
        if (signal.aborted || follower.backlog.length > 0) continue;
        await new Promise<void>((resolve) => {
          follower.wake = resolve;
        });
      }
    } finally {
      signal.removeEventListener('abort', onAbort);
      channel.followers.delete(follower);
    }
  }

  #channel(name: string): Channel {
    let channel = this.#channels.get(name);
    if (!channel) {
      channel = { history: [], followers: new Set() };
      this.#channels.set(name, channel);
    }
    return channel;
  }
}

function deliver(follower: Follower, event: LogEvent): void {
  if (follower.backlog.length >= backlogLines) {
    follower.dropped++;
    return;
  }
  const dropped = follower.dropped + (event.dropped ?? 0);
  follower.backlog.push(dropped > 0 ? { ...event, dropped } : event);
  follower.dropped = 0;
  follower.wake();
}

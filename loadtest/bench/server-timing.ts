// Owns reading the stages out of a Server-Timing header (`queue;dur=0, exec;dur=3.2, …, tier;desc=warm`).
// Invariant: a stage that is asked for and not there is an error, never a zero.

export class ServerTiming {
  readonly #durations = new Map<string, number>();
  readonly tier: string | undefined;

  constructor(header: string | string[] | undefined) {
    let tier: string | undefined;
    for (const entry of String(header ?? '').split(',')) {
      const [name = '', parameter = ''] = entry.trim().split(';');
      const [key, value] = parameter.split('=');
      if (key === 'dur') this.#durations.set(name, Number(value));
      if (name === 'tier') tier = value;
    }
    this.tier = tier;
  }

  ms(stage: string): number {
    const value = this.#durations.get(stage);
    if (value === undefined || !Number.isFinite(value)) throw new Error(`Server-Timing has no ${stage}`);
    return value;
  }
}

// Owns the undo stack: work that acquires several resources registers each one's release as it goes.
// Invariant: releases run once, newest first, and one that fails does not stop the others.

export class Cleanup {
  #undo: { label: string; run: () => unknown }[] = [];

  defer(label: string, run: () => unknown): void {
    this.#undo.push({ label, run });
  }

  /** Hands the resources over: nothing will be released by this stack any more. */
  disarm(): void {
    this.#undo = [];
  }

  /** @returns the failures, each with its label; empty when all went well. */
  async run(): Promise<{ label: string; error: unknown }[]> {
    const failures: { label: string; error: unknown }[] = [];
    for (let step = this.#undo.pop(); step; step = this.#undo.pop()) {
      try {
        await step.run();
      } catch (error) {
        failures.push({ label: step.label, error });
      }
    }
    return failures;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.run();
  }
}

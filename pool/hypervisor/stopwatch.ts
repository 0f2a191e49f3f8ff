// Owns timing the stages of a capture, the same way for every hypervisor.
// Invariant: a stage is told when it ends; one that fails is not.

export type OnStage = (stage: string, elapsedMs: number) => void;
export type Timed = <R>(stage: string, work: () => Promise<R>) => Promise<R>;

export function stopwatch(onStage: OnStage = () => {}): Timed {
  return async (stage, work) => {
    const startMs = performance.now();
    const result = await work();
    onStage(stage, performance.now() - startMs);
    return result;
  };
}

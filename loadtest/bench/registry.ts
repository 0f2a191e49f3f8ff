// Owns the list of benchmarks. Adding one is a file in benchmarks/ and a line here, in alphabetical order.
// Invariant: a benchmark is loaded only when it is asked for, so that each needs only its own dependencies.
import type { Benchmark } from './benchmark.ts';

export const benchmarks: Record<string, () => Promise<Benchmark>> = {
  burst: async () => (await import('./benchmarks/burst.ts')).burst,
  claim: async () => (await import('./benchmarks/claim.ts')).claim,
  cold: async () => (await import('./benchmarks/cold.ts')).cold,
  density: async () => (await import('./benchmarks/density.ts')).density,
  gateway: async () => (await import('./benchmarks/gateway.ts')).gateway,
  metal: async () => (await import('./benchmarks/metal.ts')).metal,
  restore: async () => (await import('./benchmarks/restore.ts')).restore,
  sdk: async () => (await import('./benchmarks/sdk.ts')).sdk,
  snapshot: async () => (await import('./benchmarks/snapshot.ts')).snapshot,
  tti: async () => (await import('./benchmarks/tti.ts')).tti,
  uniqueness: async () => (await import('./benchmarks/uniqueness.ts')).uniqueness,
};

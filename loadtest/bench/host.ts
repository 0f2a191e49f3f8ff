// Owns the description of the machine that a figure was measured on. Invariant: whoever reads a figure can tell
// whether it compares with theirs.
import { availableParallelism, cpus, release, totalmem } from 'node:os';
import type { Outcome } from './benchmark.ts';

export interface HostDescription {
  cpu: string;
  cores: number;
  memoryGb: number;
  kernel: string;
  node: string;
  hypervisor: string;
  accelerator: string;
}

export function describeHost({ hypervisor, accelerator }: Outcome): HostDescription {
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: availableParallelism(),
    memoryGb: Math.round(totalmem() / 1024 ** 3),
    kernel: release(),
    node: process.version,
    hypervisor,
    accelerator,
  };
}

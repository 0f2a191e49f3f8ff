// Owns putting changed pages back: into a fresh clone's private mapping before it runs, or into a page file of its own.
// Neutral to the hypervisor. Invariant: the process or file holds every page of the delta when it returns.
import { open } from 'node:fs/promises';
import { ThawError } from '../../../shared/errors.ts';
import type { PageDelta } from '../hypervisor.ts';
import { leaseCrew, startsOf } from './copier-crew.ts';
import { RunList, shareRuns } from './dirty-runs.ts';
import { type Mapping, mappingsOf } from './mappings.ts';

/** @param pagesPath as the process was given it. */
export async function pasteIntoProcess(pid: number, pagesPath: string, delta: PageDelta): Promise<void> {
  await paste(delta, `/proc/${pid}/mem`, await mappingsOf(pid, pagesPath));
}

/** @param pagesPath a file that nobody has mapped: it is written in place. */
export async function pasteIntoFile(pagesPath: string, delta: PageDelta): Promise<void> {
  await paste(delta, pagesPath, [{ address: 0, offsetBytes: 0, sizeBytes: Number.MAX_SAFE_INTEGER }]);
}

async function paste(delta: PageDelta, targetPath: string, mappings: readonly Mapping[]): Promise<void> {
  const runs = placed(delta, mappings);
  await using from = await open(delta.path, 'r');
  await using to = await open(targetPath, 'r+');
  await using lease = await leaseCrew();
  const shares = shareRuns(runs, lease.crew.size);
  const starts = startsOf(shares);
  await lease.crew.divide(shares, (share, index) => ({
    op: 'paste',
    fromFd: from.fd,
    positionBytes: starts[index]!,
    toFd: to.fd,
    runs: share,
  }));
}

/** The delta's runs with the addresses at which the target has them. */
function placed(delta: PageDelta, mappings: readonly Mapping[]): Float64Array {
  const runs = new RunList();
  let index = 0;
  for (const run of delta.runs) {
    let { offsetBytes } = run;
    const endBytes = offsetBytes + run.sizeBytes;
    while (offsetBytes < endBytes) {
      const mapping = mappings[index];
      if (!mapping || offsetBytes < mapping.offsetBytes)
        throw new ThawError('restore-failed', `the page at ${offsetBytes} is not part of the guest's memory`);
      const stepBytes = Math.min(endBytes, mapping.offsetBytes + mapping.sizeBytes) - offsetBytes;
      if (stepBytes <= 0) index += 1;
      else {
        runs.add(mapping.address + offsetBytes - mapping.offsetBytes, offsetBytes, stepBytes);
        offsetBytes += stepBytes;
      }
    }
  }
  return runs.numbers();
}

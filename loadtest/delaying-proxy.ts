// Owns the slow network between Thaw and its store in benchmarks: a proxy whose answers begin late.
// As a program: `node loadtest/delaying-proxy.ts TARGET-PORT [DELAY-MS]` prints its address and runs until it is ended.
import { type FaultProxy, startFaultProxy } from '../pool/store/fault-proxy-for-tests.ts';

/** @param targetPort a server on this host. Every answer's first byte comes `firstByteDelayMs` later than the server's. */
export function startDelayingProxy(targetPort: number, firstByteDelayMs = 100): Promise<FaultProxy> {
  return startFaultProxy(targetPort, { firstByteDelayMs });
}

if (import.meta.main) {
  const [targetPort, delayMs = '100'] = process.argv.slice(2).map(Number);
  if (!Number.isInteger(targetPort)) {
    console.error('usage: node loadtest/delaying-proxy.ts TARGET-PORT [DELAY-MS]');
    process.exit(2);
  }
  const proxy = await startDelayingProxy(targetPort!, Number(delayMs));
  console.log(`${proxy.endpoint} → 127.0.0.1:${targetPort}, first byte ${delayMs} ms later`);
}

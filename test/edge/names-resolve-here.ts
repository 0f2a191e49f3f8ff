// Stands in for the wildcard DNS record of a deployment: loaded with --import into a client's process, it makes the names
// of THAW_TEST_DOMAIN those of this machine. Nothing else of the client changes.
import dns, { type LookupAddress, type LookupOptions } from 'node:dns';
import { syncBuiltinESMExports } from 'node:module';

type Found = (error: Error | null, address: string | LookupAddress[], family?: number) => void;

const domain = process.env.THAW_TEST_DOMAIN!;
const original = dns.lookup;
const lookup = (name: string, options: LookupOptions, found: Found) => {
  if (name !== domain && !name.endsWith(`.${domain}`)) return original(name, options, found as never);
  process.nextTick(() =>
    options.all ? found(null, [{ address: '127.0.0.1', family: 4 }]) : found(null, '127.0.0.1', 4),
  );
};
Object.assign(dns, { lookup });
syncBuiltinESMExports();

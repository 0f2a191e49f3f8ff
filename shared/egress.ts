// Owns the words for what a guest may reach outside: the rules that are asked for, and what a host is able to keep.
// Refuses to own how rules are kept (pool/host) and their wire (services/gateway/network-config.ts).
// Invariant: what cannot be kept is refused; private, link-local and reserved addresses are closed whatever a rule says.
import { isIP, isIPv4 } from 'node:net';
import { ThawError } from './errors.ts';

export interface EgressRules {
  /** False: only what `allowOut` names. */
  allowInternetAccess: boolean;
  /** Addresses, CIDR blocks and domain names. Wins over `denyOut`. */
  allowOut: readonly string[];
  /** Addresses and CIDR blocks. */
  denyOut: readonly string[];
}

/** `closed`: guests have no way out. `by-address`: filtered by IPv4 address. `open`: nothing holds them. */
export type EgressAbility = 'closed' | 'by-address' | 'open';

export const closedEgress: EgressRules = { allowInternetAccess: false, allowOut: [], denyOut: [] };
export const openEgress: EgressRules = { allowInternetAccess: true, allowOut: [], denyOut: [] };

export const allTraffic = '0.0.0.0/0';

export const isAddressOrBlock = (entry: string): boolean => {
  const [address, prefix, ...rest] = entry.split('/');
  const version = isIP(address!);
  if (version === 0 || rest.length > 0) return false;
  return (
    prefix === undefined ||
    (/^(0|[1-9][0-9]{0,2})$/.test(prefix) && Number(prefix) <= (version === 4 ? 32 : 128))
  );
};

export const isIpv4AddressOrBlock = (entry: string): boolean =>
  isAddressOrBlock(entry) && isIPv4(entry.split('/')[0]!);

/** True when nothing outside is open but what `allowOut` names. */
export const closesAll = ({ allowInternetAccess, denyOut }: EgressRules): boolean =>
  !allowInternetAccess || denyOut.includes(allTraffic);

/** @throws ThawError `not-implemented` for rules that a host of this ability cannot keep. */
export function requireKeepable(ability: EgressAbility, rules: EgressRules): void {
  const { allowOut, denyOut } = rules;
  if (ability === 'closed' && allowOut.length > 0)
    refuse('network.allowOut', 'its VMs have no way out at all');
  if (ability === 'open' && (closesAll(rules) || denyOut.length > 0))
    refuse('closing the way out', 'its sandboxes are processes of the host, which nothing holds back');
  if (ability === 'by-address' && !allowOut.every(isIpv4AddressOrBlock))
    refuse('network.allowOut with anything but IPv4 addresses and blocks', 'its filter knows no names');
}

/** Whether a sandbox under these rules reaches the internet at large. */
export const reachesInternet = (ability: EgressAbility, rules: EgressRules): boolean =>
  ability !== 'closed' && !closesAll(rules);

function refuse(what: string, why: string): never {
  throw new ThawError('not-implemented', `${what} is not offered by this node: ${why}`);
}

// Owns the packet filter of a VM's network namespace and of the host towards all of them, as nftables text.
// Refuses to own when it is applied (network-slots.ts).
// Invariant: what a guest sends on its own account leaves only when its slot is open, and never to a private,
// link-local, shared, reserved or multicast address; the host takes nothing from a guest but answers.
import { closesAll, type EgressRules, isIpv4AddressOrBlock } from '../../shared/egress.ts';

export const guestAddress = '10.0.2.15';
export const gatewayAddress = '10.0.2.2';
export const resolverAddress = '10.0.2.3';
/** Address range of the links between the host and the namespaces; no guest sees it. */
export const linkNetwork = '100.127.0.0/16';
export const hostLinkPrefix = 'tv-';

/** Not the internet: RFC 1122, 1918, 3927, 5737, 6598, 6890, 7526 and multicast; cloud metadata is link-local. */
export const deniedNetworks: readonly string[] = [
  '0.0.0.0/8',
  '10.0.0.0/8',
  '100.64.0.0/10',
  '127.0.0.0/8',
  '169.254.0.0/16',
  '172.16.0.0/12',
  '192.0.0.0/24',
  '192.0.2.0/24',
  '192.88.99.0/24',
  '192.168.0.0/16',
  '198.18.0.0/15',
  '198.51.100.0/24',
  '203.0.113.0/24',
  '224.0.0.0/3',
];

export interface SlotRules {
  /** The slot's own end of the link: what the host connects to. */
  slotAddress: string;
  hostAddress: string;
  /** Where an open guest's name queries go. */
  resolver: string;
}

/** A namespace starts closed: the chain `egress` is empty and the policy drops. */
export const namespaceRules = ({ slotAddress, hostAddress, resolver }: SlotRules): string => `
table ip thaw {
  set denied { type ipv4_addr; flags interval; elements = { ${deniedNetworks.join(', ')} } }
  chain prerouting {
    type nat hook prerouting priority dstnat
    iifname "eth0" ip daddr ${slotAddress} dnat to ${guestAddress}
    iifname "tap0" ip daddr ${resolverAddress} meta l4proto { tcp, udp } th dport 53 dnat to ${resolver}
  }
  chain postrouting {
    type nat hook postrouting priority srcnat
    oifname "tap0" masquerade
    oifname "eth0" masquerade
  }
  chain egress { }
  chain forward {
    type filter hook forward priority filter; policy drop
    ct state invalid drop
    ct state established,related ct direction reply accept
    iifname "eth0" ip saddr ${hostAddress} accept
    iifname "tap0" ip saddr != ${guestAddress} drop
    iifname "tap0" ip daddr ${resolver} meta l4proto { tcp, udp } th dport 53 jump egress
    iifname "tap0" ip daddr @denied drop
    iifname "tap0" jump egress
  }
  chain input {
    type filter hook input priority filter; policy drop
    ct state established,related accept
  }
}
`;

/**
 * The same for a VMM that speaks for its guest from sockets of its own (QEMU's user network): what it sends is this
 * namespace's own output. Its loopback is closed, which the guest would otherwise reach as 10.0.2.2. Name queries go to
 * the one resolver, whatever server the host itself asks.
 */
export const userNetworkRules = ({ hostAddress, resolver }: Omit<SlotRules, 'slotAddress'>): string => `
table ip thaw {
  set denied { type ipv4_addr; flags interval; elements = { ${deniedNetworks.join(', ')} } }
  chain names {
    type nat hook output priority -100
    meta l4proto { tcp, udp } th dport 53 dnat to ${resolver}
  }
  chain postrouting {
    type nat hook postrouting priority srcnat
    oifname "eth0" masquerade
  }
  chain egress { }
  chain output {
    type filter hook output priority filter; policy drop
    ct state invalid drop
    ct state established,related ct direction reply accept
    ip daddr ${resolver} meta l4proto { tcp, udp } th dport 53 jump egress
    ip daddr @denied drop
    oifname "lo" drop
    jump egress
  }
  chain forward {
    type filter hook forward priority filter; policy drop
  }
  chain input {
    type filter hook input priority filter; policy drop
    ct state established,related accept
    iifname "eth0" ip saddr ${hostAddress} accept
  }
}
`;

/**
 * What the chain `egress` says: who is named first wins, so what is allowed stands before what is denied. The guest's
 * resolver is open when anything is. Denied networks never come here.
 */
export function egressRules(rules: EgressRules, resolver: string): string {
  const { allowOut, denyOut } = rules;
  const isOpen = !closesAll(rules);
  const lines = [
    ...(isOpen || allowOut.length > 0
      ? [`ip daddr ${resolver} meta l4proto { tcp, udp } th dport 53 accept`]
      : []),
    ...allowOut.map((entry) => `${destination(entry)}accept`),
    ...(isOpen
      ? [...denyOut.filter(isIpv4AddressOrBlock).map((entry) => `${destination(entry)}drop`), 'accept']
      : []),
  ];
  return ['flush chain ip thaw egress', ...lines.map((line) => `add rule ip thaw egress ${line}`), ''].join(
    '\n',
  );
}

/** A block of everything is no condition. */
const destination = (entry: string): string => (entry.endsWith('/0') ? '' : `ip daddr ${entry} `);

/** Replaces itself in one step, so that every Thaw on a host may apply it. */
export const hostRules = `
table inet thaw { }
delete table inet thaw
table inet thaw {
  chain postrouting {
    type nat hook postrouting priority srcnat
    ip saddr ${linkNetwork} oifname != "${hostLinkPrefix}*" masquerade
  }
  chain forward {
    type filter hook forward priority filter
    iifname "${hostLinkPrefix}*" oifname "${hostLinkPrefix}*" drop
  }
  chain input {
    type filter hook input priority filter
    iifname "${hostLinkPrefix}*" ct state established,related accept
    iifname "${hostLinkPrefix}*" drop
  }
}
`;

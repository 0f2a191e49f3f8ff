// Owns the wire of a sandbox's network settings: what a create or an update may say, checked, and as it is shown.
// Refuses to own who keeps it (the node, the proxy). Invariant: what is not offered is refused, never dropped; counts and
// lengths are bounded; a password never comes back.
import { type Static, Type } from 'typebox';
import { agentPort } from '../../shared/agent-protocol.ts';
import { closesAll, type EgressRules, isAddressOrBlock } from '../../shared/egress.ts';
import { ThawError } from '../../shared/errors.ts';

const maxEntries = 256;
const maxHttpsPorts = 64;
const orNull = <T extends Parameters<typeof Type.Optional>[0]>(schema: T) =>
  Type.Optional(Type.Union([schema, Type.Null()]));

const entries = Type.Array(Type.String({ minLength: 1, maxLength: 253 }), { maxItems: maxEntries });
const egressFields = {
  allowOut: orNull(entries),
  denyOut: orNull(entries),
  rules: orNull(Type.Record(Type.String({ maxLength: 253 }), Type.Unknown(), { maxProperties: maxEntries })),
  egressProxy: orNull(Type.Object({})),
};

export const networkConfig = Type.Object({
  ...egressFields,
  allowPublicTraffic: orNull(Type.Boolean()),
  maskRequestHost: orNull(Type.String({ minLength: 1, maxLength: 253 })),
  httpsPorts: orNull(Type.Array(Type.Integer({ minimum: 1, maximum: 65_535 }), { maxItems: maxHttpsPorts })),
});
export type NetworkConfig = Static<typeof networkConfig>;

export const networkUpdate = Type.Object({
  ...egressFields,
  allow_internet_access: orNull(Type.Boolean()),
});
export type NetworkUpdate = Static<typeof networkUpdate>;

/** What holds for one sandbox, kept in its record. */
export interface SandboxNetwork {
  egress: EgressRules;
  /** Replaces the Host header of requests to its ports; `${PORT}` stands for the port. */
  maskRequestHost?: string;
  /** Ports that speak TLS inside the sandbox. */
  httpsPorts?: number[];
}

/** @throws ThawError `bad-request` | `not-implemented`. */
export function networkOf(
  config: NetworkConfig | null | undefined,
  allowInternetAccess: boolean | null | undefined,
): SandboxNetwork {
  const { maskRequestHost, httpsPorts } = config ?? {};
  if (maskRequestHost != null && !hostPattern.test(maskedHost(maskRequestHost, agentPort)))
    throw new ThawError(
      'bad-request',
      `network.maskRequestHost: expected a host name, \${PORT} may be a part`,
    );
  if (httpsPorts?.includes(agentPort))
    throw new ThawError('bad-request', `network.httpsPorts: ${agentPort} is the agent's own port`);
  return {
    egress: egressOf(config ?? {}, allowInternetAccess),
    ...(maskRequestHost == null ? {} : { maskRequestHost }),
    ...(httpsPorts == null ? {} : { httpsPorts }),
  };
}

const hostPattern = /^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?$/i;

export const maskedHost = (mask: string, port: number): string =>
  mask.replaceAll(/\$\{PORT\}/g, String(port));

/** @throws ThawError `bad-request` | `not-implemented`. */
export function egressOf(
  { allowOut, denyOut, rules, egressProxy }: Omit<NetworkUpdate, 'allow_internet_access'>,
  allowInternetAccess: boolean | null | undefined,
): EgressRules {
  if (egressProxy != null) throw notOffered('network.egressProxy');
  if (rules != null && Object.keys(rules).length > 0) throw notOffered('network.rules');
  const egress: EgressRules = {
    allowInternetAccess: allowInternetAccess ?? true,
    allowOut: allowOut ?? [],
    denyOut: denyOut ?? [],
  };
  for (const entry of egress.denyOut)
    if (!isAddressOrBlock(entry)) throw badEntry('denyOut', entry, 'an IP address or a CIDR block');
  const names = egress.allowOut.filter((entry) => !isAddressOrBlock(entry));
  for (const name of names)
    if (!domainPattern.test(name))
      throw badEntry('allowOut', name, 'an IP address, a CIDR block or a domain');
  if (names.length > 0 && !closesAll(egress))
    throw new ThawError(
      'bad-request',
      'network.allowOut: a domain has a meaning only when denyOut closes all other traffic (0.0.0.0/0)',
    );
  return egress;
}

/** The last label starts with a letter: what looks like a broken address is one. */
const domainPattern = /^(\*\.)?([a-z0-9_]([a-z0-9_-]*[a-z0-9])?\.)*[a-z]([a-z0-9-]*[a-z0-9])?$/i;

const badEntry = (field: string, entry: string, expected: string) =>
  new ThawError('bad-request', `network.${field}: expected ${expected}, got ${JSON.stringify(entry)}`);

const notOffered = (what: string) =>
  new ThawError('not-implemented', `${what} is not offered by this version of Thaw`);

/** The settings as a client reads them; absent where none were made. */
export function shownNetwork(network: SandboxNetwork | undefined, isPublic: boolean) {
  const { egress, maskRequestHost, httpsPorts } = network ?? {};
  const { allowOut = [], denyOut = [] } = egress ?? {};
  const shown = {
    ...(allowOut.length > 0 ? { allowOut } : {}),
    ...(denyOut.length > 0 ? { denyOut } : {}),
    ...(isPublic ? {} : { allowPublicTraffic: false }),
    ...(maskRequestHost === undefined ? {} : { maskRequestHost }),
    ...(httpsPorts === undefined ? {} : { httpsPorts }),
  };
  return Object.keys(shown).length === 0 ? {} : { network: shown };
}

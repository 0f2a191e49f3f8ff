// Owns network slots: namespaces made ahead of need, each with a tap, an address that reaches its guest and a filter.
// Addresses inside are the same in all of them, so a clone needs no new identity to have one of its own outside.
// Invariant: the namespace's name is the claim on its number, its record in the data directory says it is ours; a slot
// has at most one VM, and rests before it gets another.
import { mkdir, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Cleanup } from '../../shared/cleanup.ts';
import { closedEgress, closesAll, type EgressRules } from '../../shared/egress.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { metrics } from '../../shared/metrics.ts';
import { runTool, ToolFailure } from './host-tool.ts';
import {
  egressRules,
  gatewayAddress,
  hostLinkPrefix,
  hostRules,
  namespaceRules,
  resolverAddress,
  userNetworkRules,
} from './network-rules.ts';

export interface NetworkSlot {
  readonly index: number;
  /** Connections to it reach the guest, port by port. */
  readonly address: string;
  /** Owner of the tap; the VMM runs as it. */
  readonly uid: number;
  /** Words before a command that make it run in this namespace. */
  readonly enter: readonly string[];
  /** May be called at any time; what is closed ends connections that are open. */
  setEgress(rules: EgressRules): Promise<void>;
}

export interface NetworkSlots {
  /** A slot that is ready, or a new one. */
  take(): Promise<NetworkSlot>;
  /** Its VM is gone. */
  giveBack(slot: NetworkSlot): void;
  /** Resolves when as many as wanted are ready, and all that were given back are ready again or gone. */
  rested(): Promise<void>;
  /** Removes all that are not taken; those that are go when they are given back. */
  close(): Promise<void>;
}

export interface NetworkSlotsOptions {
  /** Directory of one record per slot of this data directory. */
  recordsDir: string;
  log: Log;
  /** Who is in the slot: a guest behind a tap, or a VMM that has a network of its own and sockets here. */
  kind?: 'tap' | 'user';
  /** Slots kept ready. */
  ready?: number;
  /** Packets to a VM that is gone must not reach the next one. */
  restMs?: number;
  /** Where open guests ask for names; the host's own resolver may be private. */
  resolver?: string;
}

const namespacePrefix = 'thaw-';
const maxSlots = 32_768;
const firstUid = 0x7000_0000;
const defaultReady = 4;
const defaultRestMs = 2_000;
const defaultResolver = '1.1.1.1';
/** Guests have it in their neighbour table when they are captured: one for all. */
const tapMac = '02:00:0a:00:02:02';

export class NamespaceSlots implements NetworkSlots {
  readonly #options: NetworkSlotsOptions;
  readonly #ready: Slot[] = [];
  /** Those that wait before they are ready again, or go. */
  readonly #resting = new Set<Promise<void>>();
  readonly #ending = new AbortController();
  #forwarding: Promise<unknown> | undefined;
  #started: Promise<void> | undefined;
  #refilling: Promise<void> | undefined;
  #nextIndex = 0;
  #closed = false;

  constructor(options: NetworkSlotsOptions) {
    this.#options = options;
  }

  async take(): Promise<NetworkSlot> {
    if (this.#closed) throw new ThawError('shutting-down', 'network slots are no longer given out');
    this.#started ??= this.#start();
    await this.#started;
    const slot = this.#ready.shift() ?? (await this.#make());
    this.#refill();
    return slot;
  }

  giveBack(taken: NetworkSlot): void {
    const slot = taken as Slot;
    const resting = this.#rest(slot)
      .catch((error) => {
        this.#options.log.error({ err: error, slot: slot.index }, 'a network slot was not given back');
      })
      .finally(() => this.#resting.delete(resting));
    this.#resting.add(resting);
  }

  async rested(): Promise<void> {
    while (this.#resting.size > 0 || this.#refilling) await Promise.all([...this.#resting, this.#refilling]);
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#started?.catch(() => {});
    this.#ending.abort();
    const removing = this.#ready.splice(0).map((slot) => slot.remove());
    await Promise.all([...removing, ...this.#resting, this.#refilling]);
  }

  async #rest(slot: Slot): Promise<void> {
    // Unreferenced: a pause must not keep a program from ending; what is left is reclaimed at the next start.
    const { restMs = defaultRestMs } = this.#options;
    await delay(restMs, undefined, { ref: false, signal: this.#ending.signal }).catch(() => {});
    const full = this.#ready.length >= 2 * (this.#options.ready ?? defaultReady);
    if (this.#closed || full) return await slot.remove();
    await slot.reset();
    this.#ready.push(slot);
  }

  /** What an earlier run of this data directory left is removed; its VMMs have been ended before. */
  async #start(): Promise<void> {
    const { recordsDir, log } = this.#options;
    await mkdir(recordsDir, { recursive: true, mode: 0o700 });
    for (const name of await readdir(recordsDir)) {
      await deleteNamespace(Number(name));
      await rm(join(recordsDir, name), { force: true });
      metrics.leaksReclaimed.inc({ kind: 'namespace' });
      log.warn({ namespace: `${namespacePrefix}${name}` }, 'reclaimed from an earlier run');
    }
    await runTool('nft', ['-f', '-'], hostRules);
  }

  #refill(): void {
    const wanted = this.#options.ready ?? defaultReady;
    if (this.#closed || this.#refilling || this.#ready.length >= wanted) return;
    this.#refilling = this.#makeReady().then((isMade) => {
      this.#refilling = undefined;
      // What failed is tried again when the next one is taken.
      if (isMade) this.#refill();
    });
  }

  async #makeReady(): Promise<boolean> {
    try {
      const slot = await this.#make();
      if (this.#closed) await slot.remove();
      else this.#ready.push(slot);
      return true;
    } catch (error) {
      this.#options.log.error({ err: error }, 'no network slot could be made');
      return false;
    }
  }

  async #make(): Promise<Slot> {
    const { recordsDir, resolver = defaultResolver, kind = 'tap' } = this.#options;
    await using undo = new Cleanup();
    const index = await this.#claim(undo);
    const recordPath = join(recordsDir, String(index));
    const slot = new Slot(index, recordPath, resolver, () => this.#forward());
    await (kind === 'tap' ? configure(slot, resolver) : configureForUser(slot, resolver));
    undo.disarm();
    return slot;
  }

  /** Only a host with an open guest forwards packets at all. */
  #forward(): Promise<unknown> {
    this.#forwarding ??= runTool('sysctl', ['-q', '-w', 'net.ipv4.ip_forward=1']);
    return this.#forwarding;
  }

  /** The kernel refuses a name that is there: whoever made it, in whatever process, has the number. */
  async #claim(undo: Cleanup): Promise<number> {
    for (let attempt = 0; attempt < maxSlots; attempt++) {
      const index = this.#nextIndex++ % maxSlots;
      const record = join(this.#options.recordsDir, String(index));
      const isOurs = await writeFile(record, '', { flag: 'wx' }).then(
        () => true,
        () => false,
      );
      if (!isOurs) continue;
      try {
        await runTool('ip', ['netns', 'add', `${namespacePrefix}${index}`]);
        undo.defer('network slot', () => removeSlot(index, record));
        return index;
      } catch (error) {
        await rm(record, { force: true });
        if (!(error instanceof ToolFailure && error.stderr.includes('File exists'))) throw error;
      }
    }
    throw new ThawError('no-capacity', `all ${maxSlots} network slots of this host are taken`);
  }
}

class Slot implements NetworkSlot {
  readonly index: number;
  readonly namespace: string;
  readonly hostLink: string;
  readonly address: string;
  readonly hostAddress: string;
  readonly uid: number;
  readonly enter: readonly string[];
  readonly #recordPath: string;
  readonly #resolver: string;
  readonly #forward: () => Promise<unknown>;
  #isOpen = false;

  constructor(index: number, recordPath: string, resolver: string, forward: () => Promise<unknown>) {
    this.index = index;
    this.namespace = `${namespacePrefix}${index}`;
    this.hostLink = `${hostLinkPrefix}${index}`;
    this.hostAddress = linkAddress(2 * index);
    this.address = linkAddress(2 * index + 1);
    this.uid = firstUid + index;
    this.enter = ['nsenter', `--net=/run/netns/${this.namespace}`];
    this.#recordPath = recordPath;
    this.#resolver = resolver;
    this.#forward = forward;
  }

  async setEgress(rules: EgressRules): Promise<void> {
    const isOpen = !closesAll(rules) || rules.allowOut.length > 0;
    if (isOpen) await this.#forward();
    // Before the filter is: of a slot that was half opened nobody must think that it is closed.
    this.#isOpen ||= isOpen;
    await this.inside('nft', ['-f', '-'], egressRules(rules, this.#resolver));
    this.#isOpen = isOpen;
  }

  async inside(program: string, args: readonly string[], input = ''): Promise<void> {
    const [nsenter, ...words] = [...this.enter, program, ...args];
    await runTool(nsenter!, words, input);
  }

  async reset(): Promise<void> {
    if (this.#isOpen) await this.setEgress(closedEgress);
  }

  remove(): Promise<void> {
    return removeSlot(this.index, this.#recordPath);
  }
}

async function removeSlot(index: number, recordPath: string): Promise<void> {
  await deleteNamespace(index);
  await rm(recordPath, { force: true });
}

/** @param position in the link network. */
const linkAddress = (position: number): string => `100.127.${position >> 8}.${position & 255}`;

/** The tap goes with it. The veth pair would, too, but only when the last socket inside has said goodbye: minutes later. */
async function deleteNamespace(index: number): Promise<void> {
  await deleteLink(index);
  await runTool('ip', ['netns', 'del', `${namespacePrefix}${index}`]).catch((error) => {
    if (!(error instanceof ToolFailure && error.stderr.includes('No such file'))) throw error;
  });
}

/** The veth pair, and the host's end of it. One that is there is of a namespace that is gone: the name is ours now. */
async function linkOutside({ index, namespace, hostLink, hostAddress }: Slot): Promise<void> {
  const lines = [
    `link add ${hostLink} type veth peer name eth0 netns ${namespace}`,
    `addr add ${hostAddress}/31 dev ${hostLink}`,
    `link set ${hostLink} up`,
  ];
  const make = () => runTool('ip', ['-batch', '-'], lines.join('\n'));
  await make().catch(async (error) => {
    if (!(error instanceof ToolFailure && error.stderr.includes('File exists'))) throw error;
    await deleteLink(index);
    await make();
  });
}

async function deleteLink(index: number): Promise<void> {
  await runTool('ip', ['link', 'del', `${hostLinkPrefix}${index}`]).catch((error) => {
    if (!(error instanceof ToolFailure && error.stderr.includes('Cannot find device'))) throw error;
  });
}

const linkInside = ({ address, hostAddress }: Slot): string[] => [
  'link set lo up',
  `addr add ${address}/31 dev eth0`,
  'link set eth0 up',
  `route add default via ${hostAddress}`,
];

/** No tap: the VMM's own sockets are all there is. The host may ask a resolver on its loopback: see userNetworkRules. */
async function configureForUser(slot: Slot, resolver: string): Promise<void> {
  await linkOutside(slot);
  const settings = ['net.ipv4.conf.all.route_localnet=1', 'net.ipv6.conf.all.disable_ipv6=1'];
  await slot.inside('sysctl', ['-q', '-e', '-w', ...settings]);
  await runTool('ip', ['-netns', slot.namespace, '-batch', '-'], linkInside(slot).join('\n'));
  await slot.inside('nft', ['-f', '-'], userNetworkRules({ hostAddress: slot.hostAddress, resolver }));
}

/** Program starts are what it costs: all links in one, the inside in one, settings in one, the filter in one. */
async function configure(slot: Slot, resolver: string): Promise<void> {
  const { namespace, hostAddress, address, uid } = slot;
  const inside = [
    ...linkInside(slot),
    `tuntap add dev tap0 mode tap user ${uid} vnet_hdr`,
    `link set tap0 address ${tapMac}`,
    `addr add ${gatewayAddress}/24 dev tap0`,
    `addr add ${resolverAddress}/32 dev tap0`,
    'link set tap0 up',
  ];
  await linkOutside(slot);
  // -e: a host without IPv6 has no such key.
  await slot.inside('sysctl', [
    '-q',
    '-e',
    '-w',
    'net.ipv4.ip_forward=1',
    'net.ipv6.conf.all.disable_ipv6=1',
  ]);
  await runTool('ip', ['-netns', namespace, '-batch', '-'], inside.join('\n'));
  await slot.inside('nft', ['-f', '-'], namespaceRules({ slotAddress: address, hostAddress, resolver }));
}

// Owns the list of Debian packages in the guest and of what is taken from packages without installing them.
// Invariant: every package says why it is there; a change here changes the image's digest.

export const debianSuite = 'bookworm';

/** Installed in the root image, without recommended packages. */
export const guestPackages: Readonly<Record<string, string>> = {
  tini: 'the first process: reaps orphans and passes signals on',
  bash: 'the shell of commands',
  coreutils: 'ls, cat, …',
  procps: 'ps, top, kill',
  'util-linux': 'mount, script, setpriv',
  iproute2: 'the network address; sockets of before a snapshot',
  sudo: 'user may become root in a guest of its own',
  'ca-certificates': 'TLS',
  curl: 'HTTP from the shell',
  git: 'sources of what is built in a sandbox',
  python3: 'Python functions and commands',
  'python3-pip': 'Python packages in a sandbox',
  'python3-venv': 'environments of their own',
  'python3-uvicorn': 'the server of Python functions (ASGI)',
  'python3-websockets': 'WebSocket in it',
  'python3-asgiref': 'WSGI applications on it',
};

/** The kernel is unpacked, not installed: the guest needs neither its boot files nor an initramfs of its own. */
export const kernelMetaPackage = 'linux-image-cloud-amd64';
/** A statically linked shell for the initramfs. */
export const busyboxPackage = 'busybox-static';

/** Loaded in this order; `virtio` needs symbols of `virtio_ring`, the drivers need both. */
export const kernelModules: readonly string[] = [
  'drivers/virtio/virtio_ring',
  'drivers/virtio/virtio',
  'drivers/virtio/virtio_pci_modern_dev',
  'drivers/virtio/virtio_pci_legacy_dev',
  'drivers/virtio/virtio_pci',
  'drivers/block/virtio_blk',
  'arch/x86/crypto/crc32c-intel',
  'lib/libcrc32c',
  'fs/erofs/erofs',
  'fs/overlayfs/overlay',
  'net/core/failover',
  'drivers/net/net_failover',
  'drivers/net/virtio_net',
  'drivers/char/virtio_console',
  // A clone ends the connections that its memory holds and its network does not.
  'net/ipv4/inet_diag',
  'net/ipv4/tcp_diag',
  'net/vmw_vsock/vsock',
  'net/vmw_vsock/vmw_vsock_virtio_transport_common',
  'net/vmw_vsock/vmw_vsock_virtio_transport',
];

export interface HostProgram {
  program: string;
  debianPackage: string;
  why: string;
}

/** Host programs that build the image. */
export const buildPrograms: readonly HostProgram[] = [
  { program: 'mmdebstrap', debianPackage: 'mmdebstrap', why: 'makes the root file system of the guest' },
  { program: 'mkfs.erofs', debianPackage: 'erofs-utils', why: 'packs it read-only' },
  { program: 'mke2fs', debianPackage: 'e2fsprogs', why: 'formats the writable disk of the guest' },
  { program: 'cpio', debianPackage: 'cpio', why: 'packs the initramfs' },
  { program: 'strip', debianPackage: 'binutils', why: 'makes kernel modules small' },
  { program: 'dpkg-deb', debianPackage: 'dpkg', why: 'unpacks the kernel' },
  { program: 'tar', debianPackage: 'tar', why: 'unpacks the root file system' },
  {
    program: 'lz4',
    debianPackage: 'lz4',
    why: 'unpacks the kernel image for hypervisors that enter it by PVH',
  },
];

#!/bin/sh
# Run by mmdebstrap with the half-made root as $1: downloads packages that are unpacked, not installed, with the apt
# configuration of that root, so that a host of another distribution gets Debian's.
set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "$THAW_DOWNLOAD_DIR"
kernel=$(apt-cache depends "$THAW_KERNEL_META" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
[ -n "$kernel" ]
apt-get -o APT::Sandbox::User=root download "$kernel" "$THAW_BUSYBOX"
# What the image was made of, for whoever wants to know later.
chroot "$1" dpkg-query -W -f '${Package} ${Version}\n' > packages.txt

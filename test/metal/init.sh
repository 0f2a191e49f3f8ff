#!/bin/sh
# First program of the nested machine: file systems, modules, network, then the command server from the payload disk.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for dir in /dev/shm /run /tmp; do mount -t tmpfs tmpfs "$dir"; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for module in virtio_net kvm_amd fuse vhost_vsock tun veth nf_tables nft_nat nft_masq nft_ct; do modprobe "$module"; done
mkdir -p /payload
mount -o noatime /dev/vdb /payload
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
ulimit -n 65536
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/payload/home
cd /payload/thaw
node_modules/.bin/node test/metal/command-server.ts
poweroff -f

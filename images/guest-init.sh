#!/bin/sh
# The second program of the guest: file systems in memory, the network address, then tini and the agent.
# Refuses to own anything a restore changes: that is the agent's.
set -e
mount -t tmpfs -o nosuid,nodev,mode=0755 tmpfs /run
mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm 2>/dev/null || { mkdir -p /dev/shm; mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm; }
mkdir -p /dev/pts
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null || true
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
chown -R user:user /home/user
# /etc has links to these: a restore changes them.
mkdir /run/thaw
echo thaw > /run/thaw/hostname
: > /run/thaw/machine-id
printf '127.0.0.1 localhost\n::1 localhost\n' > /run/thaw/hosts
hostname thaw
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
  # No IPv6 leads out: no clone need look for its routers.
  echo 0 > /proc/sys/net/ipv6/conf/eth0/router_solicitations
  ip addr add 10.0.2.15/24 dev eth0
  ip link set eth0 up
  ip route add default via 10.0.2.2
fi
# A hypervisor without a virtio-serial port has a vsock, on whose port 1024 the host listens.
control=vsock:1024
for port in /sys/class/virtio-ports/*; do
  [ "$(cat "$port/name" 2>/dev/null)" = thaw.control ] && control=/dev/${port##*/}
done
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
export THAW_AGENT_MODE=guest THAW_AGENT_CONTROL="$control" THAW_AGENT_ROOT=/srv/thaw THAW_AGENT_PORT=49983
# A clone that compiles or collects by itself pays for it in memory and time; what an agent does much, TurboFan still finds.
v8='--no-sparkplug --no-maglev --no-memory-reducer'
exec /usr/bin/tini -s -- /usr/local/bin/node $v8 /opt/thaw/agent.mjs

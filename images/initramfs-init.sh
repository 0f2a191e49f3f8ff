#!/bin/busybox sh
# The first program of the guest: loads modules, puts the writable disk over the read-only root, goes there.
# A step that fails ends the guest (the kernel restarts it, which a VMM takes for its end): a template that is half
# mounted must not be captured.
set -e
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
if (: > /dev/console) 2>/dev/null; then exec < /dev/console > /dev/console 2>&1; else exec < /dev/null > /dev/null 2>&1; fi
while read -r module; do
  # Without SSE4.2 the accelerated crc32c is refused and the built-in one serves.
  $bb insmod "/modules/$module" 2>/dev/null || [ "$module" = crc32c-intel.ko ]
done < /modules/order
tries=0
until [ -b /dev/vdb ]; do
  tries=$((tries + 1))
  [ "$tries" -lt 1000 ]
  $bb usleep 10000
done
$bb mount -t erofs -o ro /dev/vda /ro
$bb mount -t ext4 -o noatime /dev/vdb /rw
$bb mkdir -p /rw/upper /rw/work
$bb mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work overlay /new
for dir in dev proc sys; do $bb mount --move /$dir /new/$dir; done
exec $bb switch_root /new /opt/thaw/guest-init

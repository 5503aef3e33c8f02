#!/bin/bash
# enter.sh ROOT COMMAND...: runs it in another root, with the mounts that programs need. Called in a mount and a PID namespace of its
# own (unshare --mount --pid --fork --kill-child): mounts and processes end with it.
set -euo pipefail
root=$1
shift
# libvirt's tests change how mounts below / propagate, so it has to be one.
mount --rbind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mkdir "$root/dev/net"
for node in null zero full random urandom tty fuse kvm net/tun; do
  [ -e "/dev/$node" ] || continue
  touch "$root/dev/$node"
  mount --bind "/dev/$node" "$root/dev/$node"
done
# Of those the kernel makes more when they are asked for, in its own /dev.
if [ -e /dev/loop-control ]; then
  mknod "$root/dev/loop-control" c 10 237
  for number in {0..63}; do mknod "$root/dev/loop$number" b 7 "$number"; done
fi
for link in fd fd/0:stdin fd/1:stdout fd/2:stderr; do ln -s "/proc/self/${link%:*}" "$root/dev/${link#*:}"; done
mount -t tmpfs -o mode=755 tmpfs "$root/run"
# Not by chroot alone, which tests that enter a mount namespace of their own would leave.
cd "$root"
pivot_root . .
umount -l .
exec chroot . "$@"

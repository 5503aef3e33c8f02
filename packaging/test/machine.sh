# A bare Debian 12 to install packages in. Sourced by the tests beside it; needs root.
#
# It is made once by debootstrap, from the mirror that apt uses here, with libvirt and QEMU from backports in it, and kept in
# target/test-cache. A test works on an overlay, which goes with it. There is no service manager: `systemctl` is
# packaging/test/systemctl, which starts what a unit says, as the user that it says.
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
cache=$PWD/target/test-cache
base=$cache/debian-12

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
fail() { say "$@"; exit 1; }
[ "$(id -u)" = 0 ] || fail "this needs root"

# The mirror of a suite of Debian that apt uses here, or the one that everybody may.
mirror() {
  local found
  found=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null | sed -n '/^http/{p;q}')
  printf '%s\n' "${found:-http://deb.debian.org/debian/}"
}

make_base() {
  local from new=$base.new
  [ ! -e "$base" ] || return 0
  from=$(mirror)
  say "making a Debian 12 from $from"
  rm -rf "$new"
  mkdir -p "$cache"
  debootstrap --variant=minbase bookworm "$new" "$from" >"$cache/debootstrap.log" 2>&1 ||
    fail "debootstrap failed: $cache/debootstrap.log"
  printf 'deb %s %s main\n' "$from" bookworm "$from" bookworm-backports >"$new/etc/apt/sources.list"
  printf '%s\n' 'Package: src:libvirt src:qemu src:seabios' 'Pin: release n=bookworm-backports' 'Pin-Priority: 600' \
    >"$new/etc/apt/preferences.d/libvirt"
  # Nothing is started by being installed.
  printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
  chmod 755 "$new/usr/sbin/policy-rc.d"
  cp -L /etc/resolv.conf "$new/etc/resolv.conf"
  # How apt reaches its mirror from here, where that is not plain.
  { grep -lri proxy /etc/apt/apt.conf.d 2>/dev/null || true; } | xargs -r cp -t "$new/etc/apt/apt.conf.d"
  chroot "$new" apt-get update -qq
  chroot "$new" apt-get install -y -qq --no-install-recommends ca-certificates curl iproute2 \
    libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 >"$cache/debootstrap.log" 2>&1 ||
    fail "apt failed: $cache/debootstrap.log"
  chroot "$new" apt-get clean
  mv "$new" "$base"
}

# Sets $machine to the root of a fresh one.
new_machine() {
  make_base
  work=$(mktemp -d "$cache/machine.XXXXXX")
  trap end_machine EXIT
  mkdir "$work/over" "$work/root"
  mount -t tmpfs -o size=2g tmpfs "$work/over"
  mkdir "$work/over/upper" "$work/over/work"
  mount -t overlay -o "lowerdir=$base,upperdir=$work/over/upper,workdir=$work/over/work" overlay "$work/root"
  machine=$work/root
  cp -L /etc/resolv.conf "$machine/etc/resolv.conf"
  mkdir "$machine/debs"
}

end_machine() {
  umount -l "$work/root" 2>/dev/null || true
  umount -l "$work/over" 2>/dev/null || true
  rm -rf "$work"
}

# in_machine COMMAND...: with the network of this host, for apt.
in_machine() { chroot "$machine" "$@"; }

# boot SCRIPT: runs it with processes, mounts and a network of the machine's own; all that it starts ends with it.
boot() {
  install -m 755 packaging/test/systemctl "$machine/usr/local/bin/systemctl"
  install -m 755 "$1" "$machine/test"
  unshare --mount --pid --fork --kill-child --net --ipc --uts --mount-proc="$machine/proc" sh -euc '
    mount --rbind /sys "$1/sys"
    mount -t tmpfs -o mode=755 tmpfs "$1/dev"
    mkdir "$1/dev/shm" "$1/dev/pts"
    for node in null zero full random urandom tty; do touch "$1/dev/$node"; mount --bind /dev/$node "$1/dev/$node"; done
    ln -s /proc/self/fd "$1/dev/fd"
    mount -t tmpfs -o mode=755 tmpfs "$1/run"
    chroot "$1" ip link set lo up
    exec chroot "$1" /test' sh "$machine"
}

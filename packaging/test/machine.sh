# A bare Debian 12 to install packages in. Sourced by the tests beside it; needs root.
#
# It is a base (root.sh) with libvirt and QEMU from backports, kept in target/test-cache. A test works on an overlay, which goes
# with it. There is no service manager: `systemctl` is packaging/test/systemctl, which starts what a unit says, as the user that
# it says.
. "$(dirname "${BASH_SOURCE[0]}")/root.sh"
with_libvirt=$cache/debian-12

make_machine_base() {
  local new=$with_libvirt.new
  [ ! -e "$with_libvirt" ] || return 0
  make_base 12
  rm -rf --one-file-system "$new"
  cp -a "$base" "$new"
  add_backports "$new"
  cp -L /etc/resolv.conf "$new/etc/resolv.conf"
  in_root "$new" 'apt-get update -qq
    apt-get install -y -qq --no-install-recommends ca-certificates curl iproute2 \
      libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86
    apt-get clean'
  mv "$new" "$with_libvirt"
}

# Sets $machine to the root of a fresh one.
new_machine() {
  make_machine_base
  work=$(mktemp -d "$cache/machine.XXXXXX")
  trap end_machine EXIT
  mkdir "$work/over" "$work/root"
  mount -t tmpfs -o size=2g tmpfs "$work/over"
  mkdir "$work/over/upper" "$work/over/work"
  mount -t overlay -o "lowerdir=$with_libvirt,upperdir=$work/over/upper,workdir=$work/over/work" overlay "$work/root"
  machine=$work/root
  cp -L /etc/resolv.conf "$machine/etc/resolv.conf"
  mkdir "$machine/debs"
}

end_machine() {
  umount -l "$work/root" 2>/dev/null || true
  umount -l "$work/over" 2>/dev/null || true
  rm -rf --one-file-system "$work"
}

# in_machine COMMAND...: with the network of this host, for apt.
in_machine() { chroot "$machine" "$@"; }

# boot SCRIPT: runs it with processes, mounts and a network of the machine's own; all that it starts ends with it.
boot() {
  install -m 755 packaging/test/systemctl "$machine/usr/local/bin/systemctl"
  install -m 755 "$1" "$machine/test"
  unshare --mount --pid --fork --kill-child --net --ipc --uts packaging/test/enter.sh "$machine" sh -c 'ip link set lo up; exec /test'
}

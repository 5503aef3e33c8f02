#!/usr/bin/env bash
# vm-matrix.sh RELEASE PROGRAM [ARGUMENT...]: runs the test of VMs of all forms (tests/tests/strange_vms) with libvirt and QEMU of
# another Debian: 12 (of its backports), 13, 13-backports or sid. Needs root. cargo calls it as its runner: PROGRAM is the test as it
# was built here, beside the services; programs of an older glibc run with a newer one. STRANGE_VMS and VM_MATRIX are passed on.
#
# A copy of the release's base system (root.sh) gets libvirt, QEMU and what the forms need by apt, and is kept in target/test-cache. The
# test runs in it, with this tree at its own place, and with processes, mounts and network of its own.
set -euo pipefail
release=$1 program=$(realpath "$2")
shift 2
. "$(dirname "$0")/root.sh"
case $release in 12 | 13 | 13-backports | sid) ;; *) fail "no Debian $release: 12, 13, 13-backports or sid" ;; esac

# Without these nothing works.
needed="libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils binutils curl e2fsprogs iproute2"
# Without one of these some forms fail: pools, encryption, SPICE, UEFI, TPM.
wanted="libvirt-daemon-driver-storage libvirt-daemon-driver-secret qemu-system-modules-spice ovmf swtpm swtpm-tools"

root=$cache/vm-matrix-$release
mkdir -p "$cache"
exec 9>"$root.lock"
flock -n 9 || fail "it runs already on Debian $release"

if [ ! -e "$root" ]; then
  make_base "${release%-backports}"
  rm -rf --one-file-system "$root.new"
  cp -a "$base" "$root.new"
  case $release in 12 | *-backports) add_backports "$root.new" ;; esac
  mv "$root.new" "$root"
fi
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
say "installing libvirt and QEMU of Debian $release"
in_root "$root" "apt-get update -qq
  apt-get upgrade -y -qq
  for package in $wanted; do apt-cache show \$package >/dev/null 2>&1 || echo \$package; done >/missing-packages
  apt-get install -y -qq --no-install-recommends $needed \$(printf '%s\n' $wanted | grep -vxFf /missing-packages)
  apt-get clean"
missing=$(xargs <"$root/missing-packages")
[ -z "$missing" ] || say "Debian $release has no $missing: forms that need it fail"

# What QEMU can do libvirt keeps in the cache, which is not this host's. Only the record and the page are changed in the tree.
mkdir -p "$root$PWD" "$root/opt/test-cache"
variables=(HOME=/root LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin "DEBIAN=$release" "MISSING_PACKAGES=$missing"
  "STRANGE_VMS=${STRANGE_VMS:-}" "VM_MATRIX=${VM_MATRIX:-}")
exec unshare --mount --pid --fork --kill-child --ipc --net bash -euo pipefail -c '
  root=$1 count=$2
  shift 2
  mount --bind "$PWD" "$root$PWD"
  mount --bind "$root/opt/test-cache" "$root$PWD/target/test-cache"
  ip link set lo up
  exec env -i "${@:1:count}" packaging/test/enter.sh "$root" "${@:count+1}"' bash "$root" "${#variables[@]}" "${variables[@]}" \
  bash -euo pipefail -c '
    # As process 1 the shell reaps the guests that libvirt has let go of.
    "$@" || exit' bash "$program" "$@"

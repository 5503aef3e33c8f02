#!/usr/bin/env bash
# Makes the Linux guest of the tests: a kernel and an initramfs in the folder it is given, from Debian's packages. They
# are downloaded and unpacked, and nothing is installed.
#
#   scripts/linux-guest.sh FOLDER
#
# In it are: Debian's cloud kernel, busybox, the modules for virtio disks and ports, and QEMU's guest agent with its
# libraries. tests/guest/init is what runs there.
set -euo pipefail
cd "$(dirname "$0")/.."
init=$PWD/tests/guest/init
folder=$1
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
stamp=$(sha256sum "$0" "$init" | sha256sum)
[ "$(cat "$folder/stamp" 2>/dev/null)" != "$stamp" ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\)$/\1/p' | sed -n 1p)
[ -n "$kernel" ] || { echo "linux-guest: apt knows no linux-image-cloud-amd64" >&2; exit 1; }
# apt's own user cannot enter this folder, which it warns of and gets along with.
apt-get download -qq "$kernel" busybox-static qemu-guest-agent 2>/dev/null
for package in *.deb; do dpkg -x "$package" packages; done

busybox=$work/packages/bin/busybox
[ -x "$busybox" ] || busybox=$work/packages/usr/bin/busybox
mkdir -p tree/bin tree/sbin tree/proc tree/sys tree/dev tree/modules tree/data tree/data2 tree/var/run tree/run tree/tmp tree/etc
cp "$busybox" tree/bin/busybox
cp "$init" tree/init
chmod 755 tree/init

# Each depends on those before it; what this kernel has built in has no file.
number=10
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console \
  crc16 crc32c_generic libcrc32c mbcache jbd2 ext4 efivarfs; do
  file=$(find packages -name "$module.ko" -o -name "$module.ko.xz" | sed -n 1p)
  case $file in
    *.xz) xz -dc "$file" >"tree/modules/$number-$module.ko" ;;
    ?*) cp "$file" "tree/modules/$number-$module.ko" ;;
  esac
  number=$((number + 1))
done

agent=packages/usr/sbin/qemu-ga
cp "$agent" tree/sbin/
# By it the agent sets the real-time clock when it sets the system's; without it, it sets neither.
ln -s ../bin/busybox tree/sbin/hwclock
# Its libraries are this machine's own, which QEMU needs as well; those that only the agent needs come from Debian too.
missing=$(ldd "$agent" | sed -n 's/^\s*\(\S*\) => not found$/\1/p')
[ -z "$missing" ] || { echo "linux-guest: the guest agent needs $missing" >&2; exit 1; }
ldd "$agent" | grep -o '/[^ ]*' | while read -r library; do
  mkdir -p "tree$(dirname "$library")"
  cp -L "$library" "tree$library"
done

cp packages/boot/vmlinuz-* "$folder/kernel"
(cd tree && find . | "$busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$folder/initramfs"
echo "$stamp" >"$folder/stamp"

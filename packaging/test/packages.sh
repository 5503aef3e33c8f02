#!/usr/bin/env bash
# packages.sh DEBS: installs the packages in a bare Debian 12 as README.md says, word by word; then upgrades, removes and purges
# them. Needs root, and a mirror of Debian.
set -euo pipefail
debs=$(realpath "$1")
. "$(dirname "$0")/machine.sh"

new_machine
home=$machine/root/ravada-snapshots
mkdir -p "$home/target/deb" "$home/next"
cp "$debs"/*.deb "$home/target/deb"
readme_blocks "$home"
[ -f "$home/block.4" ] || fail "README.md has no four blocks of commands under Deploying"
grep -q '^apt-get install' "$home/block.1" || fail "the first block of README.md does not install the packages"

say "installing"
in_machine bash -euo pipefail -c 'cd /root/ravada-snapshots; . ./block.1; apt-get install -y ./target/deb/libravada-*.deb' \
  >"$work/apt.log" 2>&1 || { tail -n 30 "$work/apt.log" >&2; fail "apt could not install them"; }
for unit in api agent gateway; do
  grep -q "systemctl enable --now snapshot-$unit" "$work/apt.log" || fail "what to do next with snapshot-$unit was not said"
done

# The next version: another number, and another default in a conffile.
for deb in "$debs"/*.deb; do
  dpkg-deb -R "$deb" "$work/next"
  sed -i 's/^Version: .*/Version: 99.0-1/' "$work/next/DEBIAN/control"
  for file in "$work"/next/etc/ravada-snapshots/*; do echo '# The next version.' >>"$file"; done
  dpkg-deb --root-owner-group -Znone -b "$work/next" "$home/next" >/dev/null
  rm -rf "$work/next"
done

boot packaging/test/inside.sh
say "all is well"

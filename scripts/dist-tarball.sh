#!/usr/bin/env bash
# Puts a release together of what was built:
#
#   scripts/dist-tarball.sh PROGRAMS MANUALS DEBS OUT
#
# OUT gets a tarball for other systems than Debian, the packages, the list of parts, and SHA256SUMS. Same input, same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
export LC_ALL=C TZ=UTC
programs=$1 manuals=$2 debs=$3 out=$4
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
name=ravada-snapshots-$version-linux-$(uname -m)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/$name

mkdir -p "$tree"/{bin,perl}
for program in snapshot-api snapshot-agent snapshot-gateway snapctl; do
  install -m 755 -s "$programs/$program" "$tree/bin/$program"
  mkdir -p "$tree"/{man,bash,zsh,fish}
  cp "$manuals/$program"/man/* "$tree/man"
  for shell in bash zsh fish; do cp "$manuals/$program/$shell"/* "$tree/$shell"; done
done
cp -r packaging/systemd packaging/sysusers.d examples docs "$tree"
rm -rf "$tree"/docs/{screenshots,page.png}
cp -r ravada/{lib,etc,Makefile.PL,README.md} "$tree/perl"
cp README.md CHANGELOG.md LICENSE SECURITY.md target/release-notes/{THIRD-PARTY.txt,sbom.cdx.json} "$tree"
chmod -R u=rwX,go=rX "$tree"

rm -rf "$out"
mkdir -p "$out"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$epoch" --format=gnu -C "$work" -c "$name" |
  xz -T1 -6 >"$out/$name.tar.xz"
cp "$debs"/*.deb target/release-notes/{THIRD-PARTY.txt,sbom.cdx.json} "$out"
(cd "$out" && sha256sum -- * >"$work/sums" && mv "$work/sums" SHA256SUMS)
ls -sh1 "$out"

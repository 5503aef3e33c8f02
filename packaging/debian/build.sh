#!/usr/bin/env bash
# Makes the four packages of what was built:
#
#   packaging/debian/build.sh PROGRAMS MANUALS OUT [VERSION]
#
# PROGRAMS is the folder of the programs, MANUALS what `manuals` wrote. VERSION is that of the workspace if it is not
# given. The same input makes the same bytes: times are those of the last commit, or SOURCE_DATE_EPOCH.
set -euo pipefail
cd "$(dirname "$0")/../.."
umask 022
export LC_ALL=C TZ=UTC
programs=$1 manuals=$2 out=$3
version=${4:-$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)}
# A pre-release comes before its release.
version=${version/-/\~}-1
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
maintainer=${DEB_MAINTAINER:-Ravada Snapshots <packages@snapshots.ravada.example>}
architecture=$(dpkg --print-architecture)
third_party=target/release-notes/THIRD-PARTY.txt

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
tree=

put() { install -D -m "$1" "$2" "$tree/$3"; } # put MODE FILE AT
packed() { mkdir -p "$(dirname "$tree/$2")"; gzip -9nc "$1" >"$tree/$2"; chmod 644 "$tree/$2"; } # packed FILE AT

begin() { # begin PACKAGE
  package=$1 tree=$work/$1
  mkdir -p "$tree/DEBIAN"
  put 644 packaging/debian/copyright "usr/share/doc/$package/copyright"
  packed CHANGELOG.md "usr/share/doc/$package/changelog.gz"
  {
    printf 'ravada-snapshots (%s) unstable; urgency=medium\n\n  * See changelog.gz.\n\n' "$version"
    printf ' -- %s  %s\n' "$maintainer" "$(date -Rud "@$SOURCE_DATE_EPOCH")"
  } >"$work/changelog"
  packed "$work/changelog" "usr/share/doc/$package/changelog.Debian.gz"
}

# The libraries that a program is linked with, as packages.
libraries() {
  mkdir -p "$work/shlibs/debian"
  printf 'Source: ravada-snapshots\n\nPackage: %s\nArchitecture: any\n' "$package" >"$work/shlibs/debian/control"
  (cd "$work/shlibs" && dpkg-shlibdeps -O --ignore-missing-info -e"$1" 2>/dev/null) | sed -n 's/^shlibs:Depends=//p'
}

finish() { # finish CONTROL [LIBRARIES]
  local size
  find "$tree" -path "$tree/DEBIAN" -prune -o -type f -path "$tree/etc/*" -printf '/%P\n' | sort >"$tree/DEBIAN/conffiles"
  [ -s "$tree/DEBIAN/conffiles" ] || rm "$tree/DEBIAN/conffiles"
  (cd "$tree" && find usr -type f | sort | xargs md5sum >DEBIAN/md5sums)
  size=$(du -sk --apparent-size --exclude=DEBIAN "$tree" | cut -f1)
  {
    sed -n '1p' "$1"
    printf 'Source: ravada-snapshots\nVersion: %s\n' "$version"
    grep -q '^Architecture:' "$1" || printf 'Architecture: %s\n' "$architecture"
    printf 'Maintainer: %s\nInstalled-Size: %s\nPriority: optional\n' "$maintainer" "$size"
    sed -e 1d -e "s/\${shlibs:Depends}/${2:-}/" "$1"
  } >"$tree/DEBIAN/control"
  find "$tree" -type d -exec chmod 755 {} +
  chmod 644 "$tree"/DEBIAN/{control,md5sums}
  find "$tree" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
  dpkg-deb --root-owner-group "-Z${DEB_COMPRESSION:-xz}" --build "$tree" "$out" >/dev/null
}

# binary NAME: a program, its manual and its completions.
binary() {
  local page
  put 755 "$programs/$1" "usr/bin/$1"
  strip --strip-unneeded --remove-section=.comment "$tree/usr/bin/$1"
  for page in "$manuals/$1"/man/*.1; do packed "$page" "usr/share/man/man1/$(basename "$page").gz"; done
  put 644 "$manuals/$1/bash/$1" "usr/share/bash-completion/completions/$1"
  put 644 "$manuals/$1/zsh/_$1" "usr/share/zsh/vendor-completions/_$1"
  put 644 "$manuals/$1/fish/$1.fish" "usr/share/fish/vendor_completions.d/$1.fish"
}

# program PART UNIT USER
program() {
  local script
  begin "ravada-snapshots-$1"
  binary "$2"
  put 644 "packaging/systemd/$2.service" "usr/lib/systemd/system/$2.service"
  put 644 "packaging/sysusers.d/$package.conf" "usr/lib/sysusers.d/$package.conf"
  put 644 "examples/$1.toml" "etc/ravada-snapshots/$1.toml"
  [ ! -f "$third_party" ] || packed "$third_party" "usr/share/doc/$package/THIRD-PARTY.txt.gz"
  if [ "$1" = api ]; then
    # What people and their monitoring use of the API.
    binary snapctl
    put 644 examples/snapctl.toml "usr/share/doc/$package/examples/snapctl.toml"
    put 644 packaging/prometheus/ravada-snapshots.rules.yml "usr/share/doc/$package/examples/ravada-snapshots.rules.yml"
    put 644 packaging/grafana/ravada-snapshots.json "usr/share/doc/$package/examples/ravada-snapshots.json"
  fi
  if [ "$1" = agent ]; then
    put 644 examples/libvirtd.service.d/unfinished-starts.conf "usr/share/doc/$package/examples/unfinished-starts.conf"
    put 755 examples/libvirtd.service.d/forget-unfinished-starts \
      "usr/share/doc/$package/examples/forget-unfinished-starts"
  fi
  for script in postinst prerm postrm; do
    sed -e "/^@PURGE@$/{r packaging/debian/purge.$1" -e 'd}' "packaging/debian/$script" |
      sed -e "s/@PACKAGE@/$package/; s/@UNIT@/$2/g; s/@USER@/$3/; s/@CONFIG@/$1.toml/" >"$tree/DEBIAN/$script"
    chmod 755 "$tree/DEBIAN/$script"
  done
  finish "packaging/debian/control.$1" "$(libraries "$tree/usr/bin/$2")"
}

perl_modules() {
  local module at
  begin libravada-snapshots-perl
  while IFS= read -r module; do
    at=${module#ravada/lib/}
    put 644 "$module" "usr/share/perl5/$at"
    page=${at%.pm}
    page=${page//\//::}
    pod2man --section=3pm --center='Ravada Snapshots' --release="$version" --name="$page" \
      --date="$(date -ud "@$SOURCE_DATE_EPOCH" +%F)" "$module" >"$work/page"
    packed "$work/page" "usr/share/man/man3/$page.3pm.gz"
  done < <(find ravada/lib -name '*.pm' | sort)
  put 644 ravada/README.md "usr/share/doc/$package/README.md"
  put 644 ravada/etc/rvd_back.service.d.conf "usr/share/doc/$package/examples/rvd_back.service.d.conf"
  put 644 ravada/etc/ravada.conf etc/ravada-snapshots/ravada.conf
  finish packaging/debian/control.perl
}

program api snapshot-api ravada-snapshots-api
program agent snapshot-agent root
program gateway snapshot-gateway ravada-snapshots-gateway
perl_modules

# Roots of Debian made by debootstrap, for the tests beside this file. Sourced by them; needs root.
#
# A base is made once, from the mirror that apt uses here, and kept in target/test-cache. It has the required packages and apt, and
# nothing else. A test works on a copy or on an overlay of it.
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
cache=$PWD/target/test-cache

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
fail() { say "$@"; exit 1; }
[ "$(id -u)" = 0 ] || fail "this needs root"

# codename_of RELEASE
codename_of() {
  case $1 in
    12) echo bookworm ;;
    13) echo trixie ;;
    sid) echo sid ;;
    *) fail "no Debian $1: 12, 13 or sid" ;;
  esac
}

# mirror_of LABEL DEFAULT: the mirror of that part of Debian that apt uses here, or the one that everybody may.
mirror_of() {
  local found
  found=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Label: $1" 2>/dev/null | sed -n '/^http/{p;q}')
  printf '%s\n' "${found:-$2}"
}

# make_base RELEASE: sets $base to the root of a Debian that has the base system alone.
make_base() {
  local codename mirror security new sources
  codename=$(codename_of "$1")
  base=$cache/base-$1 new=$cache/base-$1.new
  [ ! -e "$base" ] || return 0
  mirror=$(mirror_of Debian http://deb.debian.org/debian/)
  security=$(mirror_of Debian-Security http://deb.debian.org/debian-security/)
  say "making a Debian $1 from $mirror"
  rm -rf --one-file-system "$new"
  mkdir -p "$cache"
  # What debootstrap mounts and starts is in namespaces, which end with it, also when it is interrupted.
  unshare --mount --pid --fork --kill-child debootstrap --variant=minbase "$codename" "$new" "$mirror" \
    >"$cache/debootstrap-$1.log" 2>&1 || fail "debootstrap failed: $cache/debootstrap-$1.log"
  sources=("$mirror $codename")
  # What is uploaded to sid is its update.
  [ "$codename" = sid ] || sources+=("$mirror $codename-updates" "$security $codename-security")
  printf 'deb %s main\n' "${sources[@]}" >"$new/etc/apt/sources.list"
  # A mirror may be weeks behind sid, whose lists are valid for one.
  [ "$codename" != sid ] || echo 'Acquire::Check-Valid-Until "false";' >"$new/etc/apt/apt.conf.d/90valid"
  # Nothing is started by being installed.
  printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
  chmod 755 "$new/usr/sbin/policy-rc.d"
  # How apt reaches its mirror from here, where that is not plain.
  { grep -lri proxy /etc/apt/apt.conf.d 2>/dev/null || true; } | xargs -r cp -t "$new/etc/apt/apt.conf.d"
  cp -L /etc/resolv.conf "$new/etc/resolv.conf"
  in_root "$new" 'apt-get update -qq; apt-get upgrade -y -qq; apt-get clean'
  mv "$new" "$base"
}

# in_root ROOT SCRIPT: has apt do something there; what it says is in a log. Its scripts see no processes and devices of this host.
in_root() {
  local log=$cache/apt.$$.log
  unshare --mount --pid --fork --kill-child --ipc packaging/test/enter.sh "$1" bash -euo pipefail -c "$2" >"$log" 2>&1 </dev/null ||
    { tail -n 30 "$log" >&2; fail "apt failed in $1: $log"; }
  rm "$log"
}

# add_backports ROOT: libvirt and QEMU come from that release's backports, as scripts/setup.sh has it on Debian 12.
add_backports() {
  local suite
  suite=$(. "$1/etc/os-release" && echo "$VERSION_CODENAME-backports")
  printf 'deb %s %s main\n' "$(mirror_of Debian http://deb.debian.org/debian/)" "$suite" >>"$1/etc/apt/sources.list"
  printf '%s\n' 'Package: src:libvirt src:qemu src:seabios' "Pin: release n=$suite" 'Pin-Priority: 600' \
    >"$1/etc/apt/preferences.d/libvirt"
}

# readme_blocks DIR: the code blocks of README.md under "Deploying", each a file: block.1, block.2 and so on.
readme_blocks() {
  awk -v out="$1/block." '
    /^## / { inside = ($0 == "## Deploying"); next }
    inside && /^    / { if (!open) { n++; open = 1 } print substr($0, 5) > (out n); next }
    inside { open = 0 }' README.md
}

#!/usr/bin/env bash
# Installs what the build, the demo and the tests need on Debian 12 or 13, and nothing that is already there.
#
#   scripts/setup.sh build   compiler, libvirt headers, Node.js for the page
#   scripts/setup.sh run     the above, libvirt and QEMU to run guests, and grpcurl
#   scripts/setup.sh test    the above, and what the tests drive besides
#
# Every step looks first and acts only on what is missing, so a second run takes well under a second.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
level=${1:-test}
tools=$root/target/tools
rust_minimum=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

say() { printf 'setup: %s\n' "$*" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

# Debian 12's own libvirt is 9.0, which can neither revert nor delete external snapshots, and its QEMU does not
# install beside qemu-utils from backports; both come from backports there. The mirror is the one apt already uses.
release_options() {
  . /etc/os-release
  if [ "${VERSION_CODENAME:-}" = bookworm ]; then
    if ! apt-get indextargets --format '$(RELEASE) $(CODENAME)' | grep -q bookworm-backports; then
      local mirror
      mirror=$(apt-get indextargets --format '$(REPO_URI)|$(CODENAME)' 'Created-By: Packages' |
        sed -n 's/|bookworm$//p' | head -n 1)
      [ -n "$mirror" ] || { say "no apt source for bookworm found"; exit 1; }
      say "adding bookworm-backports from the mirror in use"
      printf 'deb %s bookworm-backports main\n' "$mirror" |
        as_root tee /etc/apt/sources.list.d/ravada-snapshots-backports.list >/dev/null
      apt_updated=
    fi
    echo "-t bookworm-backports"
  fi
}

apt_updated=
# apt_install OPTION... -- PACKAGE...
apt_install() {
  local options=() missing=()
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  local package
  for package in "$@"; do installed "$package" || missing+=("$package"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  [ -n "$apt_updated" ] || { as_root apt-get update -qq; apt_updated=yes; }
  DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends "${options[@]}" \
    "${missing[@]}" >/dev/null
}

at_least() { printf '%s\n%s\n' "$1" "$2" | sort -V -C; } # at_least MINIMUM ACTUAL

ensure_rust() {
  export PATH="$HOME/.cargo/bin:$PATH"
  if command -v cargo >/dev/null && at_least "$rust_minimum" "$(rustc --version | cut -d' ' -f2)"; then return; fi
  if ! command -v rustup >/dev/null; then
    if apt-cache show rustup >/dev/null 2>&1; then
      apt_install -- rustup
    else
      say "installing Rust by rustup"
      curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt
      return
    fi
  fi
  say "updating Rust to at least $rust_minimum"
  rustup toolchain install stable --profile minimal -c clippy -c rustfmt
  rustup default stable
}

ensure_build() {
  apt_install -- ca-certificates curl gcc libc6-dev make pkg-config git binutils
  command -v node >/dev/null || apt_install -- nodejs
  command -v npm >/dev/null || apt_install -- npm
  local options
  options=$(release_options)
  # shellcheck disable=SC2086 # the options are words
  apt_install $options -- libvirt-dev
  ensure_rust
}

ensure_run() {
  local options
  options=$(release_options)
  # shellcheck disable=SC2086
  apt_install $options -- libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils
  if [ ! -x "$tools/bin/grpcurl" ]; then
    say "installing grpcurl into target/tools"
    apt_install -- python3 python3-venv
    python3 -m venv "$tools"
    "$tools/bin/pip" install -q --disable-pip-version-check -r scripts/tools.txt
  fi
}

ensure_test() {
  apt_install -- python3-libvirt chromium
}

case $level in
  build) ensure_build ;;
  run) ensure_build; ensure_run ;;
  test) ensure_build; ensure_run; ensure_test ;;
  *) say "usage: scripts/setup.sh build|run|test"; exit 2 ;;
esac

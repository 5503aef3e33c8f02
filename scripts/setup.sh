#!/usr/bin/env bash
# Installs what the build, the demo and the tests need on Debian 12 or 13, and nothing that is already there.
#
#   scripts/setup.sh build   compiler, libvirt headers, Node.js for the page
#   scripts/setup.sh run     the above, libvirt and QEMU to run guests, and grpcurl
#   scripts/setup.sh test    the above, and what the tests drive besides
#   scripts/setup.sh fuzz    what the build needs, and cargo-fuzz
#   scripts/setup.sh mutants what the build needs, cargo-mutants, and what reads Rust for scripts/mutants
#   scripts/setup.sh host    libvirt's QEMU driver and QEMU alone, for an agent that has both in itself
#   scripts/setup.sh compose the build's, Docker with Compose and debootstrap, for the images of docker-compose.yml
#   scripts/setup.sh dist    what the build needs, and what makes packages and tries them
#   scripts/setup.sh bare    what makes a Debian with nothing but the base system, and boots it
#
# Every step looks first and acts only on what is missing, so a second run takes well under a second.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
level=${1:-test}
export HOME=${HOME:-~}
tools=$root/target/tools
rust_minimum=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
libvirt_minimum=9.9

say() { printf 'setup: %s\n' "$*" >&2; }
give_up() { say "$@"; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else give_up "this needs root, and there is no sudo: $*"; fi
}

# installed PACKAGE [MINIMUM]
installed() {
  local found
  found=$(dpkg-query -W -f '${db:Status-Status} ${Version}\n' "$1" 2>/dev/null | grep -m 1 '^installed ') &&
    dpkg --compare-versions "${found#* }" ge "${2:-0}"
}

# Leaves the packages that are not installed, at least as new as $minimum, in $missing.
look_for() {
  local package
  missing=()
  for package in "$@"; do installed "$package" "$minimum" || missing+=("$package"); done
  [ ${#missing[@]} -gt 0 ]
}

release=$(. /etc/os-release 2>/dev/null && echo "${ID:-} ${VERSION_ID:-}") || true
minimum=
from=()
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT

apt_updated=
apt_update() {
  [ -z "$apt_updated" ] || return 0
  as_root apt-get update -qq
  apt_updated=yes
}

# apt_install PACKAGE..., at least as new as $minimum, by the options $from. Never asks, never removes.
apt_install() {
  local missing
  look_for "$@" || return 0
  case $release in
    'debian 12' | 'debian 13') ;;
    *) give_up "this is neither Debian 12 nor 13; install by hand what Debian has in: ${missing[*]}" ;;
  esac
  say "installing ${missing[*]}"
  apt_update
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-remove \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \
    "${from[@]}" "${missing[@]}" </dev/null >/dev/null
}

# As apt_install, for libvirt and QEMU. Debian 12's own libvirt is 9.0, which can neither revert nor delete external
# snapshots, and its QEMU does not install beside qemu-utils from backports; both come from backports there. Only they
# do: `-t bookworm-backports` would put another systemd on the machine, too.
apt_install_newer() {
  local missing from=()
  look_for "$@" || return 0
  if [ "$release" = 'debian 12' ]; then
    add_backports
    printf '%s\n' 'Package: src:libvirt src:qemu src:seabios' 'Pin: release n=bookworm-backports' \
      'Pin-Priority: 600' >"$pins"
    from=(-o "Dir::Etc::preferences=$pins")
  fi
  apt_install "$@"
}

# The mirror is the one apt already uses; which that is, apt knows once it has its lists.
add_backports() {
  local mirror
  apt_update
  ! has_backports || return 0
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Codename: bookworm' |
    sed -n '/^cdrom:/!{p;q}')
  [ -n "$mirror" ] || give_up "no apt source for bookworm found"
  say "adding bookworm-backports from the mirror in use"
  printf 'deb %s bookworm-backports main\n' "$mirror" |
    as_root tee /etc/apt/sources.list.d/ravada-snapshots-backports.list >/dev/null
  apt_updated=
}

has_backports() { [ -n "$(apt-get indextargets 'Created-By: Packages' 'Codename: bookworm-backports')" ]; }

at_least() { printf '%s\n%s\n' "$1" "$2" | sort -V -C; } # at_least MINIMUM ACTUAL

has_rust() {
  command -v cargo >/dev/null && at_least "$rust_minimum" "$(rustc --version 2>/dev/null | cut -d' ' -f2)"
}

ensure_rust() {
  export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  ! has_rust || return 0
  # The version that CI checks with: a newer one may have lints that this code has not met.
  say "installing Rust $rust_minimum by rustup"
  # Debian's rustup, where there is one, would remove Debian's rustc.
  if ! command -v rustup >/dev/null && ! installed rustc && [ -n "$(apt-cache show rustup 2>/dev/null)" ]; then
    apt_install rustup
  fi
  if command -v rustup >/dev/null; then
    rustup toolchain install "$rust_minimum" --profile minimal -c clippy -c rustfmt && rustup default "$rust_minimum"
  else
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | \
      sh -s -- -y --default-toolchain "$rust_minimum" --profile minimal -c clippy -c rustfmt
  fi || true
  has_rust || give_up "no Rust $rust_minimum: rustup could not bring it (see above). Install it, then run this again."
}

ensure_build() {
  apt_install ca-certificates curl gcc libc6-dev make pkg-config git binutils
  command -v node >/dev/null || apt_install nodejs
  command -v npm >/dev/null || apt_install npm
  minimum=$libvirt_minimum apt_install_newer libvirt-dev
  ensure_rust
}

ensure_run() {
  local had_daemon=yes
  installed libvirt-daemon || had_daemon=
  minimum=$libvirt_minimum apt_install_newer libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients
  apt_install_newer qemu-system-x86 qemu-utils
  # Debian starts libvirt at once and at every boot. Demo and tests run their own: where there was none, none stays.
  if [ -z "$had_daemon" ] && [ -d /run/systemd/system ]; then
    as_root systemctl disable --quiet --now libvirt-guests.service libvirtd{,-ro,-admin}.socket libvirtd.service \
      virtlogd{,-admin}.socket virtlogd.service
  fi
  if [ ! -x "$tools/bin/grpcurl" ]; then
    say "installing grpcurl into target/tools"
    apt_install python3 python3-venv
    python3 -m venv "$tools"
    "$tools/bin/pip" install -q --use-pep517 --disable-pip-version-check -r scripts/tools.txt
  fi
}

ensure_test() {
  apt_install python3-libvirt python3-yaml chromium e2fsprogs ovmf xz-utils
  # The classes by which virt-manager reads snapshots.
  apt_install virtinst
  # Disks that are volumes of a pool, and those that are encrypted.
  minimum=$libvirt_minimum apt_install_newer libvirt-daemon-driver-storage libvirt-daemon-driver-secret
  # An emulated TPM.
  apt_install swtpm swtpm-tools
  # A guest with all that a desktop has, and who looks at it.
  apt_install_newer qemu-system-modules-spice
  apt_install gir1.2-spiceclientglib-2.0 python3-gi
  # A process with another clock.
  apt_install faketime
  # systemd-analyze, which judges packaging/systemd, of which nothing is started; and what makes packages.
  apt_install systemd dpkg-dev
  # For ravada/: what its modules use, and what their tests do.
  apt_install perl libmojolicious-perl libcrypt-jwt-perl libcryptx-perl libclass-method-modifiers-perl \
    libsys-virt-perl libmoose-perl libdbi-perl libdbd-sqlite3-perl libperl-critic-perl
  if ! scripts/linux-guest.sh "$root/target/test-cache/linux"; then
    # apt may not have its lists yet, or old ones.
    apt_update
    scripts/linux-guest.sh "$root/target/test-cache/linux"
  fi
}

ensure_host() {
  minimum=$libvirt_minimum apt_install_newer libvirt-daemon-driver-qemu
  apt_install_newer qemu-system-x86 qemu-utils
}

ensure_compose() {
  apt_install docker.io debootstrap iproute2 iptables
  if [ ! -x "$tools/bin/docker-compose" ]; then
    say "installing docker-compose into target/tools"
    apt_install python3 python3-venv
    [ -x "$tools/bin/python3" ] || python3 -m venv "$tools"
    "$tools/bin/pip" install -q --disable-pip-version-check -r scripts/compose-tools.txt
  fi
}

ensure_fuzz() {
  # libFuzzer is C++; the sanitizers come with rustc, which takes their flags when told that it is a nightly one.
  apt_install g++
  [ -x "$tools/bin/cargo-fuzz" ] || {
    say "installing cargo-fuzz into target/tools"
    cargo install -q cargo-fuzz --version 0.13.1 --locked --root "$tools"
  }
}

ensure_mutants() {
  # The names of mutants, which .cargo/mutants.toml lists, are those of one version.
  [ "$("$tools/bin/cargo-mutants" mutants --version 2>/dev/null)" = 'cargo-mutants 27.1.0' ] || {
    say "installing cargo-mutants into target/tools"
    cargo install -q cargo-mutants --version 27.1.0 --locked --root "$tools"
  }
  "$tools/bin/python3" -c 'import tree_sitter, tree_sitter_rust' 2>/dev/null || {
    say "installing tree-sitter into target/tools"
    apt_install python3 python3-venv
    [ -x "$tools/bin/python3" ] || python3 -m venv "$tools"
    "$tools/bin/python3" -m pip install -q --disable-pip-version-check tree-sitter==0.26.1 tree-sitter-rust==0.24.2
  }
}

ensure_dist() {
  apt_install dpkg-dev lintian debootstrap debian-archive-keyring util-linux perl
}

ensure_bare() {
  apt_install git curl debootstrap debian-archive-keyring util-linux iproute2 systemd-container
}

case $level in
  build) ensure_build ;;
  run) ensure_build; ensure_run ;;
  test) ensure_build; ensure_run; ensure_test ;;
  fuzz) ensure_build; ensure_fuzz ;;
  mutants) ensure_build; ensure_mutants ;;
  host) ensure_host ;;
  compose) ensure_build; ensure_run; ensure_compose ;;
  dist) ensure_build; ensure_dist ;;
  bare) ensure_bare ;;
  *) say "usage: scripts/setup.sh build|run|test|fuzz|mutants|host|compose|dist|bare"; exit 2 ;;
esac

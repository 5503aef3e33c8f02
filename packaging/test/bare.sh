#!/usr/bin/env bash
# bare.sh RELEASE...: what is quick of `make test`, on Debian 12 and 13 with nothing but the base system, where everything else comes
# from scripts/setup.sh. Needs root, a mirror of Debian, and the registries that pip, npm and cargo use here.
#
# For each release: a copy of its base system (root.sh), a clean clone of HEAD in it, and in there bare-inside.sh, with processes and
# mounts of its own; with WHOLE=1 it runs all of `make test` instead. Then the packages that were built there are installed in a
# second copy, which its own systemd boots (units.sh).
# Each part goes on after the failure of another, if it can; the failed ones are listed at the end.
#
# The logs, and the lists of what was installed (name, version, origin, source package), are target/bare-test/debian-N*.
# Rust is this host's if rustup cannot reach its server (RUST=host and RUST=rustup decide it). Cargo's downloads are shared.
set -euo pipefail
. "$(dirname "$0")/root.sh"
export base
results=$PWD/target/bare-test
mkdir -p "$results"
work=
failed=()
# In the background SIGINT would be ignored by all that is started.
set -m

# Mounts and processes are in namespaces that have ended by now, or end with their first process.
clean_up() {
  [ -z "${running:-}" ] || kill -KILL "$running" 2>/dev/null || true
  [ -z "$work" ] || rm -rf --one-file-system "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

# Whether Rust is to come from this host.
rust_of_host() {
  case ${RUST:-} in
    host) true ;;
    rustup) false ;;
    # Setup needs both: the script that installs rustup, and where that gets a toolchain.
    *) ! { curl -sfI -m 10 https://sh.rustup.rs && curl -sfI -m 10 https://static.rust-lang.org/rustup/release-stable.toml; } >/dev/null ;;
  esac
}

# configure ROOT: pip, npm and cargo reach their registries in it as they do here.
configure() {
  local file
  for file in /etc/pip.conf /etc/npmrc "$HOME/.npmrc" "$HOME/.config/pip/pip.conf"; do
    [ ! -f "$file" ] || install -D -m 600 "$file" "$1${file/#$HOME\//\/root\/}"
  done
  # Who signs the registries' certificates here.
  install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$1/opt/registries.crt"
  cp -L /etc/resolv.conf "$1/etc/resolv.conf"
  cp /etc/hosts "$1/etc/hosts"
}

# environment: what programs in the root have of this one's: nothing, but how registries are reached.
environment() {
  printf '%s\n' HOME=/root CARGO_HOME=/opt/cargo LC_ALL=C.UTF-8 PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  printf '%s=/opt/registries.crt\n' SSL_CERT_FILE CURL_CA_BUNDLE PIP_CERT NODE_EXTRA_CA_CERTS npm_config_cafile CARGO_HTTP_CAINFO GIT_SSL_CAINFO
  env | grep -iE '^(whole|https?_proxy|no_proxy|pip_(index|extra_index)_url|npm_config_registry|cargo_(registries|source)_.*)=' || true
}

# mounts ROOT: what of this host is seen in it, one a line: read-only or not, from, to.
mounts() {
  if rust_of_host; then
    printf '%s\n' "ro $(rustc --print sysroot) $1/opt/rust"
  fi
  mkdir -p "${CARGO_HOME:-$HOME/.cargo}/registry"
  printf '%s\n' "rw ${CARGO_HOME:-$HOME/.cargo}/registry $1/opt/cargo/registry"
}

# enter ROOT COMMAND...: runs it in there.
enter() {
  local root=$1
  shift
  mapfile -t variables < <(environment)
  mounts "$root" >"$work/mounts"
  unshare --mount --pid --fork --kill-child --ipc bash -euo pipefail -c '
    while read -r how from to; do mkdir -p "$to"; mount --bind -o "$how" "$from" "$to"; done <"$1"
    shift
    exec env -i "${@:3:$2}" packaging/test/enter.sh "$1" "${@:3+$2}"' bash \
    "$work/mounts" "$root" "${#variables[@]}" "${variables[@]}" "$@" </dev/null &
  running=$!
  local status=0
  wait "$running" || status=$?
  running=
  return "$status"
}

# try WHAT COMMAND...: tells how long it took, and notes a failure.
try() {
  local what=$1 begin=$SECONDS
  shift
  if "$@"; then
    say "$what: $((SECONDS - begin)) s"
  else
    failed+=("$what")
    say "$what: FAILED after $((SECONDS - begin)) s"
    return 1
  fi
}

# run_inside RELEASE ROOT: the log of all of it is one file; what is said of the parts is shown, too.
run_inside() {
  enter "$2" bash /root/ravada-snapshots/packaging/test/bare-inside.sh >"$results/debian-$1.log" 2>&1 || {
    tail -n 100 "$results/debian-$1.log" >&2
    return 1
  }
}

test_release() {
  local release=$1 root
  make_base "$release"
  work=$(mktemp -d "$cache/bare.XXXXXX")
  root=$work/root
  cp -a "$base" "$root"
  configure "$root"
  git clone -q --no-hardlinks --no-local . "$root/root/ravada-snapshots"
  rm -rf "$results/debian-$release"*
  say "Debian $release: $(git log -1 --format='%h %s'), log in $results/debian-$release.log"
  try "Debian $release" run_inside "$release" "$root" || true
  grep -a '^bare-inside.sh: ' "$results/debian-$release.log" | sed "s/^bare-inside.sh:/  Debian $release:/" >&2 || true
  cp "$root/root/ravada-snapshots/target/packages.list" "$results/debian-$release.packages" || failed+=("packages of Debian $release")
  mkdir "$results/debian-$release.deb"
  cp "$root"/root/ravada-snapshots/target/deb/*.deb "$results/debian-$release.deb" || true
  rm -rf --one-file-system "$work"
  work=
  try "Debian $release, units" packaging/test/units.sh "$release" "$results/debian-$release.deb" || true
}

for release in "$@"; do test_release "$release"; done
if [ ${#failed[@]} -gt 0 ]; then
  say "FAILED: $(printf '%s; ' "${failed[@]}")"
  exit 1
fi
say "all is well on Debian $*"

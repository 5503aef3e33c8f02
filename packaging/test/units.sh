#!/usr/bin/env bash
# units.sh RELEASE DEBS: the three services under systemd itself, that of Debian RELEASE (12 or 13), as process 1. Needs root.
#
# A copy of the release's base system (root.sh) gets libvirt, QEMU and the packages in DEBS by apt, and is booted by systemd-nspawn,
# with a network of its own. Inside, units-inside.sh follows README.md and looks at the units.
set -euo pipefail
debs=$(realpath "$2")
. "$(dirname "$0")/root.sh"
release=$1
work= nspawn= pid=
set -m

clean_up() {
  if [ -n "$nspawn" ]; then
    # To systemd-nspawn SIGTERM means to power the machine off, which takes a moment; SIGKILL ends all of it.
    kill -TERM "$nspawn" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$nspawn" 2>/dev/null || break; sleep 0.1; done
    # Killed, it would leave the machine running: with its first process everything in it ends.
    kill -KILL ${pid:-} "$nspawn" 2>/dev/null || true
    wait "$nspawn" 2>/dev/null || true
  fi
  [ -z "$work" ] || rm -rf --one-file-system "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

install_packages() {
  local root=$1
  [ "$release" != 12 ] || add_backports "$root"
  cp -L /etc/resolv.conf "$root/etc/resolv.conf"
  mkdir -p "$root/debs" "$root/test"
  cp "$debs"/ravada-snapshots-*.deb "$root/debs"
  install -m 755 packaging/test/units-{inside,snapshots}.sh "$root/test"
  readme_blocks "$root/test"
  in_root "$root" 'apt-get update -qq
    apt-get upgrade -y -qq
    apt-get install -y -qq --no-install-recommends systemd-sysv dbus curl ca-certificates iproute2 \
      libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils
    apt-get install -y -qq --no-install-recommends /debs/*.deb'
  rm "$root/usr/sbin/policy-rc.d"
  # The guest is emulated and runs without limits of cgroups; AppArmor is the host's.
  printf '%s\n' 'security_driver = "none"' 'cgroup_controllers = []' >>"$root/etc/libvirt/qemu.conf"
}

# The process that is number 1 in the machine.
leader() {
  local pid
  for pid in $(pgrep -P "$nspawn"); do
    [ "$(sed -n 's/^NSpid:.*\t\([0-9]*\)$/\1/p' "/proc/$pid/status" 2>/dev/null)" != 1 ] || { echo "$pid"; return; }
  done
  return 1
}

boot() {
  # The system calls are those by which the agent narrows itself, which systemd-nspawn forbids by default.
  UNIFIED_CGROUP_HIERARCHY=1 systemd-nspawn --quiet --register=no --keep-unit --directory="$1" --boot --private-network \
    --capability=all --system-call-filter="seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self" \
    --link-journal=no --console=pipe >"$work/boot.log" 2>&1 </dev/null &
  nspawn=$!
  for _ in $(seq 300); do
    kill -0 "$nspawn" 2>/dev/null || { cat "$work/boot.log" >&2; fail "systemd-nspawn has ended"; }
    if pid=$(leader) && inside systemctl is-system-running 2>/dev/null | grep -qE '^(running|degraded)$'; then return; fi
    sleep 0.2
  done
  tail -n 50 "$work/boot.log" >&2
  fail "Debian $release did not boot in a minute"
}

inside() { nsenter -t "$pid" --all env -i HOME=/root LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }

make_base "$release"
work=$(mktemp -d "$cache/units.XXXXXX")
cp -a "$base" "$work/root"
install_packages "$work/root"
boot "$work/root"
say "Debian $release runs $(inside systemctl --version | sed -n 1p)"
inside /test/units-inside.sh
say "the units work on Debian $release"

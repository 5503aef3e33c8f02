#!/bin/bash
# What units.sh does on a machine that its own systemd has booted, after the packages were installed.
set -euo pipefail
cd /test
units=(snapshot-agent snapshot-api snapshot-gateway)

say() { printf 'units.sh: %s\n' "$*" >&2; }
fail() { say "FAILED: $*"; exit 1; }
trap 'journalctl --no-pager -n 60 >&2; say "FAILED at line $LINENO"' ERR
property() { systemctl show --value -p "$2" "$1"; } # property UNIT NAME
# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local left=$(($1 * 5)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    left=$((left - 1))
    [ $left -gt 0 ] || { journalctl --no-pager -n 60 >&2; fail "$what"; }
    sleep 0.2
  done
}
reachable() { curl -sf http://127.0.0.1:7445/metrics | grep -q '^snapshot_api_host_reachable{host="alpha"} 1'; }

# all_active WHEN: each unit is active, was never started again by systemd, and the agent reaches libvirt.
all_active() {
  local unit
  wait_for 60 "the API does not reach the agent $1" reachable
  for unit in "${units[@]}"; do
    [ "$(property "$unit" ActiveState)/$(property "$unit" SubState)" = active/running ] || fail "$unit is not active $1"
    [ "$(property "$unit" NRestarts)" = 0 ] || fail "$unit was restarted by systemd $1"
  done
  [ "$(curl -sf http://127.0.0.1:7451/metrics | sed -n 's/^snapshot_agent_reach_narrowed //p')" = 1 ] ||
    fail "the agent did not give up root $1"
  rpc SnapshotService/GetVm '{"name":"vms/'"$uuid"'"}' | grep -q '"displayName":"desktop"\|"desktop"' || fail "the machine is not told of $1"
}

rpc() {
  curl --fail-with-body -sS -H "Authorization: Bearer $token" --json "$2" "http://127.0.0.1:7480/ravada.snapshot.v1.$1"
}

# change METHOD BODY: asks for an operation, and waits until it has succeeded.
change() {
  local operation answer
  answer=$(rpc "$1" "$2") || fail "$1: $answer"
  operation=$(sed -n 's/.*"name":"\(operations\/[^"]*\)".*/\1/p' <<<"$answer")
  for _ in $(seq 300); do
    answer=$(rpc OperationService/GetOperation '{"name":"'"$operation"'"}') || fail "$1: $answer"
    case $answer in
      *SUCCEEDED*) return ;;
      *FAILED* | *CANCELLED*) fail "$1: $answer" ;;
    esac
    sleep 0.2
  done
  fail "$1 does not end: $answer"
}

. /test/units-snapshots.sh

[ "$(cat /proc/1/comm)" = systemd ] || fail "process 1 is not systemd"
ip link set lo up

say "systemd-analyze verify"
verified=$(systemd-analyze verify --man=no "${units[@]/%/.service}" 2>&1) || true
! grep -E 'snapshot-(agent|api|gateway)' <<<"$verified" || fail "systemd does not understand a unit"

say "a libvirt with a machine"
systemctl enable -q --now libvirtd.socket
wait_for 60 "libvirt does not answer" virsh -q -c qemu:///system list
image=/var/lib/libvirt/images/desktop.qcow2
qemu-img create -q -f qcow2 "$image" 64M
qemu-io -c 'write -q -P 65 0 64k' "$image"
cat >/run/desktop.xml <<'XML'
<domain type='qemu'>
  <name>desktop</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/var/lib/libvirt/images/desktop.qcow2'/>
      <target dev='vda' bus='virtio'/></disk>
  </devices>
</domain>
XML
virsh -q -c qemu:///system define /run/desktop.xml >/dev/null

say "the README's words"
. ./block.2
. /test/block.3
uuid=$(virsh -c qemu:///system domuuid desktop)
mint
all_active "after the start"
[ "$(property libvirtd ActiveState)" = active ] || fail "libvirtd is not active"

say "a snapshot, and a revert to it"
take first ''
[ "$(virsh -q -c qemu:///system snapshot-list desktop --name | grep -c '^snap-')" = 1 ] || fail "libvirt has no snapshot"
put 66
revert first
holds 65

say "a reload"
declare -A before
for unit in "${units[@]}"; do before[$unit]=$(property "$unit" MainPID); done
systemctl reload "${units[@]}"
# Longer than systemd waits before it starts a service again.
sleep 3
all_active "after a reload"
for unit in "${units[@]}"; do
  [ "$(property "$unit" MainPID)" = "${before[$unit]}" ] || fail "$unit ended at a reload"
done

say "a restart"
systemctl restart "${units[@]}"
sleep 3
all_active "after a restart"
for unit in "${units[@]}"; do
  [ "$(property "$unit" MainPID)" != "${before[$unit]}" ] || fail "$unit was not restarted"
done
take second ''

say "a restart of libvirt"
systemctl restart libvirtd
all_active "after a restart of libvirt"
take third ''
every_kind_of_step

# What systemd has to say about a unit's lines, it says when it loads it.
! journalctl --no-pager -b -t systemd | grep -E 'snapshot-(agent|api|gateway)\.service:[0-9]+:' || fail "systemd does not understand a unit"
systemctl stop "${units[@]}"
for unit in "${units[@]}"; do
  [ "$(property "$unit" ActiveState)/$(property "$unit" Result)" = inactive/success ] || fail "$unit did not stop well"
done

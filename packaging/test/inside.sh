#!/bin/bash
# What packages.sh does on the machine, after the packages were installed: nobody else is here, and all ends with this.
set -euo pipefail
export LC_ALL=C.UTF-8 PATH=/usr/local/bin:$PATH
cd /root/ravada-snapshots

say() { printf 'packages.sh: %s\n' "$*" >&2; }
fail() { say "FAILED: $*"; exit 1; }
is() { [ "$2" = "$3" ] || fail "$1: '$2' and not '$3'"; } # is WHAT FOUND EXPECTED
# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local left=$(($1 * 5)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    left=$((left - 1))
    [ $left -gt 0 ] || fail "$what"
    sleep 0.2
  done
}
trap 'tail -n 20 /run/systemctl/*.log >&2 || true; say "FAILED at line $LINENO"' ERR

say "what was installed"
for program in snapshot-api snapshot-agent snapshot-gateway; do
  $program --version | grep -q "^$program [0-9]" || fail "$program --version"
  bash -c ". /usr/share/bash-completion/completions/$program && complete -p $program" >/dev/null
  [ -s /usr/share/zsh/vendor-completions/_$program ] && [ -s /usr/share/fish/vendor_completions.d/$program.fish ]
  [ ! -e /etc/systemd/system/multi-user.target.wants/$program.service ] || fail "$program is enabled by being installed"
done
# The manual is left out of minimal systems; dpkg knows that it belongs here.
dpkg -L ravada-snapshots-api | grep -q /man1/snapshot-api-pki-issue.1.gz
dpkg -L libravada-snapshots-perl | grep -q /man3/Ravada::Snapshots::Client.3pm.gz
perl -MRavada::Snapshots::Client -MMojolicious::Plugin::RavadaSnapshots -e 'print "ok\n"' >/dev/null
is "the folder of keys" "$(stat -c '%a %U %G' /etc/ravada-snapshots/pki)" '750 root ravada-snapshots'
is "the folder of settings" "$(stat -c '%a %U %G' /etc/ravada-snapshots)" '755 root root'
for file in api agent gateway; do
  is "$file.toml" "$(stat -c '%a %U %G' /etc/ravada-snapshots/$file.toml)" '644 root root'
done
for user in ravada-snapshots-api ravada-snapshots-gateway; do
  is "the groups of $user" "$(id -Gn $user | tr ' ' '\n' | sort | xargs)" "ravada-snapshots $user"
  is "the shell of $user" "$(getent passwd $user | cut -d: -f7)" /usr/sbin/nologin
done

say "a libvirt with a machine"
mkdir -p /var/lib/libvirt/images
qemu-img create -q -f qcow2 /var/lib/libvirt/images/desktop.qcow2 64M
# A cluster of devices and limits is the host's; QEMU goes without here.
printf '%s\n' 'user = "root"' 'group = "root"' 'cgroup_controllers = []' 'security_driver = "none"' >>/etc/libvirt/qemu.conf
libvirtd -d
virsh="virsh -q -c qemu:///system"
wait_for 60 "libvirt does not answer" $virsh list
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
$virsh define /run/desktop.xml

say "the README's words, one block after the other"
# In one shell, as somebody would who pastes them.
. ./block.2
. "$OLDPWD/block.3"
reachable() { curl -sf http://127.0.0.1:7445/metrics | grep -q '^snapshot_api_host_reachable{host="alpha"} 1'; }
wait_for 60 "the API does not reach the agent" reachable
. /root/ravada-snapshots/block.4 >/run/answer
for key in pki/ca.key ravada.key; do is "$key" "$(stat -c '%a %U' $key)" '600 root'; done

say "the snapshot is there"
grep -q '"name":"operations/' /run/answer || fail "$(cat /run/answer)"
has_snapshot() { [ "$($virsh snapshot-list desktop --name | grep -c '^snap-')" = 1 ]; }
wait_for 60 "libvirt has no snapshot" has_snapshot
qemu-img snapshot -l -U /var/lib/libvirt/images/desktop.qcow2 | grep -q snap- || fail "the image has no snapshot"
of_process() { sed -n "s/^$2:[[:space:]]*//p" "/proc/$(cat /run/systemctl/$1.pid)/status"; }
is "the user of the API" "$(of_process snapshot-api Uid | cut -f2)" "$(id -u ravada-snapshots-api)"
is "the user of the gateway" "$(of_process snapshot-gateway Uid | cut -f2)" "$(id -u ravada-snapshots-gateway)"
is "what the API may" "$(of_process snapshot-api CapBnd)" 0000000000000000
is "what the agent may" "$(of_process snapshot-agent CapEff)" 0000000010000002
is "the catalogue's folder" "$(stat -c '%a %U' /var/lib/ravada-snapshots/api)" '700 ravada-snapshots-api'
is "the agent's folder" "$(stat -c '%a %U' /var/lib/ravada-snapshots/agent)" '700 root'

say "an upgrade keeps what was edited"
cd /root/ravada-snapshots
sed -i 's/^max_layers = 20/max_layers = 19/' /etc/ravada-snapshots/agent.toml
edited=$(sha256sum /etc/ravada-snapshots/agent.toml /etc/ravada-snapshots/api.toml)
dpkg --force-confdef --force-confold -i next/*.deb >/run/upgrade.log 2>&1 || fail "$(cat /run/upgrade.log)"
is "what was edited" "$(sha256sum /etc/ravada-snapshots/agent.toml /etc/ravada-snapshots/api.toml)" "$edited"
[ -f /etc/ravada-snapshots/agent.toml.dpkg-dist ] || fail "the new agent.toml is not beside the edited one"
grep -q '^# The next version' /etc/ravada-snapshots/gateway.toml || fail "a file that was not edited was not replaced"
grep -q 'Next:' /run/upgrade.log && fail "an upgrade tells how to begin"
systemctl restart snapshot-agent snapshot-api snapshot-gateway
wait_for 60 "the API does not reach the agent after the upgrade" reachable
curl --fail-with-body -sS -H "Authorization: Bearer $token" --json '{"parent":"vms/'$uuid'"}' \
  http://127.0.0.1:7480/ravada.snapshot.v1.SnapshotService/ListSnapshots | grep -q '"displayName":"first"'

say "a removal keeps what is needed to come back"
systemctl stop snapshot-gateway snapshot-api snapshot-agent
all=(ravada-snapshots-api ravada-snapshots-agent ravada-snapshots-gateway libravada-snapshots-perl)
dpkg -r "${all[@]}" >/dev/null 2>&1
[ ! -e /usr/bin/snapshot-api ] && [ -f /etc/ravada-snapshots/api.toml ] && [ -s /var/lib/ravada-snapshots/api/catalogue.db ]

# Everything of ours on the machine.
ours() {
  find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /root -o -path /debs -o -path /var/lib/libvirt -o -path /etc/libvirt \
    -o -path /var/log -o -path /var/cache -o -path /var/lib/apt \) -prune -o \
    \( -iname '*ravada*' -o -iname '*snapshot-a*' -o -iname '*snapshot-gateway*' \) -print |
    grep -v -e '^/usr/local/' -e '/share/doc/libvirt' | sort
}
say "a purge keeps the catalogue and the keys"
cp -a /etc/ravada-snapshots /root/keys
dpkg -P "${all[@]}" >/run/purge.log 2>&1 || fail "$(cat /run/purge.log)"
grep -q 'the catalogue is kept' /run/purge.log && grep -q 'keys or certificates' /run/purge.log
is "what is left" "$(ours | grep -v '^/etc/ravada-snapshots/' | xargs)" '/etc/ravada-snapshots /var/lib/ravada-snapshots'
is "the settings that are left" "$(ls /etc/ravada-snapshots/*.toml* /etc/ravada-snapshots/*.conf* 2>/dev/null | xargs)" ''
diff -r --exclude='*.toml*' --exclude='*.conf*' /root/keys /etc/ravada-snapshots || fail "keys are gone"
is "the state that is left" "$(ls /var/lib/ravada-snapshots | xargs)" api
getent passwd ravada-snapshots-api >/dev/null || fail "whom the catalogue belongs to is gone"
! getent passwd ravada-snapshots-gateway >/dev/null || fail "the gateway's user is left"
# The snapshot is the machine's, and stays.
has_snapshot || fail "the purge took a snapshot along"

say "back again, on the same catalogue"
dpkg -i target/deb/*.deb >/dev/null 2>&1
rm -rf /etc/ravada-snapshots
cp -a /root/keys /etc/ravada-snapshots
systemctl start snapshot-agent snapshot-api snapshot-gateway
wait_for 60 "the API does not reach the agent after a purge" reachable
curl --fail-with-body -sS -H "Authorization: Bearer $token" --json '{"parent":"vms/'$uuid'"}' \
  http://127.0.0.1:7480/ravada.snapshot.v1.SnapshotService/ListSnapshots | grep -q '"displayName":"first"'
systemctl stop snapshot-gateway snapshot-api snapshot-agent

say "nothing is left if asked"
RAVADA_SNAPSHOTS_PURGE=all dpkg -P "${all[@]}" >/run/purge.log 2>&1 || fail "$(cat /run/purge.log)"
is "what is left" "$(ours | xargs)" ''
! getent passwd | grep ravada || fail "a user is left"
! getent group | grep ravada || fail "a group is left"
has_snapshot || fail "the purge took a snapshot along"

# Snapshots of the machine, and every kind of step of the agent under its unit. Sourced by units-inside.sh, whose functions it uses.
#
# The unit keeps calls of the kernel from the agent that it has everywhere else: each call that an operation needs is made here.

mint() {
  token=$(snapshot-api token mint --key /etc/ravada-snapshots/ravada.key --issuer ravada --kid 2026 --subject admin \
    --vm "$uuid" --actions read,create,update,revert,delete,purge)
}

disk() { virsh -q -c qemu:///system domblklist desktop | awk '$1 == "vda" { print $2 }'; }
is_running() { [ "$(virsh -q -c qemu:///system domstate desktop)" = running ]; }

# put PATTERN: as the guest would, where it is on.
put() {
  if is_running; then
    local at=/machine/peripheral/virtio-disk0/virtio-backend
    virsh -q -c qemu:///system qemu-monitor-command desktop --hmp "qemu-io -d $at \"write -q -P $1 0 64k\"" >/dev/null
    virsh -q -c qemu:///system qemu-monitor-command desktop --hmp "qemu-io -d $at flush" >/dev/null
  else
    qemu-io -c "write -q -P $1 0 64k" "$(disk)"
  fi
}

# holds PATTERN: whether the disk does.
holds() {
  qemu-io -r -U -c "read -q -P $1 0 64k" "$(disk)" >/run/qemu-io.log 2>&1 && ! grep -qi 'verification failed' /run/qemu-io.log ||
    fail "the disk does not hold $1: $(cat /run/qemu-io.log)"
}

# named NAME: the snapshot of that display name.
named() {
  rpc SnapshotService/ListSnapshots '{"parent":"vms/'"$uuid"'"}' |
    grep -o '"name":"vms/[^"]*/snapshots/[^"]*","displayName":"'"$1"'"' | cut -d'"' -f4
}

# take NAME MORE: MORE is further fields of the request.
take() { change SnapshotService/CreateSnapshot '{"parent":"vms/'"$uuid"'","snapshot":{"displayName":"'"$1"'"}'"$2"'}'; }
revert() {
  mint
  change SnapshotService/RevertToSnapshot '{"name":"'"$(named "$1")"'","requestId":"'"$(</proc/sys/kernel/random/uuid)"'"}'
}
delete() {
  mint
  change SnapshotService/DeleteSnapshot '{"name":"'"$(named "$1")"'","scope":"'"$2"'","requestId":"'"$(</proc/sys/kernel/random/uuid)"'"}'
}
purge() {
  mint
  change SnapshotService/PurgeVm '{"name":"vms/'"$uuid"'","requestId":"'"$(</proc/sys/kernel/random/uuid)"'"}'
}

# The story of a machine that is on and off, of which nothing is left.
every_kind_of_step() {
  mint
  say "inside the image, while the machine is off"
  put 70
  take off ''
  put 71
  revert off
  holds 70
  mint
  change SnapshotService/UpdateSnapshot '{"snapshot":{"name":"'"$(named off)"'","displayName":"renamed"},"updateMask":"displayName"}'
  delete renamed DELETE_SCOPE_ONLY

  say "inside the image, while it runs: with its memory, live, in place and by libvirt"
  virsh -q -c qemu:///system start desktop >/dev/null
  put 72
  take memory ',"content":"SNAPSHOT_CONTENT_DISKS_AND_MEMORY"'
  put 73
  take live ''
  put 74
  revert memory
  holds 72
  revert live
  holds 73
  is_running || fail "the machine is not on after a revert"

  say "outside of it, with merges"
  purge
  sed -i 's/^stable_paths = true/stable_paths = false/' /etc/ravada-snapshots/agent.toml
  systemctl restart snapshot-agent
  all_active "with another policy"
  local external=',"storage":"STORAGE_KIND_EXTERNAL"'
  put 75
  take first-outside "$external"
  put 76
  take second-outside "$external"
  put 77
  revert first-outside
  holds 75
  revert second-outside
  holds 76
  delete first-outside DELETE_SCOPE_ONLY
  holds 76
  virsh -q -c qemu:///system destroy desktop >/dev/null
  put 78
  take third-outside "$external"
  put 79
  delete second-outside DELETE_SCOPE_ONLY
  holds 79
  purge
  holds 79
  [ "$(find /var/lib/libvirt/images -type f | wc -l)" = 1 ] || fail "files are left: $(ls /var/lib/libvirt/images)"

  say "of a machine that is gone"
  take outlived ''
  image=$(disk)
  virsh -q -c qemu:///system undefine --snapshots-metadata desktop >/dev/null
  purge
  [ -z "$(qemu-img snapshot -l "$image")" ] || fail "a snapshot of a machine that is gone is left"
}

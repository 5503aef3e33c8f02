#!/bin/bash
# Ends what a test process left, however that process ended.
#
# The test process holds the other end of this one's stdin and writes the directories of its tests, one a line. At the end of file it
# has exited, or was killed. Then every process of ours that names such a directory in its command line, or has it among its mounts, is
# killed, and the directory is removed.
set -u
# Ctrl-C is meant for the test process; this one ends after it.
trap '' INT TERM HUP
cd /
directories=()
while IFS= read -r directory; do
  # Nothing else is ever removed.
  case $directory in
    /tmp/rs-*/* | */../*) ;;
    /tmp/rs-?* | */target/tmp/agent/?*) directories+=("$directory") ;;
  esac
done

# Like `OURS` in src/scratch.rs: an editor that has a file of the directory open is not ours.
of_directory() {
  local process name
  for process in /proc/[0-9]*; do
    read -r name 2>/dev/null <"$process/comm" || continue
    case $name in
      qemu-* | libvirtd | virtlogd | swtpm* | snapshot-agent | snapshot-api | snapshot-gatewa*) ;;
      *) continue ;;
    esac
    if tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -qF -- "$1/" ||
      grep -qF -- "$1/" "$process/mountinfo" 2>/dev/null; then
      echo "${process#/proc/}"
    fi
  done
}

for directory in ${directories[@]+"${directories[@]}"}; do
  [ -e "$directory" ] || continue
  # More than once, because a libvirtd may start a QEMU while it is being killed.
  for _ in 1 2 3; do
    left=$(of_directory "$directory")
    [ -n "$left" ] || break
    kill -KILL $left 2>/dev/null
    for _ in $(seq 100); do
      alive=0
      for pid in $left; do
        # A process that is dead and was not waited for is a zombie.
        ! grep -q '^State:[[:space:]][^ZX]' "/proc/$pid/status" 2>/dev/null || alive=1
      done
      [ $alive = 1 ] || break
      sleep 0.1
    done
  done
  # The test process may have had a mount namespace of its own, which this one has from it.
  cut -d' ' -f5 /proc/self/mountinfo | grep -F -- "$directory/" | tac | while IFS= read -r place; do umount -l -- "$place"; done
  rm -rf --one-file-system -- "$directory"
  # The memory that its guests shared (src/scratch.rs).
  case $directory in /tmp/*) rm -f -- "/dev/shm/${directory##*/}"-* ;; esac
done

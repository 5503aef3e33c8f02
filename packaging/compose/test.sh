#!/usr/bin/env bash
# docker-compose.yml from nothing to nothing: a Docker daemon of this script's own, images built from this tree on base images made
# here, and target/debug/compose, which tells the story. `make compose-test` calls it, as root.
#
# The images are built with the machine's network, for the packages. What runs, runs in a network namespace of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "compose-test: a Docker daemon needs root" >&2; exit 1; }
cache=$PWD/target/compose
mkdir -p "$cache/data"
run=$(mktemp -d /tmp/rs-compose.XXXXXX)
namespace=$(basename "$run" | tr -d .)
export DOCKER_HOST=unix://$run/docker.sock
daemon=

# start_daemon COMMAND...: what to start it by, for instance in a namespace.
start_daemon() {
  "$@" --data-root "$cache/data" --exec-root "$run/exec" --pidfile "$run/pid" -H "$DOCKER_HOST" >>"$cache/dockerd.log" 2>&1 &
  daemon=$!
  for _ in $(seq 150); do
    ! docker version >/dev/null 2>&1 || return 0
    kill -0 "$daemon" 2>/dev/null || break
    sleep 0.2
  done
  tail "$cache/dockerd.log" >&2
  return 1
}

stop_daemon() {
  [ -z "$daemon" ] || { kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; }
  daemon=
}

finish() {
  stop_daemon
  ip netns delete "$namespace" 2>/dev/null || true
  # A daemon leaves its own network namespace mounted when it ends.
  umount "$run"/exec/netns/* 2>/dev/null || true
  rm -rf "$run"
}
trap finish EXIT

start_daemon dockerd --bridge none --iptables=false
packaging/compose/images.sh "$cache/base"
export BASE=ravada-snapshots-base BUILD_BASE=ravada-snapshots-build
for target in api gateway agent; do
  echo "compose-test: building ravada-snapshots-$target"
  DOCKER_BUILDKIT=0 docker build --quiet --network host --build-arg BASE --build-arg BUILD_BASE --target "$target" \
    --tag "ravada-snapshots-$target" . >/dev/null
done
docker image ls --format '{{.Repository}} {{.Size}}' | grep -E '^ravada-snapshots-(api|gateway|agent) '
stop_daemon

ip netns add "$namespace"
ip -n "$namespace" link set lo up
# Not by `ip netns exec`, which hides the control groups: it mounts /sys anew.
start_daemon nsenter --net="/run/netns/$namespace" dockerd
nsenter --net="/run/netns/$namespace" target/debug/compose

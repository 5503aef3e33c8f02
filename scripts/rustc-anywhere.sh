#!/bin/sh
# rustc for releases (RUSTC_WRAPPER): what it compiles does not say in which folder it was built.
#
# As a wrapper and not as RUSTFLAGS, because Cargo hashes those into the names of its files, and the folder would be in them again.
set -eu
exec "$@" --remap-path-prefix="$RAVADA_SNAPSHOTS_ROOT=/usr/src/ravada-snapshots" \
  --remap-path-prefix="$RAVADA_SNAPSHOTS_CARGO=/usr/src/cargo"

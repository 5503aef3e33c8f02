#!/usr/bin/env bash
# The three programs for a release, in target/dist: the same bytes in whatever folder, by whomever, on the same system.
#
# The page is to be built before (make web). What could differ is fixed here: paths of sources in messages of panics and in
# assertions of C, and times.
set -euo pipefail
cd "$(dirname "$0")/.."
export RAVADA_SNAPSHOTS_ROOT=$PWD RAVADA_SNAPSHOTS_CARGO=${CARGO_HOME:-$HOME/.cargo}
export RUSTC_WRAPPER=$PWD/scripts/rustc-anywhere.sh
export CFLAGS="-ffile-prefix-map=$PWD=/usr/src/ravada-snapshots -ffile-prefix-map=$RAVADA_SNAPSHOTS_CARGO=/usr/src/cargo"
export CXXFLAGS=$CFLAGS
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
export CARGO_TARGET_DIR=$PWD/target LC_ALL=C TZ=UTC
cargo build --profile dist --locked "$@" -p snapshot-api -p snapshot-agent -p snapshot-gateway -p snapctl

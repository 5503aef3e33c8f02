#!/usr/bin/env bash
# Builds the three services as they were at the last release, for `make versions-test`, into target/versions/build/debug.
#
# Which that was is in proto/released/revision. Its files are laid out in a folder of their own, its build shares nothing with the
# one of now but cargo's registry, and what was built is kept: a second run takes a second.
set -euo pipefail
cd "$(dirname "$0")/.."
revision=$(sed -n 's/^\([0-9a-f]\{40\}\)$/\1/p' proto/released/revision)
[ -n "$revision" ] || { echo "versions-test: proto/released/revision names no commit" >&2; exit 1; }
git cat-file -e "$revision^{commit}" 2>/dev/null || {
  echo "versions-test: commit $revision of the last release is not in this clone: git fetch --unshallow, or git fetch origin $revision" >&2
  exit 1
}
versions=$PWD/target/versions
tree=$versions/$revision
if [ ! -e "$tree/.whole" ]; then
  rm -rf "$tree"
  mkdir -p "$tree"
  git archive "$revision" | tar -x -C "$tree"
  touch "$tree/.whole"
fi
# An older one than this is of an earlier release.
find "$versions" -mindepth 1 -maxdepth 1 ! -name build ! -name "$revision" -exec rm -rf {} +
# The descriptors that `make lint` compares with have to be that release's.
(cd "$tree" && "$versions/../../gateway/web/node_modules/.bin/buf" build --exclude-source-info -o -#format=binpb) |
  cmp -s - proto/released/last.binpb || { echo "versions-test: proto/released/last.binpb is not of $revision" >&2; exit 1; }
cd "$tree"
# The page is not built: a gateway without one serves all else.
CARGO_TARGET_DIR=$versions/build cargo build --locked -p snapshot-agent -p snapshot-api -p snapshot-gateway

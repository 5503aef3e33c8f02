#!/usr/bin/env bash
# Builds the release a second time, in another folder, and compares it with the first, byte by byte. Takes as long as `make dist`.
set -euo pipefail
cd "$(dirname "$0")/.."
other=$PWD/target/dist-check/some/other/folder
mkdir -p "$other"
# What git has or would take, and the page as it was built: npm's own part is not compared here but by the first build's inputs.
git ls-files --cached --others --exclude-standard -z | xargs -0 cp --parents -t "$other"
cp -a gateway/web/dist "$other/gateway/web/"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
"$other/scripts/dist-build.sh" "$@"
differ=
for program in snapshot-api snapshot-agent snapshot-gateway snapctl; do
  sha256sum "target/dist/$program" "$other/target/dist/$program"
  cmp "target/dist/$program" "$other/target/dist/$program" || differ=yes
done
[ -z "$differ" ] || { echo 'dist-check: two builds differ' >&2; exit 1; }
echo 'dist-check: two builds in different folders are the same'

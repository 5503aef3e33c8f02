#!/usr/bin/env bash
# Formatting, the rules of the .proto files, and lints: all of them, and at the end which failed.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=()
run() { printf '%s\n' "$*"; "$@" || failed+=("$*"); }
run cargo fmt --all --check
run gateway/web/node_modules/.bin/buf lint
run gateway/web/node_modules/.bin/buf breaking --against proto/released/last.binpb
run cargo clippy --workspace --all-targets -- -D warnings
[ ${#failed[@]} = 0 ] || { printf 'lint failed: %s\n' "${failed[@]}" >&2; exit 1; }

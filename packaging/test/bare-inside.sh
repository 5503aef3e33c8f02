#!/bin/bash
# What bare.sh does in a root: sets up, checks and tests, and makes the packages. What a part says is in this script's output, each
# part's seconds are in a line that begins with the script's name.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_TARGET_DIR=$PWD/target CARGO_TERM_COLOR=never
failed=()

say() { printf 'bare-inside.sh: %s\n' "$*"; }

# part WHAT COMMAND...
part() {
  local what=$1 begin=$SECONDS status=0
  shift
  "$@" </dev/null || status=$?
  if [ "$status" = 0 ]; then
    say "$what: $((SECONDS - begin)) s"
  else
    failed+=("$what")
    say "$what: FAILED ($status) after $((SECONDS - begin)) s"
  fi
}

packages() {
  packaging/test/origins.sh list >target/packages.list || return
  say "$(wc -l <target/packages.list) packages are installed, of which setup brought $(($(wc -l <target/packages.list) - $(wc -l <target/packages.before)))"
  packaging/test/origins.sh check target/packages.list
}

# Where nothing that follows could work.
stop_if_failed() {
  [ ${#failed[@]} -gt 0 ] || return 0
  say "FAILED: $(printf '%s; ' "${failed[@]}")"
  exit 1
}

mkdir -p target
dpkg-query -W -f '${Package}\n' >target/packages.before
# Debian may have newer ones than when the base was made.
DEBIAN_FRONTEND=noninteractive bash -c 'apt-get update -qq && apt-get upgrade -y -qq' </dev/null
part "scripts/setup.sh test" scripts/setup.sh test
stop_if_failed
part "nothing more to set up" bash -c '[ -z "$(scripts/setup.sh test 2>&1)" ]'
part "origins of packages" packages
if [ -n "${WHOLE:-}" ]; then
  part "make test" make test
else
  part "page and its tests" make web
  stop_if_failed
  part "lint" make lint
  part "build" cargo build --workspace
  part "unit tests" cargo test --workspace --lib --bins --no-fail-fast
  # The whole workspace, because another set of features would build all dependencies again.
  part "packaging tests" cargo test --workspace --no-fail-fast --test packaging --test packages --test tidy
  part "Perl tests" bash -c 'cd ravada && prove -l t'
  part "smoke" make smoke
fi
part "packages" make deb PROFILE=dev
stop_if_failed

#!/usr/bin/env bash
# Every check and every test, what `make test` is after the set-up. A failure does not end it, unless it is that of the compiler: what
# failed is listed at the end. Then nothing may be left on the machine (leftovers.py), also when this is interrupted.
set -uo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
log=$CARGO_TARGET_DIR/test.log
state=$CARGO_TARGET_DIR/test-before.json
mkdir -p "$CARGO_TARGET_DIR/tmp"
: >"$log"
failures=()
# Short, because the paths of UNIX sockets end at 107 bytes.
temporary=$(mktemp -d /tmp/rt-XXXXXX)
run=$(basename "$temporary").$$
child=
# Each step is a process group of its own, in which SIGINT is not ignored as it would be in the background.
set -m

# step WHAT COMMAND...: what it prints goes into the log, of which it is shown. So nobody who is left holds this script's own output
# open. What it starts knows by its environment which run it belongs to.
step() {
  local what=$1 status=0 begin shown
  shift
  printf '\n== %s\n' "$what"
  begin=$(($(stat -c %s "$log") + 1))
  TEST_RUN=$run TEST_RUN_TMP=$temporary TMPDIR=$temporary "$@" </dev/null >>"$log" 2>&1 &
  child=$!
  tail -q -c "+$begin" -s 0.2 -f --pid="$child" "$log" &
  shown=$!
  wait "$child" || status=$?
  child=
  wait "$shown"
  [ "$status" = 0 ] || failures+=("$(tail -c "+$begin" "$log" | failed_in "$what" "$status")")
  return "$status"
}

# failed_in WHAT STATUS: reads what it printed, and names the tests and targets that failed.
failed_in() {
  local names
  names=$(awk '
    { gsub(/\033\[[0-9;]*m/, "") }
    $1 == "Running" { program = $2 == "unittests" ? $3 " " $4 : $2 }
    $1 == "Doc-tests" { program = "doc-tests of " $2 }
    /^test .* \.\.\. FAILED$/ { print program ": " $2 " " ($3 == "..." ? "" : $3) }
    /^    `-p .*`$/ || /^lint failed: / || /^not ok / || /\(Wstat: / { print }' | sed 's/ *$//; s/^ */    /')
  printf '%s (exit status %s)%s' "$1" "$2" "${names:+$'\n'$names}"
}

finish() {
  local status=${1:-1}
  trap - EXIT INT TERM HUP
  printf '\n== nothing is left\n'
  local left
  left=$(TEST_RUN=$run TEST_RUN_TMP=$temporary scripts/leftovers.py check "$state" "${LEFTOVERS_SECONDS:-30}" 2>&1) ||
    failures+=("something is left: see above")
  [ -z "$left" ] || printf '%s\n' "$left" | tee -a "$log"
  rm -rf "$temporary"
  if [ ${#failures[@]} -gt 0 ]; then
    printf '\nmake test FAILED:\n'
    printf '  %s\n' "${failures[@]}"
    exit 1
  fi
  exit "$status"
}

# What a test process leaves that is ended like this, its reaper ends (tests/reaper.sh).
interrupted() {
  trap '' INT TERM HUP
  failures+=("interrupted")
  if [ -n "$child" ]; then
    kill -TERM -- "-$child" 2>/dev/null
    wait "$child" 2>/dev/null
  fi
  finish 1
}

TEST_RUN=$run TEST_RUN_TMP=$temporary scripts/leftovers.py record "$state" || exit 1
trap interrupted INT TERM HUP
trap 'finish 1' EXIT

step "the page's tests" npm --prefix gateway/web test --silent
step "lint" scripts/lint.sh
step "build" cargo build --workspace || finish
step "build of the tests" cargo test --workspace --no-run || finish
step "cargo test" cargo test --workspace --no-fail-fast
step "Perl tests" bash -c "cd ravada && exec prove -l -j2 t"
finish 0

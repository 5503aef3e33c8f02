#!/usr/bin/env bash
# Where Debian's packages come from.
#
#   origins.sh list         every package that is installed here: name, version, origins (suite/component, comma between), source
#   origins.sh check LIST   fails if one is from backports alone and its source is not one that scripts/setup.sh has from there,
#                           or from nowhere that apt knows
set -euo pipefail
export LC_ALL=C.UTF-8

# One line a package. In `apt-cache policy` the installed version is the one after ***, followed by where it is to be had.
list() {
  dpkg-query -W -f '${db:Status-Status} ${Package} ${Version} ${source:Package}\n' |
    awk '$1 == "installed" { print $2, $3, $4 }' | sort >"$1"
  cut -d' ' -f1 "$1" | xargs apt-cache policy | awk -v packages="$1" '
    BEGIN { while ((getline line <packages) > 0) { split(line, it, " "); version[it[1]] = it[2]; source[it[1]] = it[3] } }
    function finish() { if (name != "") print name, version[name], (from == "" ? "unknown" : from), source[name] }
    /^[^ ]/ { finish(); name = $1; sub(/:$/, "", name); from = ""; inside = 0; next }
    /^ \*\*\* / { inside = 1; next }
    /^     [^ ]/ { inside = 0; next }
    inside && /^ +-?[0-9]+ / && $2 != "/var/lib/dpkg/status" { from = from (from == "" ? "" : ",") $3 }
    END { finish() }'
}

# The source packages that are pinned to backports, as setup.sh says them.
pinned() { sed -n "s/.*'Package: \(src:[^']*\)'.*/\1/p" scripts/setup.sh | tr ' ' '\n' | sed 's/^src://'; }

check() {
  local allowed wrong
  cd "$(dirname "$0")/../.."
  allowed=$(pinned | xargs)
  [ -n "$allowed" ] || { echo "origins.sh: scripts/setup.sh pins nothing" >&2; return 1; }
  wrong=$(awk -v allowed=" $allowed " '
    NF != 4 { print; next }
    $3 == "unknown" { print; next }
    { count = split($3, origins, ","); others = 0
      for (i = 1; i <= count; i++) if (origins[i] !~ /-backports/) others++
      if (!others && !index(allowed, " " $4 " ")) print }' "$1")
  [ -s "$1" ] || { echo "origins.sh: $1 is empty" >&2; return 1; }
  [ -z "$wrong" ] || { printf 'origins.sh: from backports or from nowhere, and not of %s:\n%s\n' "$allowed" "$wrong" >&2; return 1; }
}

case ${1:-} in
  list)
    work=$(mktemp)
    trap 'rm -f "$work"' EXIT
    list "$work"
    ;;
  check) check "$(realpath "$2")" ;;
  *) echo "usage: origins.sh list | check LIST" >&2; exit 2 ;;
esac

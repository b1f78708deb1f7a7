#!/usr/bin/env bash
# Times the quickstart: first run, second run (all reused), peak memory; builds nothing.
#   benches/quickstart.sh [BINARY]        default: target/release/actloom
# Prints one line a run; wall times depend on what else the machine does, so the processor time stands beside them.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$(realpath "${1:-target/release/actloom}")
recipe=$(realpath recipes/quickstart.toml)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"

timed() { # name, command...
    local name=$1
    shift
    /usr/bin/time -f "$name: %e s wall, %U s user, %S s system, %M kB peak" "$@" >"$place/out.txt" 2>"$place/err.txt"
    tail -n 1 "$place/err.txt"
}

timed "first run" "$binary" run "$recipe" --store "$place/store"
timed "second run" "$binary" run "$recipe" --store "$place/store"
timed "plan" "$binary" plan "$recipe" --store "$place/store"
"$binary" cache du --store "$place/store" | tail -n 1

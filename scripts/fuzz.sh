#!/usr/bin/env bash
# Runs every fuzz target of the module, one after the other, FUZZTIME each.
# Arguments are packages; none means all.
set -euo pipefail
cd "$(dirname "$0")/.."

time=${FUZZTIME:-20s}
found=0
for dir in $(grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | xargs -n1 dirname | sort -u); do
    [ -f "$dir/go.mod" ] && continue
    case "$dir" in ./scripts/compare*) continue ;; esac
    if [ $# -gt 0 ] && ! printf '%s\n' "$@" | grep -qxF "$dir"; then
        continue
    fi
    for target in $(grep -rhoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | cut -d' ' -f2 | sort -u); do
        echo "== $dir $target"
        go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$dir"
        found=$((found + 1))
    done
done
echo "fuzz: $found targets, $time each, nothing found"

#!/usr/bin/env bash
# Writes golden output anew, in every package whose tests know how: by the
# variable IDB_TEST_GOLDEN=write, or by a flag -update. Review the diff.
set -euo pipefail
cd "$(dirname "$0")/.."

packages() { grep -rlE "$1" --include='*_test.go' . | grep -v '^./scripts/' | xargs -r -n1 dirname | sort -u; }

by_variable=$(packages 'IDB_TEST_GOLDEN')
by_flag=$(packages 'flag\.Bool\("update"')
[ -z "$by_variable" ] || IDB_TEST_GOLDEN=write go test -count=1 $by_variable
for dir in $by_flag; do
    go test -count=1 "$dir" -update
done
git --no-pager diff --stat -- '*testdata*' docs

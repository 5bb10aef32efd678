#!/usr/bin/env bash
# Lists the packages whose tests can write their golden output anew.
set -euo pipefail
cd "$(dirname "$0")/.."
grep -rl 'IDB_TEST_GOLDEN' --include='*_test.go' . | xargs -n1 dirname | sort -u

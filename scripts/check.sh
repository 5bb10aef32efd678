#!/usr/bin/env bash
# Static checks: gofmt, vet, staticcheck, known vulnerabilities. A tool that
# cannot be had (no network and not in the module cache) is skipped and said so;
# CHECK_STRICT=1 makes that a failure.
set -uo pipefail
cd "$(dirname "$0")/.."

failed=0
skipped=0

step() { printf '== %s\n' "$*"; }
fail() { printf 'check: %s\n' "$*" >&2; failed=1; }
skip() { printf 'check: skipped: %s\n' "$*" >&2; skipped=1; }

step gofmt
unformatted=$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l)
if [ -n "$unformatted" ]; then
    printf '%s\n' "$unformatted"
    fail "these files are not gofmt-ed (run gofmt -w on them)"
fi

step go vet
go vet ./... || fail "go vet found something"

# The tools are pinned in a module of their own, so that they are no part of
# the product's go.mod.
tools=bin/tools
mkdir -p "$tools"
have() {
    local log
    if log=$(go build -C scripts/tools -o "../../$tools/" "$1" 2>&1); then
        return 0
    fi
    printf '%s\n' "$log" | tail -3 >&2
    skip "$1 cannot be built (no network, and not in the module cache?)"
    return 1
}

step staticcheck
if have honnef.co/go/tools/cmd/staticcheck; then
    "$tools/staticcheck" ./... || fail "staticcheck found something"
fi

step module checksums
go mod verify || fail "a module in the cache is not what go.sum says"

step govulncheck
if have golang.org/x/vuln/cmd/govulncheck; then
    # VULNDB may name a mirror or a local copy: https://… or file:///…
    log=$("$tools/govulncheck" ${VULNDB:+-db "$VULNDB"} ./... 2>&1)
    code=$?
    case $code in
    0) printf '%s\n' "$log" | tail -1 ;;
    3)
        printf '%s\n' "$log"
        fail "govulncheck found a vulnerability that this code reaches"
        ;;
    *)
        printf '%s\n' "$log" | tail -1 >&2
        skip "the vulnerability database cannot be read (set VULNDB to a copy, file:///…)"
        ;;
    esac
fi

if [ "$skipped" = 1 ] && [ "${CHECK_STRICT:-0}" = 1 ]; then
    fail "some checks were skipped, and CHECK_STRICT=1"
fi
[ "$failed" = 0 ] && echo "check: all good"
exit "$failed"

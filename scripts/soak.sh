#!/usr/bin/env bash
# A cluster under mixed load and random faults for SOAKTIME (default 10m),
# judged by checkers. Arguments go to cmd/internal/soak: -seed, -shards, …
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p bin
go build -trimpath -o bin/idb ./cmd/idb
go build -o bin/soak ./cmd/internal/soak
exec bin/soak -duration "${SOAKTIME:-10m}" -idb bin/idb "$@"

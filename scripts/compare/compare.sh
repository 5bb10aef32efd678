#!/bin/bash
# Runs etcd and idb in turn, twice, on three nodes each, and prints the table.
#
#   compare.sh                     takes about four minutes
#   DUR=20s ROUNDS=3 compare.sh    longer
#
# Both get 100,000 documents of 1 KiB first. Ratios count, not rates: the load
# program runs on the same cores as the servers.
set -eu
P=$(cd "$(dirname "$0")" && pwd)
W=${WORKDIR:-$P}
ROUNDS=${ROUNDS:-2} DUR=${DUR:-10s} KEYS=${KEYS:-100000}
OUT=${OUT:-$W/results.jsonl}
[ -x "$W/bin/etcd" ] || "$P/build.sh" etcd
"$P/build.sh" load idb # always: a stale binary measures the wrong code

endpoints() {
  case $1 in
    etcd) echo 127.0.0.1:12379,127.0.0.1:22379,127.0.0.1:32379 ;;
    idb) echo 127.0.0.1:17401,127.0.0.1:17402,127.0.0.1:17403 ;;
  esac
}
load() { # peer workload clients
  "$W/bin/load" -peer "$1" -rundir "$W/run/$1" -endpoints "$(endpoints "$1")" -workload "$2" -c "$3" -n "$KEYS" -dur "$DUR" -out "$OUT"
}
cleanup() { for peer in etcd idb; do "$P/peers.sh" $peer clean; done; }
trap cleanup EXIT
cleanup

rm -f "$OUT"
echo '| peer | workload | clients | ops/s | p50 | p95 | p99 | max ms | servers CPU s/k | client CPU s/k | servers cores | other cores | KiB/op | RSS MiB | disk MiB | errors |'
echo '|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|'
for round in $(seq "$ROUNDS"); do
  order="etcd idb"
  [ $((round % 2)) = 0 ] && order="idb etcd"
  for peer in $order; do
    "$P/peers.sh" $peer start
    "$W/bin/load" -workload ready -peer $peer -endpoints "$(endpoints $peer)" >/dev/null
    load $peer preload 16
    load $peer W 1
    load $peer W 64
    load $peer R 64
    "$P/peers.sh" $peer stop
    "$P/peers.sh" $peer clean
  done
done
echo
"$W/bin/load" -workload table -out "$OUT"

#!/bin/bash
# Runs databases in turn, several rounds, on three nodes each, and prints the table.
#
#   compare.sh                     documents: etcd and idb, takes about four minutes
#   compare.sh transfers           transactions: etcd, PostgreSQL and idb, its leaders
#                                  spread and then together, about eight
#   DUR=20s ROUNDS=3 compare.sh    longer
#
# PEERS, CLIENTS, DUR, WARM, ROUNDS, KEYS, OUT: see README.md. Ratios count, not
# rates: the load program runs on the same cores as the servers.
set -eu
P=$(cd "$(dirname "$0")" && pwd)
W=${WORKDIR:-$P}
race=${1:-documents}
case $race in
  documents) PEERS=${PEERS:-etcd idb} ;;
  transfers) PEERS=${PEERS:-etcd pg idb idb:together} CLIENTS=${CLIENTS:-16 64} ;;
  *) echo "compare.sh: unknown race $race (documents, transfers)" >&2; exit 2 ;;
esac
for peer in $PEERS; do
  case $peer in
    idb | idb:spread | idb:together) ;;
    idb:*) echo "compare.sh: $peer: leaders are spread or together (idb:spread, idb:together)" >&2; exit 2 ;;
  esac
done
ROUNDS=${ROUNDS:-2} DUR=${DUR:-10s} WARM=${WARM:-3s} KEYS=${KEYS:-100000}
OUT=${OUT:-$W/results.jsonl}
case " $PEERS " in *" etcd "*) [ -x "$W/bin/etcd" ] || "$P/build.sh" etcd ;; esac
[ -n "${NOBUILD:-}" ] || "$P/build.sh" load idb # a stale binary measures the wrong code

endpoints() {
  case $1 in
    etcd) echo 127.0.0.1:12379,127.0.0.1:22379,127.0.0.1:32379 ;;
    idb*) echo 127.0.0.1:17401,127.0.0.1:17402,127.0.0.1:17403 ;;
    pg*) echo 127.0.0.1:15432,127.0.0.1:25432,127.0.0.1:35432 ;;
  esac
}
# A peer may be named with a mode: of the load program (pg:pipelined), or, of
# idb, where the leaders of its shard groups are (idb:together).
server() { echo "${1%%:*}"; }
leaders() { # peer
  case $1 in idb:*) echo "${1#*:}" ;; *) echo spread ;; esac
}
load() { # peer workload clients [option...]
  local peer=$1 workload=$2 clients=$3 mode=
  shift 3
  case $peer in *:*) mode=${peer#*:} ;; esac
  "$W/bin/load" -peer "$(server "$peer")" -mode "$mode" -label "${peer/:/ }" -rundir "$W/run/$(server "$peer")" -endpoints "$(endpoints "$peer")" \
    -workload "$workload" -c "$clients" -n "$KEYS" -dur "$DUR" -warm "$WARM" -out "$OUT" "$@"
}
documents() { # peer
  load "$1" preload 16
  load "$1" W 1
  load "$1" W 64
  load "$1" R 64
}
transfers() { # peer
  local c
  for c in $CLIENTS; do load "$1" T "$c" -accounts 10000; done
  for c in $CLIENTS; do load "$1" T "$c" -accounts 100 -dist zipf; done
}
cleanup() { for peer in $PEERS; do "$P/peers.sh" "$(server "$peer")" clean; done; }
trap cleanup EXIT
cleanup

rm -f "$OUT"
echo '| peer | workload | clients | ops/s | p50 | p95 | p99 | max ms | servers CPU s/k | client CPU s/k | servers cores | other cores | KiB/op | RSS MiB | disk MiB | errors |'
echo '|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|'
for round in $(seq "$ROUNDS"); do
  order=$PEERS
  [ $((round % 2)) = 0 ] && order=$(printf '%s\n' $PEERS | tac)
  for peer in $order; do
    name=$(server "$peer")
    LEADERS=$(leaders "$peer") "$P/peers.sh" "$name" start
    "$W/bin/load" -workload ready -peer "$name" -endpoints "$(endpoints "$peer")" >/dev/null
    "$race" "$peer"
    "$P/peers.sh" "$name" stop
    "$P/peers.sh" "$name" clean
  done
done
echo
"$W/bin/load" -workload table -out "$OUT"

#!/usr/bin/env bash
# A cluster of three nodes on this machine, with the cities of the world in it:
# starts the nodes, forms the cluster, imports, shows status, reads and writes,
# and leaves the cluster running until Ctrl-C. DEMO_ONCE=1 ends after showing.
#
# DEMO_DIR keeps the data in a directory of your choice (default: a temporary
# one, removed at the end); DEMO_PORT is the first port (default 7400: the nodes
# use 7400-7402, 7410-7412 and 7420-7422).
set -euo pipefail
cd "$(dirname "$0")/.."

idb=${IDB_BIN:-bin/idb}
port=${DEMO_PORT:-7400}
host=127.0.0.1
[ -x "$idb" ] || { echo "demo: $idb is missing: run make build" >&2; exit 1; }

# Settings meant for other nodes must not reach these.
for name in $(compgen -e | grep '^IDB_' || true); do unset "$name"; done

if [ -n "${DEMO_DIR:-}" ]; then
    dir=$DEMO_DIR
    mkdir -p "$dir"
else
    dir=$(mktemp -d "${TMPDIR:-/tmp}/idb-demo.XXXXXX")
fi

pids=()
ended=0
finish() {
    local code=$? pid alive
    [ "$ended" = 0 ] || return
    ended=1
    set +e # stop the nodes, whatever else fails: also when nobody reads what this says
    trap '' INT TERM HUP PIPE
    if [ ${#pids[@]} -gt 0 ]; then
        echo
        echo "demo: stopping the nodes"
        for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
        for _ in $(seq 100); do
            alive=0
            for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null && alive=1; done
            [ "$alive" = 1 ] || break
            sleep 0.1
        done
        for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
        wait 2>/dev/null || true
    fi
    if [ "$code" -gt 0 ] && [ "$code" -lt 129 ]; then
        echo "demo: something failed; the end of each node's log:" >&2
        tail -n 5 "$dir"/n?.log >&2 || true
        echo "demo: logs and data are kept in $dir" >&2
    elif [ -z "${DEMO_DIR:-}" ]; then
        rm -rf "$dir"
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
trap 'exit 141' PIPE

# show prints a command and runs it.
show() {
    local word line='$ idb'
    for word in "$@"; do
        case $word in
        *[!A-Za-z0-9_./:,=%@+-]*) line+=" '$word'" ;;
        *) line+=" $word" ;;
        esac
    done
    printf '\n%s\n' "$line"
    "$idb" "$@"
}

client_addr() { echo "$host:$((port + 10 * ($1 - 1)))"; }

echo "demo: three nodes, data and logs in $dir"
for n in 1 2 3; do
    p=$((port + 10 * (n - 1)))
    set -m # a process group of its own: Ctrl-C is for this script alone
    "$idb" node --id "n$n" --data "$dir/n$n" --zone "z$n" \
        --client-addr "$host:$p" --peer-addr "$host:$((p + 1))" --http-addr "$host:$((p + 2))" \
        --log-level warn </dev/null >"$dir/n$n.log" 2>&1 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&- &
    set +m
    pids+=($!)
    echo "  n$n: clients $host:$p, peers $host:$((p + 1)), health and metrics http://$host:$((p + 2))/metrics"
done

nodes="$(client_addr 1),$(client_addr 2),$(client_addr 3)"
export IDB_ADDR=$nodes

# A node that cannot start says why in one line; do not wait for it.
for _ in $(seq 5); do
    for pid in "${pids[@]}"; do
        kill -0 "$pid" 2>/dev/null || { echo "demo: a node did not start" >&2; exit 1; }
    done
    sleep 0.1
done

show cluster init --nodes "$nodes" --shards 8 --replicas 3
show import cities testdata/cities.ndjson.gz
show cluster status
show count cities
show get cities IS/00017
show scan cities --prefix NZ/ --limit 3
show put users ada '{"name":"Ada","langs":["go"],"logins":1}'
show update users ada '{"$inc":{"logins":1},"$push":{"langs":"sql"}}'
show get users ada
show history users ada
show get users ada --version 1
printf '\n(a write that expects an old version is refused)'
show put users ada '{"name":"Eve"}' --if-version 1 || echo "(exit code $?)"

if [ "${DEMO_ONCE:-0}" = 1 ]; then
    printf '\ndemo: done\n'
    exit 0
fi

cat <<END

The cluster is yours until Ctrl-C. In another terminal, in $PWD:

  export IDB_ADDR=$nodes PATH=\$PWD/bin:\$PATH
  idb cluster status
  idb scan cities --prefix IS/
  kill -9 ${pids[0]}          # kill node n1 and see that everything goes on
  idb --help
END
trap 'exit 0' INT # the way to end it
# Wait for Ctrl-C, whatever becomes of the nodes: killing one is part of the fun.
while :; do sleep 1; done

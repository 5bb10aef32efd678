#!/bin/bash
# peers.sh PEER start|stop|kill9|clean [NODE]   (no NODE: all). Everything on 127.0.0.1.
# Peers: etcd, idb, nats (acknowledges before fsync), nats-sync, pg, rqlite.
# SHARDS (8) and LEADERS (spread, together) are of the idb cluster when it is formed.
# Pids in run/PEER/N.pid, data in run/PEER/dataN, logs in run/PEER/N.log. Only
# processes of these pid files are ended.
set -u
P=$(cd "$(dirname "$0")" && pwd); W=${WORKDIR:-$P}; peer=$1; cmd=$2; only=${3:-}
R=$W/run/$peer; mkdir -p $R
nodes="1 2 3"
[ -n "$only" ] && nodes=$only
alive() { [ -d /proc/$1 ] && { ! grep -q "^State:.*Z" /proc/$1/status 2>/dev/null || [ "$(ls /proc/$1/task 2>/dev/null | wc -l)" -gt 1 ]; }; } # a zombie whose threads still hold sockets counts as alive
launch() { # node cmd...
  local n=$1; shift
  setsid nohup "$@" >>$R/$n.log 2>&1 </dev/null 3>&- &
  echo $! > $R/$n.pid
}
pgc() { setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"; }
PGB=/usr/lib/postgresql/15/bin
start1() {
  local n=$1 p
  p=$(head -1 $R/$n.pid 2>/dev/null) && [ -n "$p" ] && alive $p && return # it runs
  case $peer in
  etcd) launch $n $W/bin/etcd --name e$n --data-dir $R/data$n --listen-client-urls http://127.0.0.1:${n}2379 --advertise-client-urls http://127.0.0.1:${n}2379 \
      --listen-peer-urls http://127.0.0.1:${n}2380 --initial-advertise-peer-urls http://127.0.0.1:${n}2380 --initial-cluster-token t \
      --initial-cluster e1=http://127.0.0.1:12380,e2=http://127.0.0.1:22380,e3=http://127.0.0.1:32380 --initial-cluster-state new --quota-backend-bytes 8589934592 --log-level ${ETCD_LOG:-warn} ;;
  idb) launch $n $W/bin/idb node --id n$n --data $R/data$n --client-addr 127.0.0.1:1740$n --peer-addr 127.0.0.1:1741$n --http-addr 127.0.0.1:1742$n ;;
  rqlite) launch $n $W/bin/rqlited -node-id n$n -http-addr 127.0.0.1:${n}4001 -raft-addr 127.0.0.1:${n}4002 -bootstrap-expect 3 \
      -join 127.0.0.1:14002,127.0.0.1:24002,127.0.0.1:34002 $R/data$n ;;
  nats|nats-sync) local s=""; [ $peer = nats-sync ] && s="sync_interval: always"
      cat > $R/$n.conf <<C
server_name: n$n
listen: 127.0.0.1:${n}4222
jetstream { store_dir: "$R/data$n", max_mem: 1G, max_file: 20G
  $s
}
cluster { name: c, listen: 127.0.0.1:${n}6222, routes: [nats://127.0.0.1:16222, nats://127.0.0.1:26222, nats://127.0.0.1:36222] }
C
      launch $n $W/bin/nats-server -c $R/$n.conf ;;
  pg) if [ ! -d $R/data$n ]; then
        chown postgres $R; chmod 755 $W $W/run $R
        if [ $n = 1 ]; then
          pgc $PGB/initdb -D $R/data1 -A trust -E UTF8 --no-locale >$R/initdb.log 2>&1
          cat >> $R/data1/postgresql.conf <<C
listen_addresses='127.0.0.1'
port=15432
unix_socket_directories=''
shared_buffers=512MB
max_connections=300
synchronous_commit=on
synchronous_standby_names='ANY 1 (s2,s3)'
C
          echo "host replication all 127.0.0.1/32 trust" >> $R/data1/pg_hba.conf
        else
          pgc $PGB/pg_basebackup -h 127.0.0.1 -p 15432 -U postgres -D $R/data$n -R -X stream -c fast
          echo "port=${n}5432
primary_conninfo='host=127.0.0.1 port=15432 user=postgres application_name=s$n'" >> $R/data$n/postgresql.auto.conf
        fi
      fi
      pgc $PGB/pg_ctl -D $R/data$n -l $R/data$n/server.log -w start >/dev/null 3>&-; head -1 $R/data$n/postmaster.pid > $R/$n.pid ;;
  esac
}
stop1() { # node signal
  local p; p=$(head -1 $R/$1.pid 2>/dev/null) || return
  [ -n "$p" ] && alive $p && kill -$2 $p
  for _ in $(seq 200); do alive $p || break; sleep 0.05; done
  alive $p && kill -9 $p
  rm -f $R/$1.pid
}
# An idb cluster is formed once; saying it again to a formed one changes nothing.
form() {
  [ $peer = idb ] && [ -z "$only" ] && [ ! -f $R/formed ] || return 0
  for _ in $(seq 100); do
    $W/bin/idb cluster init --nodes 127.0.0.1:17401,127.0.0.1:17402,127.0.0.1:17403 --shards ${SHARDS:-8} ${LEADERS:+--leaders $LEADERS} >$R/init.log 2>&1 && { settle; return; }
    sleep 0.1
  done
  cat $R/init.log >&2
  return 1
}
# Leaders are where they should be before anything is measured. Without LEADERS
# nothing is said of them: the binary may be one that cannot be asked.
settle() {
  [ -z "${LEADERS:-}" ] || $W/bin/idb cluster leaders $LEADERS --addr 127.0.0.1:17401 --wait 30s >>$R/init.log 2>&1 || { cat $R/init.log >&2; return 1; }
  touch $R/formed
}
case $cmd in
  start) for n in $nodes; do start1 $n; done; form ;;
  stop) sig=TERM; [ $peer = pg ] && sig=INT; for n in $nodes; do stop1 $n $sig; done ;;
  kill9) for n in $nodes; do p=$(head -1 $R/$n.pid); kill -9 $p; done; for n in $nodes; do stop1 $n 9; done ;;
  clean) for n in $nodes; do [ -f $R/$n.pid ] && stop1 $n KILL; done; rm -rf $R ;;
esac

#!/bin/bash
# Builds the load program and the databases into bin/ (not committed).
#
#   build.sh                       load, idb and etcd
#   build.sh load idb etcd nats rqlite    some of them (PostgreSQL: apt-get install postgresql)
#
# WORKDIR keeps binaries and data elsewhere. rqlite's main package cannot be
# installed by version (replace directives), so it is built from a copy of its
# module directory with its own go.mod and go.sum.
set -eu
P=$(cd "$(dirname "$0")" && pwd)
W=${WORKDIR:-$P}
mkdir -p "$W/bin" "$W/build"
export GOBIN=$W/bin

build() {
  case $1 in
    load) (cd "$P" && go build -o "$W/bin/load" .) ;;
    idb) (cd "$P/../.." && go build -trimpath -o "$W/bin/idb" ./cmd/idb) ;;
    etcd)
      mkdir -p "$W/build/etcd" && cd "$W/build/etcd"
      [ -f go.mod ] || go mod init peers/etcd
      printf 'package main\n\nimport (\n\t"os"\n\n\t"go.etcd.io/etcd/server/v3/etcdmain"\n)\n\nfunc main() { etcdmain.Main(os.Args) }\n' > main.go
      go get go.etcd.io/etcd/server/v3@v3.7.3
      go build -trimpath -o "$W/bin/etcd" . ;;
    nats) go install github.com/nats-io/nats-server/v2@v2.15.2 ;;
    rqlite)
      mkdir -p "$W/build/rqlite/src" && cd "$W/build"
      [ -f go.mod ] || go mod init peers/build
      src=$(go mod download -json github.com/rqlite/rqlite/v8@v8.36.0 | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
      cp -r --no-preserve=mode "$src/." "$W/build/rqlite/src/"
      cd "$W/build/rqlite/src"
      CGO_ENABLED=1 go build -mod=mod -trimpath -o "$W/bin/rqlited" ./cmd/rqlited ;;
    *) echo "build.sh: unknown target $1 (load, idb, etcd, nats, rqlite)" >&2; return 1 ;;
  esac
}

[ $# -gt 0 ] || set -- load idb etcd
for x in "$@"; do
  t0=$(date +%s)
  (build "$x" 2>"$W/build/$x.log") || { cat "$W/build/$x.log" >&2; echo "building $x failed" >&2; exit 1; }
  echo "built $x in $(($(date +%s) - t0)) s"
done

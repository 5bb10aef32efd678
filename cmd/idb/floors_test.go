package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/impossibledb/idb"

// floors is the house: a package imports its own floor or a lower one. The
// longest entry that a package lies under counts; a package under none is a
// failure, so a new folder has to find its place here.
var floors = map[string]int{
	"client":       0, // and client/doc, client/wire, client/route
	"txn/hlc":      0,
	"fsm/mutant":   0,
	"fsm/vfs":      0,
	"txn":          1,
	"placement":    1,
	"fsm/update":   1,
	"fsm/query":    1,
	"fsm/schema":   1,
	"fsm/unique":   1,
	"fsm":          2, // and fsm/mvcc
	"shardgroup":   3,
	"router":       4,
	"cmd":          5,
	"scripts":      5,
	"cmd/internal": 5,
}

// clientThirdParty is what an application that uses the client gets with it.
// The engine, Raft and the command line must not come along.
var clientThirdParty = []string{
	"github.com/cespare/xxhash/",
	"github.com/philhofer/fwd",
	"github.com/tinylib/msgp/",
	"github.com/vmihailenco/msgpack/",
	"github.com/vmihailenco/tagparser/",
}

// listed is a package as `go list` tells it.
type listed struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string
}

func TestFloors(t *testing.T) {
	pkgs := goList(t)
	for _, fault := range floorFaults(pkgs) {
		t.Error(fault)
	}
	if len(pkgs) < 10 {
		t.Errorf("go list found %d packages: the test is not looking at the whole module", len(pkgs))
	}
}

// TestFloorsCatches plants one fault of each kind.
func TestFloorsCatches(t *testing.T) {
	for _, tc := range []struct {
		name string
		pkg  listed
		want string
	}{
		{"upwards", listed{ImportPath: module + "/placement", Imports: []string{module + "/shardgroup"}},
			"placement (floor 1) imports shardgroup (floor 3): a package imports its own floor or a lower one"},
		{"deep upwards", listed{ImportPath: module + "/fsm/update", Imports: []string{module + "/fsm/mvcc"}},
			"fsm/update (floor 1) imports fsm/mvcc (floor 2): a package imports its own floor or a lower one"},
		{"homeless", listed{ImportPath: module + "/util"},
			"util has no floor: give it one in cmd/idb/floors_test.go"},
		{"client out of its floor", listed{ImportPath: module + "/client", Imports: []string{module + "/placement"}},
			"client (floor 0) imports placement (floor 1): a package imports its own floor or a lower one"},
		{"client's luggage", listed{ImportPath: module + "/client/route", Deps: []string{"fmt", "github.com/hashicorp/raft"}},
			"client/route brings github.com/hashicorp/raft into every application: package client and below depend on encoders and hashes only"},
		{"allowed", listed{ImportPath: module + "/client", Imports: []string{module + "/client/wire", module + "/txn/hlc", "fmt"}, Deps: []string{"fmt", "github.com/tinylib/msgp/msgp"}}, ""},
		{"same floor", listed{ImportPath: module + "/fsm", Imports: []string{module + "/fsm/mvcc", module + "/fsm/vfs"}}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := strings.Join(floorFaults([]listed{tc.pkg}), "\n"); got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

func floorFaults(pkgs []listed) (faults []string) {
	for _, p := range pkgs {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		floor, ok := floorOf(name)
		if !ok {
			faults = append(faults, name+" has no floor: give it one in cmd/idb/floors_test.go")
			continue
		}
		for _, imp := range p.Imports {
			other, inside := strings.CutPrefix(imp, module+"/")
			if !inside {
				continue
			}
			if f, ok := floorOf(other); ok && f > floor {
				faults = append(faults, fmt.Sprintf("%s (floor %d) imports %s (floor %d): a package imports its own floor or a lower one", name, floor, other, f))
			}
		}
		if name != "client" && !strings.HasPrefix(name, "client/") {
			continue
		}
		for _, dep := range p.Deps {
			host, _, _ := strings.Cut(dep, "/")
			thirdParty := strings.Contains(host, ".") && !strings.HasPrefix(dep, module+"/")
			if thirdParty && !slices.ContainsFunc(clientThirdParty, func(ok string) bool { return strings.HasPrefix(dep+"/", ok) }) {
				faults = append(faults, name+" brings "+dep+" into every application: package client and below depend on encoders and hashes only")
			}
		}
	}
	return faults
}

// floorOf finds the longest entry of floors that name is, or lies under.
func floorOf(name string) (int, bool) {
	for at := name; at != ""; at = at[:max(0, strings.LastIndexByte(at, '/'))] {
		if f, ok := floors[at]; ok {
			return f, true
		}
	}
	return 0, false
}

func goList(t *testing.T) (pkgs []listed) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Standard,Imports,Deps", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}

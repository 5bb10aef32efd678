package chaos

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client/wire"
)

// TestLooks: replicas count as equal only at one index, seen there by all,
// now or later; two digests at one index are divergence.
func TestLooks(t *testing.T) {
	const replicas = 2
	type seen struct {
		node            string
		applied, digest uint64
	}
	for _, c := range []struct {
		name  string
		looks [][]seen
		equal bool   // after the last
		want  string // in the error
	}{
		{"equal at once", [][]seen{{{"n1", 5, 7}, {"n2", 5, 7}}}, true, ""},
		{"one lags", [][]seen{{{"n1", 5, 7}, {"n2", 4, 6}}}, false, ""},
		{"equal in passing", [][]seen{{{"n1", 5, 7}, {"n2", 4, 6}}, {{"n1", 6, 8}, {"n2", 5, 7}}}, true, ""},
		{"one replica twice is not two", [][]seen{{{"n1", 5, 7}}, {{"n1", 5, 7}}}, false, ""},
		{"diverged", [][]seen{{{"n1", 5, 7}, {"n2", 5, 8}}}, false, "group 3 has diverged: at index 5 n2 has digest 8, and n1 7"},
		{"diverged in passing", [][]seen{{{"n1", 5, 7}, {"n2", 4, 6}}, {{"n1", 6, 8}, {"n2", 5, 9}}}, false, "diverged"},
		{"a replica that changed its mind", [][]seen{{{"n1", 5, 7}}, {{"n1", 5, 8}}}, false, "diverged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLooks()
			var equal bool
			var err error
			for _, nodes := range c.looks {
				s := &wire.ClusterStatus{Topology: wire.Topology{Groups: []wire.GroupInfo{{ID: 3, Replicas: make([]string, replicas)}}}}
				for _, n := range nodes {
					s.Nodes = append(s.Nodes, wire.NodeAnswer{ID: n.node, Status: wire.NodeStatus{
						Groups: []wire.GroupStatus{{ID: 0, Applied: 1}, {ID: 3, Applied: n.applied, Digest: n.digest}},
					}})
				}
				if equal, err = l.add(s); err != nil {
					break
				}
			}
			if equal != c.equal {
				t.Errorf("equal is %v, want %v", equal, c.equal)
			}
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want %q", err, c.want)
			}
		})
	}
}

func TestMetric(t *testing.T) {
	page := []byte("# HELP go_goroutines Number.\n# TYPE go_goroutines gauge\ngo_goroutines 42\ngo_goroutines_more 7\nbig 1.5e+06\n")
	if v, ok := metric(page, "go_goroutines"); !ok || v != 42 {
		t.Errorf("go_goroutines is %v %v", v, ok)
	}
	if v, ok := metric(page, "big"); !ok || v != 1.5e6 {
		t.Errorf("big is %v %v", v, ok)
	}
	if _, ok := metric(page, "absent"); ok {
		t.Error("found what is not there")
	}
}

func TestFreeAddr(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		a, err := freeAddr()
		if err != nil {
			t.Fatal(err)
		}
		if seen[a] {
			t.Fatalf("%s was given out twice", a)
		}
		seen[a] = true
	}
}

// TestDamaged: most of what the fuzzer sends begins with a good hello, so that
// it gets past the door, and what follows differs.
func TestDamaged(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	frames := goodFrames()
	greeted, different := 0, map[string]bool{}
	const tries = 500
	for range tries {
		d := damaged(rng, frames)
		if strings.HasPrefix(string(d), string(hello())) {
			greeted++
		}
		different[string(d)] = true
	}
	if greeted < tries/2 || greeted == tries || len(different) < tries*9/10 {
		t.Errorf("of %d, %d begin with a hello and %d differ", tries, greeted, len(different))
	}
}

package sim

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/fsm/vfs"
	"github.com/impossibledb/idb/shardgroup"
)

// The stand-ins and the real stores pass one suite. A backend opens what it
// has at a place, again and again; crash, if not nil, loses what was not synced.
type backend struct {
	name      string
	stable    func() (shardgroup.StableStore, error)
	placement func() (shardgroup.PlacementStore, error)
	crash     func()
}

func backends(t *testing.T) []backend {
	dir := t.TempDir()
	drive := NewDrive(rand.New(rand.NewPCG(1, 1)))
	m := drive.Mount()
	if err := vfs.MakeDir(m, "/p"); err != nil {
		t.Fatal(err)
	}
	return []backend{
		{
			name: "bolt",
			stable: func() (shardgroup.StableStore, error) {
				return shardgroup.OpenBoltStable(filepath.Join(dir, "stable.db"))
			},
			placement: func() (shardgroup.PlacementStore, error) {
				return shardgroup.OpenPlacementStore(dir, hclog.NewNullLogger())
			},
		},
		{
			name:      "stand-in",
			stable:    func() (shardgroup.StableStore, error) { return OpenStable(m, "/stable.db") },
			placement: func() (shardgroup.PlacementStore, error) { return OpenPlacementStore(m, "/p") },
			crash:     func() { drive.CutPower(0); m = drive.Mount() },
		},
	}
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStableStores(t *testing.T) {
	for _, b := range backends(t) {
		t.Run(b.name, func(t *testing.T) {
			s := must(b.stable())(t)
			if v, err := s.Get([]byte("none")); err == nil || err.Error() != "not found" || len(v) > 0 {
				t.Errorf("a key that was never set: %q, %v", v, err)
			}
			if _, err := s.GetUint64([]byte("none")); err == nil || err.Error() != "not found" {
				t.Errorf("a number that was never set: %v", err)
			}
			ok(t, s.Set([]byte("k"), []byte("one")))
			ok(t, s.Set([]byte("k"), []byte("two")))
			ok(t, s.SetUint64([]byte("n"), 1<<63+7))
			ok(t, s.Set([]byte("empty"), nil))
			for round := range 2 {
				if v, err := s.Get([]byte("k")); err != nil || string(v) != "two" {
					t.Errorf("round %d: %q, %v", round, v, err)
				}
				if n, err := s.GetUint64([]byte("n")); err != nil || n != 1<<63+7 {
					t.Errorf("round %d: %d, %v", round, n, err)
				}
				if v, err := s.Get([]byte("empty")); err != nil || len(v) != 0 {
					t.Errorf("round %d: an empty value is %q, %v", round, v, err)
				}
				if b.crash != nil {
					b.crash() // what was answered is durable
				} else {
					ok(t, s.Close())
				}
				s = must(b.stable())(t)
			}
			ok(t, s.Close())
		})
	}
}

func entry(i, term uint64, data string) *raft.Log {
	return &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: []byte(data), Extensions: []byte("x"), AppendedAt: time.Unix(1700000000, 5)}
}

func TestLogStores(t *testing.T) {
	for _, b := range backends(t) {
		t.Run(b.name, func(t *testing.T) {
			s := must(b.placement())(t)
			check := func(first, last uint64, data map[uint64]string) {
				t.Helper()
				if f, err := s.FirstIndex(); err != nil || f != first {
					t.Errorf("first index is %d, %v, want %d", f, err, first)
				}
				if l, err := s.LastIndex(); err != nil || l != last {
					t.Errorf("last index is %d, %v, want %d", l, err, last)
				}
				for i := uint64(0); i < 12; i++ {
					var l raft.Log
					err := s.GetLog(i, &l)
					want, there := data[i]
					switch {
					case !there && err != raft.ErrLogNotFound:
						t.Errorf("entry %d, which is not there: %v", i, err)
					case there && (err != nil || string(l.Data) != want || l.Index != i || string(l.Extensions) != "x" || l.Type != raft.LogCommand || !l.AppendedAt.Equal(time.Unix(1700000000, 5))):
						t.Errorf("entry %d is %+v, %v, want %q", i, l, err, want)
					}
				}
			}
			check(0, 0, nil)
			var batch []*raft.Log
			for i := uint64(3); i <= 9; i++ {
				batch = append(batch, entry(i, 1, fmt.Sprint("a", i)))
			}
			ok(t, s.StoreLogs(batch))
			batch[0].Data[0] = 'z' // the store has its own
			ok(t, s.StoreLog(entry(10, 2, "a10")))
			ok(t, s.DeleteRange(1, 4))
			ok(t, s.DeleteRange(9, 10))
			ok(t, s.StoreLog(entry(9, 3, "b9")))
			want := map[uint64]string{5: "a5", 6: "a6", 7: "a7", 8: "a8", 9: "b9"}
			check(5, 9, want)
			ok(t, s.SetUint64([]byte("CurrentTerm"), 3))
			if b.crash != nil {
				b.crash()
			} else {
				ok(t, s.Close())
			}
			s = must(b.placement())(t)
			check(5, 9, want)
			if n, err := s.GetUint64([]byte("CurrentTerm")); err != nil || n != 3 {
				t.Errorf("the term is %d, %v", n, err)
			}
			ok(t, s.DeleteRange(5, 9))
			check(0, 0, nil)
			ok(t, s.Close())
		})
	}
}

func TestSnapshotStores(t *testing.T) {
	for _, b := range backends(t) {
		t.Run(b.name, func(t *testing.T) {
			s := must(b.placement())(t)
			conf := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: "n1", Address: "n1"}}}
			_, trans := raft.NewInmemTransport("n1")
			if list, err := s.List(); err != nil || len(list) != 0 {
				t.Fatalf("a new store has %d snapshots, %v", len(list), err)
			}
			take := func(index, term uint64, content string, cancel bool) {
				t.Helper()
				k := must(s.Create(1, index, term, conf, 1, trans))(t)
				for i := range len(content) {
					if n, err := k.Write([]byte(content[i : i+1])); n != 1 || err != nil {
						t.Fatal(n, err)
					}
				}
				if cancel {
					ok(t, k.Cancel())
					return
				}
				ok(t, k.Close())
			}
			take(10, 1, "ten", false)
			take(20, 1, "twenty", false)
			take(25, 1, "never", true)
			take(15, 2, "fifteen", false) // a later term is newer
			for round := range 2 {
				list := must(s.List())(t)
				if len(list) != 2 || list[0].Index != 15 || list[1].Index != 20 {
					t.Fatalf("round %d: %+v", round, list)
				}
				meta, r, err := s.Open(list[0].ID)
				ok(t, err)
				content := must(io.ReadAll(r))(t)
				ok(t, r.Close())
				if string(content) != "fifteen" || meta.Size != 7 || meta.Term != 2 || meta.ConfigurationIndex != 1 || !reflect.DeepEqual(meta.Configuration, conf) {
					t.Errorf("round %d: %q, %+v", round, content, meta)
				}
				if b.crash != nil {
					b.crash()
				} else {
					ok(t, s.Close())
				}
				s = must(b.placement())(t)
			}
			if _, _, err := s.Open("1-999-1"); err == nil {
				t.Error("a snapshot that never was is opened")
			}
			ok(t, s.Close())
		})
	}
}

// A journal that ends in a record that was cut off, or holds much history, is
// what it was.
func TestJournal(t *testing.T) {
	drive := NewDrive(rand.New(rand.NewPCG(1, 1)))
	m := drive.Mount()
	s := must(openStore(m, "/j"))(t)
	value := bytes.Repeat([]byte("v"), 1000)
	for i := range 2000 {
		value[0] = byte(i)
		ok(t, s.Set([]byte{byte(i % 7)}, value))
	}
	if size := must(m.Stat("/j"))(t).Size(); size > 2*journalSlack {
		t.Errorf("seven values of 1000 bytes are a file of %d", size)
	}
	ok(t, s.Close())
	whole := must(vfs.ReadFile(m, "/j", 1<<20))(t)
	s = must(openStore(m, "/j"))(t)
	ok(t, s.Set([]byte("last"), []byte("x")))
	ok(t, s.Close())
	more := must(vfs.ReadFile(m, "/j", 1<<20))(t)
	for cut := 1; cut < len(more)-len(whole); cut++ {
		f := must(m.Create("/cut", vfs.Unspecified))(t)
		must(f.Write(more[:len(more)-cut]))(t)
		s = must(openStore(m, "/cut"))(t)
		if _, err := s.Get([]byte("last")); err == nil {
			t.Fatalf("%d bytes short: the record is read", cut)
		}
		if v, err := s.Get([]byte{1}); err != nil || len(v) != 1000 {
			t.Fatalf("%d bytes short: what was before is lost: %v", cut, err)
		}
		ok(t, s.Set([]byte("again"), []byte("y")))
		ok(t, s.Close())
		s = must(openStore(m, "/cut"))(t)
		if v, err := s.Get([]byte("again")); err != nil || string(v) != "y" {
			t.Fatalf("%d bytes short: what came after is %q, %v", cut, v, err)
		}
	}
}

// After a failed write the journal takes nothing more.
func TestJournalFails(t *testing.T) {
	drive := NewDrive(rand.New(rand.NewPCG(1, 1)))
	m := drive.Mount()
	s := must(openStore(m, "/j"))(t)
	drive.Fail(io.ErrShortWrite)
	if err := s.Set([]byte("k"), []byte("v")); err == nil {
		t.Error("a write on a broken disk was answered")
	}
	drive.Repair()
	if err := s.Set([]byte("k"), []byte("v")); err == nil {
		t.Error("a write after a failed one was answered: the file may have a hole")
	}
	if _, err := s.Get([]byte("k")); err == nil {
		t.Error("a value is there that was never stored")
	}
}

func FuzzReplay(f *testing.F) {
	f.Add(appendEntry(appendValue(nil, "k", []byte("v")), entry(1, 1, "data")))
	f.Add([]byte{changeRemove, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, change []byte) {
		s := &store{values: map[string][]byte{}, entries: map[uint64]*raft.Log{}}
		if s.replay(change) != nil {
			return
		}
		// What was read is written and read again.
		drive := NewDrive(rand.New(rand.NewPCG(1, 1)))
		m := drive.Mount()
		fl := must(m.Create("/j", vfs.Unspecified))(t)
		must(fl.Write(s.live()))(t)
		again := must(openStore(m, "/j"))(t)
		if !reflect.DeepEqual(s.values, again.values) || len(s.entries) != len(again.entries) || s.low != again.low || s.high != again.high {
			t.Errorf("%v and %v", s, again)
		}
	})
}

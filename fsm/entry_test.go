package fsm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
)

func everyCommand() []Command {
	id := wire.RequestID{Time: 0x0102030405060708}
	copy(id.Random[:], "0123456789abcdef")
	write := func(op wire.WriteOp, change func(*Write)) Command {
		w := &Write{Partition: 270, Epoch: 12, Collection: 3, Item: wire.WriteItem{RequestID: id, Op: op, ID: "acme/order-1"}}
		change(w)
		return Command{Time: 0x1122334455667788, Write: w}
	}
	doc := []byte{0x81, 0xa1, 'a', 0x01}
	return []Command{
		write(wire.OpPut, func(w *Write) { w.Item.Body, w.MaxBytes = doc, 1<<20 }),
		write(wire.OpInsert, func(w *Write) { w.Item.Body, w.Item.ReturnDoc = doc, true }),
		write(wire.OpUpdate, func(w *Write) { w.Item.Body, w.Item.IfVersion = doc, 300 }),
		write(wire.OpUpsert, func(w *Write) { w.Item.Body, w.Item.Cond = doc, wire.CondAbsent }),
		write(wire.OpDelete, func(w *Write) { w.Item.Cond = wire.CondPresent }),
		write(wire.OpRestore, func(w *Write) { w.Item.RestoreVersion = 7 }),
		{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{0, 127, 128, 270}}},
		{Own: &Own{Epoch: 2, Partitions: []placement.PartitionID{}}},
		{Time: 5, Ceiling: &Ceiling{To: 0xffeeddccbbaa9988}},
		{Horizon: &Horizon{RequestIDs: 9, History: []HistoryHorizon{{Collection: 1, At: 8}, {Collection: 300, At: 7}}}},
		{Collect: &Collect{Keys: [][]byte{{1, 2, 3}, bytes.Repeat([]byte{7}, 200)}}},
		{Drop: &Drop{Collection: 4}},
		{Digest: &Digest{At: 1000, Value: 0xdeadbeefcafef00d}},
		{Time: 6, Mark: &Mark{ID: id.Random, State: true, From: 3, To: 271, Bucket: 256, RateKiB: 32 << 10}},
		{Time: 7, Txn: &Txn{ID: txn.ID(id), Partition: 270, Epoch: 12, Prepare: &Prepare{Home: 3, Deadline: 9, Born: 8, Part: testPart(doc)}}},
		{Time: 7, Txn: &Txn{ID: txn.ID(id), Partition: 3, Epoch: 12, Decide: &Decide{MaxP: 77, Participants: []placement.PartitionID{270, 1}, Part: testPart(doc)}}},
		{Time: 7, Txn: &Txn{ID: txn.ID(id), Partition: 270, Epoch: 12, Resolve: &Resolve{Commit: true, At: 78}}},
		{Time: 7, Txn: &Txn{ID: txn.ID(id), Partition: 3, Epoch: 12, Settle: &Settle{Abort: true, Raise: 5}}},
		{Time: 7, Txn: &Txn{ID: txn.ID(id), Partition: 3, Epoch: 12, Commit: &Commit{Parts: []PartitionPart{{3, testPart(doc)}, {4, txn.Part{Reads: []txn.Read{{Collection: 1, ID: "x", At: 4}}}}}}}},
		{Time: 7, Txn: &Txn{ID: txn.ID(id), Partition: 3, Epoch: 12, Forget: &Forget{}}},
		{Time: 8, Promise: &Promise{To: 0x1122334455667788, Epoch: 12, Partitions: []placement.PartitionID{0, 128, 270}}},
		{Time: 7, Txn: &Txn{ID: txn.ID(id), Partition: 3, Epoch: 12, Request: &Request{ID: id, KeepDoc: true}, Decide: &Decide{MaxP: 77, Participants: []placement.PartitionID{270, 1}, Part: testPart(doc)}}},
		{Time: 7, Txn: &Txn{ID: txn.ID(id), Partition: 3, Epoch: 12, Request: &Request{ID: id}, Commit: &Commit{Parts: []PartitionPart{{1, txn.Part{}}, {3, testPart(doc)}}}}},
		{Time: 7, Txn: &Txn{ID: txn.ID(id), Partition: 3, Epoch: 12, Request: &Request{ID: id, Refused: &Refused{Code: wire.CodeDuplicateValue, Version: 300, Detail: "why"}}, Commit: &Commit{Parts: []PartitionPart{{3, txn.Part{Reads: []txn.Read{{Collection: 1, ID: "x", At: 4}}}}}}}},
		{Time: 7, Txn: &Txn{ID: txn.ID(id), Partition: 3, Epoch: 12, Prepare: &Prepare{Participants: []placement.PartitionID{270, 1}, Home: 3, Deadline: 9, Born: 8, Part: testPart(doc)}}},
		{Time: 7, Txn: &Txn{ID: txn.ID(id), Partition: 3, Epoch: 12, Confirm: &Confirm{At: 78}}},
		{Time: 7, Txn: &Txn{ID: txn.ID(id), Partition: 3, Epoch: 12, Reject: &Reject{}}},
		{Time: 7, Txn: &Txn{ID: txn.ID(id), Partition: 270, Epoch: 12, Poll: &Poll{Deny: true, Raise: 5}}},
	}
}

func testPart(doc []byte) txn.Part {
	return txn.Part{
		Reads:  []txn.Read{{Collection: 1, ID: "a", At: 7}, {Collection: 2, ID: "b"}},
		Ranges: []txn.Range{{Collection: 1, Prefix: "p/", From: "p/1", To: "p/9", At: 9}},
		Writes: []txn.Write{{Collection: 1, ID: "a", MaxBytes: 1 << 20, Ops: []txn.Op{{Op: wire.OpPut, Body: doc}, {Op: wire.OpDelete, IfVersion: 3, Cond: wire.CondPresent}}}},
	}
}

func TestEntryRoundTrip(t *testing.T) {
	all := everyCommand()
	for _, commands := range append([][]Command{all}, split(all)...) {
		data, err := AppendEntry(nil, commands)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeEntry(data)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, commands) {
			t.Errorf("%+v came back as %+v", commands, got)
		}
		total := 8
		for i := range commands {
			total += commands[i].EncodedLen()
		}
		if len(data) > total {
			t.Errorf("%d bytes, EncodedLen promised at most %d", len(data), total)
		}
		for n := range data {
			if _, err := DecodeEntry(data[:n]); !errors.Is(err, ErrDamaged) {
				t.Fatalf("the first %d of %d bytes: %v", n, len(data), err)
			}
		}
	}
}

func split(commands []Command) (out [][]Command) {
	for i := range commands {
		out = append(out, commands[i:i+1])
	}
	return out
}

// TestFormats compares with the bytes that are on users' disks: entries, keys
// and rows. A difference here needs a new format number, not a new golden file.
func TestFormats(t *testing.T) {
	var b strings.Builder
	line := func(name string, data []byte) { fmt.Fprintf(&b, "%-28s %s\n", name, hex.EncodeToString(data)) }
	for i, c := range split(everyCommand()) {
		data, err := AppendEntry(nil, c)
		if err != nil {
			t.Fatal(err)
		}
		line(fmt.Sprintf("entry %d", i), data)
	}
	data, err := AppendEntry(nil, everyCommand())
	if err != nil {
		t.Fatal(err)
	}
	line("entry with all of them", data)

	var random [16]byte
	copy(random[:], "0123456789abcdef")
	doc := mvcc.AppendDocument(nil, 3, 270, 5, "a\x00b")
	line("key document", mvcc.AppendTime(doc, 0x1122334455667788))
	line("key request", mvcc.AppendRequestKey(nil, 3, 270, 9, &random))
	line("key transaction", mvcc.AppendTxnKey(nil, 3, 270, mvcc.RolePrepared, 9, &random))
	line("key tail", mvcc.AppendTailKey(nil, 3, 1025))
	line("key answers", mvcc.AppendAnswersKey(nil, 3, 270, 9, 8, 7))
	line("key owned", mvcc.AppendNumbered(nil, 3, mvcc.KindOwned, 270))
	line("key counts", mvcc.AppendNumbered(nil, 3, mvcc.KindCounts, 270, 5))
	line("key dropped", mvcc.AppendNumbered(nil, 3, mvcc.KindDropped, 5))
	line("key horizon", mvcc.AppendNumbered(nil, 3, mvcc.KindHorizon, 5))
	line("row document", mvcc.AppendRow(nil, &mvcc.Row{Version: 300, Created: 9, Body: []byte{0x80}}))
	line("row tombstone", mvcc.AppendRow(nil, &mvcc.Row{Version: 2, Created: 9, Deleted: true}))
	for _, r := range writtenTail(t) {
		line("row "+r.name, r.value)
	}
	line("row counts", (&counts{docs: 1, bytes: 2, rows: 3}).append(nil))
	line("row owned, horizon", appendSmall(nil, 7))
	line("row dropped", appendSmall(nil))
	line("answer", appendAnswer(nil, &Result{Wire: wire.WriteResult{Version: 4, Time: 5, CreatedAt: 6, Created: true, Doc: []byte{0x80}}}, true))
	line("answer, refused", appendAnswer(nil, &Result{Wire: wire.WriteResult{Error: &wire.Error{Code: wire.CodeUpdateFailed, Version: 4}}, Detail: "why"}, false))
	line("end, done", appendEnd(nil, txn.Done))
	line("end, aborted", appendEnd(nil, txn.Aborted))

	golden(t, "fsm-v1.txt", b.String())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("../testdata/formats", name)
	if *updateGolden {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s: the format on disk has changed: %s", path, diff(string(want), got))
	}
}

func TestEntryRefuses(t *testing.T) {
	put := everyCommand()[0]
	both := put
	both.Drop = &Drop{}
	long := put
	w := *put.Write
	w.Item.ID = strings.Repeat("x", wire.MaxIDBytes+1)
	long.Write = &w
	for name, commands := range map[string][]Command{
		"none": {}, "empty command": {{}}, "two things": {both}, "long ID": {long}, "too many": make([]Command, MaxCommands+1),
	} {
		if b, err := AppendEntry([]byte("kept"), commands); err == nil || string(b) != "kept" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}

	good, err := AppendEntry(nil, []Command{put})
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, b byte) []byte {
		bad := bytes.Clone(good)
		bad[at] = b
		return bad
	}
	const kindAt, opAt = 2, 2 + 9 + 2 + 1 + 1 + 3
	for _, c := range []struct {
		name string
		data []byte
		want error
	}{
		{"newer format", change(0, 2), ErrNewer},
		{"format zero", change(0, 0), ErrDamaged},
		{"no commands", []byte{1, 0}, ErrDamaged},
		{"a count beyond the entry", []byte{1, 0xff, 0xff, 0xff, 0x7f}, ErrDamaged},
		{"newer kind", change(kindAt, 99), ErrNewer},
		{"newer operation", change(opAt, 77), ErrNewer},
		{"newer flag", change(opAt+1, 1<<5), ErrNewer},
		{"bytes after the end", append(bytes.Clone(good), 0), ErrDamaged},
		{"a longer form of a number", append([]byte{1, 0x81, 0x00}, good[2:]...), ErrDamaged},
	} {
		if _, err := DecodeEntry(c.data); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// TestBadEntryHalts: a replica that cannot read an entry does nothing any
// more, and what came before it stays as it was.
func TestBadEntryHalts(t *testing.T) {
	r := newReplica(t, nil)
	r.mustApply(mustEntry(t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{1}}}))
	before := r.rows()
	good := mustEntry(t, 2, Command{Ceiling: &Ceiling{To: 9}})
	if _, err := r.Apply([]Entry{good, {Index: 3, Data: []byte{9, 9, 9}}}); !errors.Is(err, ErrNewer) {
		t.Fatal(err)
	}
	if _, err := r.Apply([]Entry{good}); !errors.Is(err, ErrHalted) {
		t.Fatal(err)
	}
	if got := r.rows(); got != before {
		t.Fatal(diff(before, got))
	}
	if _, err := r.Get(ReadKey{Partition: 1, Epoch: 1, Collection: 1, ID: "x"}, At{}, false); err == nil {
		t.Fatal("a halted machine answers reads")
	}
	if _, err := r.Snapshot(); !errors.Is(err, ErrHalted) {
		t.Fatal(err)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	for _, c := range append([][]Command{everyCommand()}, split(everyCommand())...) {
		data, err := AppendEntry(nil, c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	var reused entryDecoder
	f.Fuzz(func(t *testing.T, data []byte) {
		commands, err := DecodeEntry(data)
		again, err2 := reused.decode(data)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("a decoder that was used before says %v, a new one %v", err2, err)
		}
		if err != nil {
			return
		}
		if !reflect.DeepEqual(commands, again) {
			t.Fatal("a decoder that was used before reads something else")
		}
		back, err := AppendEntry(nil, commands)
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		if !bytes.Equal(back, data) {
			t.Fatalf("%x is encoded again as %x", data, back)
		}
	})
}

// FuzzApply feeds entries that decode to a machine: whatever they say, it
// answers or refuses, its counts stay true, and a second machine agrees.
func FuzzApply(f *testing.F) {
	own := Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{0, 1, 270}}}
	for i, c := range append([][]Command{everyCommand()}, split(everyCommand())...) {
		data, err := AppendEntry(nil, append([]Command{own}, c...))
		if err != nil {
			f.Fatal(i, err)
		}
		f.Add(data, data)
	}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		if _, err := DecodeEntry(one); err != nil {
			return
		}
		if _, err := DecodeEntry(two); err != nil {
			return
		}
		a, b := newReplica(t, nil), newReplica(t, nil)
		log := []Entry{{Index: 1, Data: one}, {Index: 2, Data: two}}
		_, errA := a.Apply(log)
		_, errB := b.Apply(log[:1])
		if errB == nil {
			_, errB = b.Apply(log[1:])
		}
		if (errA == nil) != (errB == nil) {
			t.Fatalf("together: %v, one by one: %v", errA, errB)
		}
		if errA != nil {
			return
		}
		a.verify()
		if x, y := a.rows(), b.rows(); x != y {
			t.Fatal(diff(x, y))
		}
	})
}

func FuzzDecodeRows(f *testing.F) {
	f.Add((&meta{applied: 1}).append(nil))
	f.Add((&counts{docs: 1}).append(nil))
	f.Add(appendAnswer(nil, &Result{Wire: wire.WriteResult{Version: 1, Doc: []byte{0x80}}}, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m meta
		if m.decode(b) == nil && !bytes.Equal(m.append(nil), b) {
			t.Fatalf("meta %x", b)
		}
		var c counts
		if c.decode(b) == nil && !bytes.Equal(c.append(nil), b) {
			t.Fatalf("counts %x", b)
		}
		var r Result
		_ = decodeAnswer(b, &r) // must not panic
	})
}

// TestAnswersLast: what a retry is told is what the first was told.
func TestAnswersLast(t *testing.T) {
	for _, want := range []Result{
		{Wire: wire.WriteResult{Version: 3, Time: 7, CreatedAt: 5}},
		{Wire: wire.WriteResult{Version: 1, Time: 7, CreatedAt: 7, Created: true, Doc: []byte{0x80}}},
		{Wire: wire.WriteResult{Error: &wire.Error{Code: wire.CodeNotFound}}},
		{Wire: wire.WriteResult{Error: &wire.Error{Code: wire.CodeVersionConflict, Version: 9}}, Detail: "because"},
	} {
		var got Result
		if err := decodeAnswer(appendAnswer(nil, &want, true), &got); err != nil {
			t.Fatal(err)
		}
		want.Wire.Duplicate = true
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%+v became %+v", want, got)
		}
	}
	var r Result
	long := Result{Wire: wire.WriteResult{Error: &wire.Error{Code: wire.CodeUpdateFailed}}, Detail: strings.Repeat("é", 200)}
	if err := decodeAnswer(appendAnswer(nil, &long, false), &r); err != nil || len(r.Detail) > maxAnswerDetail {
		t.Errorf("%d bytes of detail, %v", len(r.Detail), err)
	}
	if err := decodeAnswer([]byte{0x80}, &r); !errors.Is(err, ErrNewer) {
		t.Error(err)
	}
	if err := decodeAnswer([]byte{1, 0}, &r); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
}

package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

type namedRow struct {
	name  string
	value []byte
}

// writtenTail is what a few entries leave: a tail's row, then one that seals,
// and what it seals.
func writtenTail(t *testing.T) (rows []namedRow) {
	r := newReplica(t, nil)
	put := func(n uint64, p placement.PartitionID, id string, op wire.WriteOp) Command {
		return Command{Time: hlc.Timestamp(100 + n), Write: &Write{Partition: p, Epoch: 1, Collection: 5, Item: wire.WriteItem{
			RequestID: request(100+n, n), Op: op, ID: id, Body: []byte{0x80},
		}}}
	}
	step := func(n uint64, x Txn) Command {
		x.ID, x.Epoch = txnID(n), 1
		return Command{Time: hlc.Timestamp(110), Txn: &x}
	}
	begun := Prepare{Home: 270, Deadline: 500, Born: 40, Part: writes(t, "c", `{}`)}
	staged := begun
	staged.Participants = []placement.PartitionID{1}
	r.mustApply(
		mustEntry(t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{1, 270}}}),
		mustEntry(t, 2, put(1, 270, "a", wire.OpPut), put(2, 1, "b", wire.OpPut), put(3, 1, "b", wire.OpInsert)),
		mustEntry(t, 3, step(1, Txn{Partition: 270, Prepare: &staged}), step(1, Txn{Partition: 1, Prepare: &begun})),
		mustEntry(t, 4, step(1, Txn{Partition: 270, Confirm: &Confirm{At: 111}}), step(1, Txn{Partition: 1, Resolve: &Resolve{Commit: true, At: 111}})),
		mustEntry(t, 5, Command{Mark: &Mark{To: 1}}),
	)
	rd, err := r.engine.NewReader(testGroup, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []mvcc.Kind{mvcc.KindTail, mvcc.KindAnswers} {
		start, end := mvcc.KindSpan(testGroup, kind)
		err = errors.Join(err, rd.Each(start, end, func(key, value []byte) error {
			rows = append(rows, namedRow{fmt.Sprintf("of key %x", key[4:]), bytes.Clone(value)})
			return nil
		}))
	}
	if err = errors.Join(err, rd.Close()); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 7 { // of five entries and two partitions
		t.Fatalf("%d rows", len(rows))
	}
	return rows
}

// readAgain decodes a tail's row and encodes what it says.
func readAgain(b []byte) ([]byte, error) {
	var t tailRow
	if err := t.decode(b); err != nil {
		return nil, err
	}
	out := t.append(nil)
	var head, body, records []byte
	counted, answered, recorded := uint64(0), uint64(0), uint64(0)
	err := t.each(func(k countKey, c counts) {
		counted++
		head = appendTailCounts(head, k, c)
	}, func(k requestKey, answer []byte) error {
		answered++
		body = binary.AppendUvarint(body, uint64(k.partition()))
		body = append(body, k[4:]...)
		body = binary.AppendUvarint(body, uint64(len(answer)))
		body = append(body, answer...)
		return nil
	}, func(k txnRow, record []byte) error {
		recorded++
		records = appendTailRecord(records, k, record)
		return nil
	})
	out = append(binary.AppendUvarint(out, counted), head...)
	out = append(binary.AppendUvarint(out, answered), body...)
	return append(binary.AppendUvarint(out, recorded), records...), err
}

func TestTailRoundTrip(t *testing.T) {
	for _, r := range writtenTail(t) {
		sealed := strings.HasPrefix(r.name, "of key 31")
		if r.value[0] != tailFormat && !sealed || r.value[0] != answersFormat && sealed {
			t.Errorf("%s has format %d", r.name, r.value[0])
		}
		read := func(b []byte) error {
			if sealed {
				return eachAnswer(1, b, func(requestKey, []byte) error { return nil })
			}
			again, err := readAgain(b)
			if err == nil && !bytes.Equal(again, b) {
				t.Errorf("%s: %x came back as %x", r.name, b, again)
			}
			return err
		}
		if err := read(r.value); err != nil {
			t.Errorf("%s: %v", r.name, err)
		}
		for n := range r.value {
			if err := read(r.value[:n]); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s, the first %d of %d bytes: %v", r.name, n, len(r.value), err)
			}
		}
		if err := read(append(bytes.Clone(r.value), 0)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s with a byte more: %v", r.name, err)
		}
		r.value[0]++
		if err := read(r.value); !errors.Is(err, ErrNewer) {
			t.Errorf("%s of a newer format: %v", r.name, err)
		}
	}
}

func FuzzDecodeTail(f *testing.F) {
	row := (&meta{applied: 9, before: 8, sealed: 3}).append(nil)
	f.Add(append(row, 0, 0, 0))
	row = appendTailCounts(append(row, 1), countKey{270, 5}, counts{1, 2, 3})
	row = append(append(row, 1, 1), make([]byte, 24)...)
	row = append(row, 2, 7, 7)
	f.Add(append(row, 0))
	row = appendTailRecord(append(row, 2), txnRow{txnKey{270, txnID(1)}, mvcc.RoleCommitted}, (&txn.CommittedRecord{At: 7, Participants: []placement.PartitionID{1, 300}}).Append(nil))
	f.Add(appendTailRecord(row, txnRow{txnKey{1, txnID(2)}, mvcc.RolePrepared}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if again, err := readAgain(b); err == nil && !bytes.Equal(again, b) {
			t.Errorf("%x came back as %x", b, again)
		}
	})
}

func FuzzDecodeSealed(f *testing.F) {
	f.Add([]byte{answersFormat, 0})
	f.Add(append([]byte{answersFormat, 1, 1}, append(make([]byte, 23), 2, 7, 7)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n uint64
		var body []byte
		err := eachAnswer(7, b, func(k requestKey, answer []byte) error {
			n++
			body = append(body, k[4:]...)
			body = binary.AppendUvarint(body, uint64(len(answer)))
			body = append(body, answer...)
			return nil
		})
		if again := append(binary.AppendUvarint([]byte{answersFormat}, n), body...); err == nil && !bytes.Equal(again, b) {
			t.Errorf("%x came back as %x", b, again)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add(appendAnswer(nil, &Result{Wire: wire.WriteResult{Version: 4, Time: 5, CreatedAt: 6, Created: true, Doc: []byte{0x80}}}, true))
	f.Add(appendAnswer(nil, &Result{Wire: wire.WriteResult{Error: &wire.Error{Code: wire.CodeUpdateFailed, Version: 4}}, Detail: "why"}, false))
	f.Add(appendEnd(nil, txn.Aborted))
	f.Add(appendEnd(nil, txn.Refused))
	f.Fuzz(func(t *testing.T, b []byte) {
		if of := subjectOf(b); of != ofRequest {
			if state, err := decodeEnd(b); err == nil && (!bytes.Equal(appendEnd(nil, state), b) || (of == ofHome) != (state == txn.Aborted)) {
				t.Errorf("%x is %s, of subject %d", b, state, of)
			}
			b = b[1:]
		}
		var r Result
		if decodeAnswer(b, &r) != nil {
			return
		}
		if again := appendAnswer(nil, &r, true); !bytes.Equal(again, b) {
			t.Errorf("%x came back as %x", b, again)
		}
		if n := answerLen(&r, true); n != len(b) {
			t.Errorf("%d bytes were taken for %d", len(b), n)
		}
	})
}

// TestAnswersSurvive asks again for every answer: of the tail, sealed, in rows
// of their own; later in the same machine, after a restart, and in a copy;
// before and after a horizon.
func TestAnswersSurvive(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 11))
		r := newReplica(t, nil)
		index := uint64(1)
		r.mustApply(mustEntry(t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{1, 2, 3}}}))
		big := body(t, `{"$set":{"big":"`+strings.Repeat("y", maxTailAnswer)+`"}}`)
		type asked struct {
			c     Command
			first wire.WriteResult
		}
		var all []asked
		horizon, clock := uint64(0), uint64(1000)
		ask := func(again bool, as ...asked) {
			t.Helper()
			var cs []Command
			for _, a := range as {
				cs = append(cs, a.c)
			}
			index++
			for i, res := range r.mustApply(mustEntry(t, index, cs...))[0] {
				got, want := res.Wire, as[i].first
				switch {
				case as[i].c.Write.Item.RequestID.Time < horizon:
					if got.Error == nil || got.Error.Code != wire.CodeOutcomeExpired {
						t.Fatalf("seed %d: an expired request was answered with %+v", seed, got)
					}
				case again:
					want.Duplicate = true
					if a, b := fmt.Sprintf("%+v %+v", want.Error, got.Error), fmt.Sprintf("%+v %+v", got.Error, got.Error); a != b {
						t.Fatalf("seed %d: the first answer was %+v, the next %+v", seed, want.Error, got.Error)
					}
					got.Error, want.Error = nil, nil
					if a, b := fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", got); a != b {
						t.Fatalf("seed %d: the first answer was %s, the next %s", seed, a, b)
					}
				case got.Duplicate:
					t.Fatalf("seed %d: a new request was answered as an old one: %+v", seed, got)
				default:
					as[i].first = got
				}
			}
		}
		for range 120 {
			var as []asked
			for range 1 + rng.IntN(4) {
				clock++
				w := &Write{Partition: placement.PartitionID(1 + rng.IntN(3)), Epoch: 1, Collection: 5, Item: wire.WriteItem{
					// Times are about the clock: some are ahead, some long past.
					RequestID: request(clock-uint64(rng.IntN(40))+uint64(rng.IntN(10)), rng.Uint64()),
					Op:        []wire.WriteOp{wire.OpPut, wire.OpInsert, wire.OpDelete, wire.OpUpsert}[rng.IntN(4)], ID: fmt.Sprint(rng.IntN(5)),
				}}
				switch w.Item.Op {
				case wire.OpPut, wire.OpInsert:
					w.Item.Body = body(t, `{"n":1}`)
				case wire.OpUpsert:
					w.Item.Body = body(t, `{"$inc":{"n":1}}`)
					if w.Item.ReturnDoc = rng.IntN(2) == 0; rng.IntN(4) == 0 {
						w.Item.Body = big
					}
				}
				as = append(as, asked{c: Command{Time: hlc.Timestamp(clock), Write: w}})
			}
			ask(false, as...)
			for _, a := range as {
				if a.c.Write.Item.RequestID.Time >= horizon {
					all = append(all, a)
				}
			}
			switch rng.IntN(12) {
			case 0:
				r.shut()
				r.open()
			case 1:
				to := newReplica(t, nil)
				copyTo(t, r, to)
				r = to
			case 2:
				index++
				r.mustApply(mustEntry(t, index, Command{Mark: &Mark{To: 9}}))
			case 3:
				horizon = max(horizon, clock-uint64(rng.IntN(200)))
				index++
				r.mustApply(mustEntry(t, index, Command{Horizon: &Horizon{RequestIDs: hlc.Timestamp(horizon)}}))
			}
			if len(all) > 0 && rng.IntN(3) == 0 {
				ask(true, all[rng.IntN(len(all))])
			}
			kept := 0
			for _, a := range all {
				if a.c.Write.Item.RequestID.Time >= horizon {
					kept++
				}
			}
			if n, err := r.Remembered(); err != nil || n != kept {
				t.Fatalf("seed %d, entry %d: %d answers are remembered, want %d (%v)", seed, index, n, kept, err)
			}
		}
		for i := range all {
			ask(true, all[i])
		}
		if f := r.look(index+1, 0); f.FaultsFound != 0 {
			t.Fatalf("seed %d: %+v", seed, f.Faults)
		}
		r.verify()
	}
}

// TestTailWithoutARow: a row of the tail that is lost is not passed over.
func TestTailWithoutARow(t *testing.T) {
	r := newReplica(t, nil)
	r.mustApply(mustEntry(t, 1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{1}}}))
	for n := uint64(2); n < 6; n++ { // seals at 7 at the earliest
		r.mustApply(mustEntry(t, n, Command{Ceiling: &Ceiling{To: hlc.Timestamp(n)}}))
	}
	b := r.engine.NewBatch(0)
	if err := errors.Join(b.Delete(mvcc.AppendTailKey(nil, testGroup, 3)), b.Commit(0), b.Close()); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Options{Group: testGroup, Engine: r.engine, TailEntries: testTail})
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "the tail row of entry 4 follows 3, and the one before it is of 2") {
		t.Error(err)
	}
}

// TestTailRing goes around the ring as a node does, with indexes left out.
func TestTailRing(t *testing.T) {
	r := newReplica(t, nil)
	m := r.openWhole()
	apply := func(index uint64, cs ...Command) {
		if _, err := m.Apply([]Entry{mustEntry(t, index, cs...)}); err != nil {
			t.Fatal(err)
		}
	}
	apply(1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{1}}})
	rng := rand.New(rand.NewPCG(1, 12))
	index, most := uint64(1), 0
	for n := uint64(0); n < 3000; n++ {
		if index++; rng.IntN(500) == 0 {
			index += uint64(rng.IntN(2500))
		}
		apply(index, Command{Time: hlc.Timestamp(n), Write: &Write{Partition: 1, Epoch: 1, Collection: 5, Item: wire.WriteItem{
			RequestID: request(100+n, n), Op: wire.OpPut, ID: fmt.Sprint(n), Body: []byte{0x80},
		}}})
		most = max(most, m.tail.count)
		if rng.IntN(100) == 0 {
			m = r.openWhole()
		}
		if rng.IntN(100) == 0 {
			if kept, err := m.Remembered(); err != nil || kept != int(n)+1 || m.Stats().Documents != n+1 {
				t.Fatalf("after %d writes %d answers and %d documents are there (%v)", n+1, kept, m.Stats().Documents, err)
			}
		}
	}
	if most < tailEntries/2 || most >= tailEntries {
		t.Errorf("the longest tail had %d answers", most)
	}
}

// TestTransactionsSurvive stops a machine after every entry and opens it again,
// or a copy of it, while transactions are staged, prepared, confirmed, resolved,
// aborted and forgotten between two seals and over them: what it has in memory,
// stores and answers is what one that never stops has.
func TestTransactionsSurvive(t *testing.T) {
	met := map[string]int{}
	for seed := range uint64(12) {
		w := newWorkload(t, seed)
		w.big = seed%3 == 2
		lead, r := newReplica(t, nil), newReplica(t, nil)
		for range 250 {
			e := w.entry(lead)
			if w.index > 1 && w.rng.IntN(4) > 0 {
				commands := make([]Command, 1+w.rng.IntN(4))
				for i := range commands {
					commands[i] = w.txn(lead)
				}
				// Most come to their end soon.
				for _, u := range lead.Unfinished(hlc.Max) {
					if w.rng.IntN(3) == 0 {
						commands = append(commands, Command{Time: w.now, Txn: &Txn{ID: u.ID, Partition: u.Home, Epoch: 1, Forget: &Forget{}}})
					}
				}
				for _, h := range lead.Holders() {
					x := &Txn{ID: h.ID, Partition: h.Partition, Epoch: 1}
					d, err := lead.Decision(h.Home, 1, h.ID)
					switch {
					case err != nil || w.rng.IntN(5) > 0:
						continue
					case d.Decided() && h.Home != h.Partition:
						x.Resolve = &Resolve{Commit: d.State == txn.Committed, At: d.At}
					default:
						x.Partition, x.Reject = h.Home, &Reject{}
					}
					commands = append(commands, Command{Time: w.now, Txn: x})
				}
				e = mustEntry(t, w.index, commands...)
			}
			want, got := lead.mustApply(e)[0], r.mustApply(e)[0]
			if a, b := fmt.Sprint(printable(want)), fmt.Sprint(printable(got)); a != b {
				t.Fatalf("seed %d, entry %d: answered\n%s\nand by a machine that stops\n%s", seed, w.index, a, b)
			}
			if what := w.rng.IntN(20); what < 2 {
				r = r.interrupted(what)
			} else {
				m, err := Open(Options{Group: testGroup, Engine: r.engine, TailEntries: testTail})
				if err != nil {
					t.Fatalf("seed %d, entry %d: %v", seed, w.index, err)
				}
				r.Machine = m
			}
			if a, b := lead.remembers(), r.remembers(); a != b {
				t.Fatalf("seed %d, entry %d: memory is %s", seed, w.index, diff(a, b))
			}
			if a, b := lead.toldReaders(), r.toldReaders(); a != b {
				t.Fatalf("seed %d, entry %d: readers are told: %s", seed, w.index, diff(a, b))
			}
			r.countRecords(met)
		}
		lead.verify()
		r.verify()
		if a, b := lead.rows(), r.rows(); a != b {
			t.Fatalf("seed %d: %s", seed, diff(a, b))
		}
		r.shut()
		r.open()
		if f := r.look(w.index+1, 0); f.FaultsFound != 0 {
			t.Fatalf("seed %d: %+v", seed, f.Faults)
		}
		r.verify()
	}
	t.Logf("met after entries: %v", met)
	for _, what := range []string{"1 in the tail", "2 in the tail", "1 in a row", "2 in a row", "1 long", "1 deleted in the tail", "2 deleted in the tail"} {
		if met[what] < 20 {
			t.Errorf("%d times there was a record %s", met[what], what)
		}
	}
}

// toldReaders is what readers are told of transactions.
func (m *Machine) toldReaders() string {
	var sb strings.Builder
	for _, h := range m.Holders() {
		fmt.Fprintf(&sb, "%+v\n", h)
	}
	for _, u := range m.Unfinished(hlc.Max) {
		fmt.Fprintf(&sb, "%s %d %+v\n", u.ID, u.Home, *u.Record)
	}
	return sb.String()
}

// countRecords counts where the records of transactions are, and looks that
// each is in one place.
func (r *replica) countRecords(met map[string]int) {
	r.t.Helper()
	rd, err := r.engine.NewReader(testGroup, false)
	if err != nil {
		r.t.Fatal(err)
	}
	rows := 0
	start, end := mvcc.KindSpan(testGroup, mvcc.KindTxn)
	err = rd.Each(start, end, func(key, value []byte) error {
		p, role, time, random, err := mvcc.DecodeTxnKey(key)
		if err != nil || role > mvcc.RoleCommitted {
			return err
		}
		rows++
		k := txnRow{txnKey{p, txn.ID{Time: time, Random: random}}, role}
		if _, young := r.tail.records[k]; young || !r.held.has(k) {
			return fmt.Errorf("the record of %s has a row: in the tail %v, in memory %v", k.id, young, r.held.has(k))
		}
		if len(value) > maxTailRecord {
			met[fmt.Sprintf("%d long", role)]++
		}
		met[fmt.Sprintf("%d in a row", role)]++
		return nil
	})
	_, tails, readErr := readTail(rd, testGroup)
	for i := range tails {
		readErr = errors.Join(readErr, tails[i].each(func(countKey, counts) {}, func(requestKey, []byte) error { return nil }, func(k txnRow, record []byte) error {
			if record == nil {
				met[fmt.Sprintf("%d deleted in the tail", k.role)]++
			} else {
				met[fmt.Sprintf("%d in the tail", k.role)]++
			}
			return nil
		}))
	}
	if err = errors.Join(err, readErr, rd.Close()); err != nil {
		r.t.Fatal(err)
	}
	if all := len(r.held.prepared) + len(r.held.committed); all != rows+len(r.tail.records) {
		r.t.Fatalf("%d records in rows and %d in the tail, %d in memory", rows, len(r.tail.records), all)
	}
}

// TestShortTransactionHasNoRow: what was begun and finished between two seals
// never had a row of its own.
func TestShortTransactionHasNoRow(t *testing.T) {
	r := newTxnRig(t)
	kinds := func(role mvcc.Role) (n int) {
		for p := range placement.PartitionID(3) {
			start, end := mvcc.TxnSpan(testGroup, p, role)
			rd, err := r.engine.NewReader(testGroup, false)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(rd.Each(start, end, func(_, _ []byte) error { n++; return nil }), rd.Close()); err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	x := prepare(1, 0, writes(t, "a", `{"n":1}`))
	x.Prepare.Participants = []placement.PartitionID{1}
	expect(t, "stage", r.step(100, x), txn.Prepared, 100)
	expect(t, "prepare", r.step(101, prepare(1, 1, writes(t, "b", `{"n":1}`))), txn.Prepared, 101)
	expect(t, "confirm", r.step(102, Txn{ID: x.ID, Partition: 0, Confirm: &Confirm{At: 101}}), txn.Committed, 101)
	if n, c := kinds(mvcc.RolePrepared), kinds(mvcc.RoleCommitted); n != 0 || c != 0 {
		t.Fatalf("%d rows of prepared and %d of committed before a seal", n, c)
	}
	r.do(103, Command{Mark: &Mark{To: 1}})
	if n, c := kinds(mvcc.RolePrepared), kinds(mvcc.RoleCommitted); n != 1 || c != 1 {
		t.Fatalf("%d rows of prepared and %d of committed after a seal, want 1 and 1", n, c)
	}
	expect(t, "resolve", r.step(104, Txn{ID: x.ID, Partition: 1, Resolve: &Resolve{Commit: true, At: 101}}), txn.Done, 0)
	expect(t, "forget", r.step(105, Txn{ID: x.ID, Partition: 0, Forget: &Forget{}}), txn.Committed, 101)
	if n, c := kinds(mvcc.RolePrepared), kinds(mvcc.RoleCommitted); n != 0 || c != 0 {
		t.Fatalf("%d rows of prepared and %d of committed when it is over", n, c)
	}
}

// TestTailRecordBytes: large records make an entry seal, the same one in a
// machine that was opened in between.
func TestTailRecordBytes(t *testing.T) {
	r := newReplica(t, nil)
	m := r.openWhole()
	apply := func(index uint64, cs ...Command) {
		if _, err := m.Apply([]Entry{mustEntry(t, index, cs...)}); err != nil {
			t.Fatal(err)
		}
	}
	apply(1, Command{Own: &Own{Epoch: 1, Partitions: []placement.PartitionID{0}}})
	text := fmt.Sprintf(`{"text":%q}`, strings.Repeat("x", maxTailRecord-120))
	var sealed []uint64
	n, size, index := uint64(0), 0, uint64(1)
	for len(sealed) < 2 && index < 200 {
		index++
		var cs []Command
		for range 256 {
			n++
			x := prepare(n, 0, writes(t, fmt.Sprint(n), text))
			x.Epoch = 1
			cs = append(cs, Command{Time: hlc.Timestamp(n), Txn: &x})
		}
		apply(index, cs...)
		if m.meta.sealed == index {
			sealed = append(sealed, index)
		}
		if size = max(size, m.held.bytes); index == 9 {
			m = r.openWhole()
		}
	}
	// A record's head counts too.
	want := uint64(1 + (tailRecordBytes+256*(maxTailRecord+tailRecordHead)-1)/(256*(maxTailRecord+tailRecordHead)))
	if len(sealed) != 2 || sealed[0] < want || sealed[0] > want+3 || sealed[1] != 2*sealed[0]-1 {
		t.Errorf("entries %v sealed, want one from %d to %d, and one as far after it (%d bytes are prepared)", sealed, want, want+3, size)
	}
}

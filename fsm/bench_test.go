package fsm

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm/mvcc"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

const benchPartitions = 34

// benchEngine is an engine on a real directory, with the defaults of a node.
func benchEngine(b *testing.B) *mvcc.Engine { return benchEngineWith(b, 0) }

// benchEngineWith is one with so much memory of newest versions.
func benchEngineWith(b *testing.B, newestBytes int64) *mvcc.Engine {
	b.Helper()
	e, err := mvcc.OpenEngine(b.TempDir(), mvcc.EngineOptions{NewestBytes: newestBytes})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := e.Close(); err != nil {
			b.Error(err)
		}
	})
	return e
}

// benchMachine is a machine on a real directory, with the defaults of a node.
func benchMachine(b *testing.B) *Machine {
	b.Helper()
	e := benchEngine(b)
	m, err := Open(Options{Group: 1, Engine: e})
	if err != nil {
		b.Fatal(err)
	}
	own := &Own{Epoch: 1}
	for p := range benchPartitions {
		own.Partitions = append(own.Partitions, placement.PartitionID(p))
	}
	benchApply(b, m, mustEntry(b, 1, Command{Own: own}))
	return m
}

func benchApply(b *testing.B, m *Machine, e ...Entry) {
	b.Helper()
	if _, err := m.Apply(e); err != nil {
		b.Fatal(err)
	}
}

// benchDoc is a document of about 1 KiB.
func benchDoc(b *testing.B, rng *rand.Rand) doc.Raw {
	text := make([]byte, 0, 1000)
	for len(text) < 940 {
		text = fmt.Appendf(text, "%x ", rng.Uint32())
	}
	return body(b, fmt.Sprintf(`{"name":"n%d","count":%d,"text":%q}`, rng.IntN(1e6), rng.IntN(1e6), text))
}

type benchWriter struct {
	b     *testing.B
	m     *Machine
	rng   *rand.Rand
	docs  []doc.Raw
	index uint64
	reqs  uint64
	now   hlc.Timestamp
}

func newBenchWriter(b *testing.B, m *Machine) *benchWriter {
	w := &benchWriter{b: b, m: m, rng: rand.New(rand.NewPCG(1, 2)), index: m.Applied(), now: m.Clock()}
	for range 256 {
		w.docs = append(w.docs, benchDoc(b, w.rng))
	}
	return w
}

func benchID(n int) string { return fmt.Sprintf("user%08d", n) }

func benchKey(n int) ReadKey {
	id := benchID(n)
	return ReadKey{Partition: placement.PartitionID(wire.Partition("users", "", id, benchPartitions)), Epoch: 1, Collection: 1, ID: id}
}

// batch is one entry with n commands; id picks the documents.
func (w *benchWriter) batch(n int, op wire.WriteOp, id func() int) Entry {
	commands := make([]Command, n)
	for i := range commands {
		w.reqs++
		w.now++
		k := benchKey(id())
		rid := wire.RequestID{Time: 1e6 + w.reqs}
		binary.LittleEndian.PutUint64(rid.Random[:], w.rng.Uint64())
		binary.LittleEndian.PutUint64(rid.Random[8:], w.rng.Uint64())
		commands[i] = Command{Time: w.now, Write: &Write{Partition: k.Partition, Epoch: 1, Collection: 1, Item: wire.WriteItem{
			RequestID: rid, Op: op, ID: k.ID, Body: w.docs[w.rng.IntN(len(w.docs))],
		}}}
	}
	w.index++
	data, err := AppendEntry(nil, commands)
	if err != nil {
		w.b.Fatal(err)
	}
	return Entry{Index: w.index, Term: 1, Data: data}
}

// load puts n documents.
func (w *benchWriter) load(n int) {
	next := 0
	for next < n {
		benchApply(w.b, w.m, w.batch(min(256, n-next), wire.OpPut, func() int { next++; return next - 1 }))
	}
}

// BenchmarkApply is one entry of 64 puts of 1 KiB per call, as a busy group
// sees them.
func BenchmarkApply(b *testing.B) {
	const batch = 64
	run := func(b *testing.B, m *Machine, w *benchWriter, id func() int) {
		b.ReportAllocs()
		done := 0
		for done < b.N {
			b.StopTimer()
			entries := make([]Entry, 0, 64)
			for done < b.N && len(entries) < cap(entries) {
				entries = append(entries, w.batch(batch, wire.OpPut, id))
				done++
			}
			b.StartTimer()
			for i := range entries {
				benchApply(b, m, entries[i])
			}
		}
		b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "docs/s")
	}
	b.Run("new", func(b *testing.B) {
		m := benchMachine(b)
		w := newBenchWriter(b, m)
		next := 0
		run(b, m, w, func() int { next++; return next })
	})
	for _, docs := range []int{12_500, 100_000} { // all heads in memory; most not
		b.Run(fmt.Sprintf("replace/of=%d", docs), func(b *testing.B) {
			m := benchMachine(b)
			w := newBenchWriter(b, m)
			w.load(docs)
			b.ResetTimer()
			run(b, m, w, func() int { return w.rng.IntN(docs) })
		})
	}
}

// BenchmarkUpdates is what a node of a small cluster sees under many writers:
// eight groups take turns, in entries of a few commands each, on documents of
// 1 KiB. It says what the processor had to do for one command: in
// Apply itself, and with the flushes and compactions that follow from it.
func BenchmarkUpdates(b *testing.B) {
	for _, docs := range []int{10_000, 100_000} {
		b.Run(fmt.Sprintf("of=%d", docs), func(b *testing.B) { benchUpdates(b, docs) })
	}
}

func benchUpdates(b *testing.B, docs int) {
	const groups, chunk = 8, 1024
	e := benchEngine(b)
	var ws [groups]*benchWriter
	for g := range groups {
		m, err := Open(Options{Group: placement.GroupID(g + 1), Engine: e})
		if err != nil {
			b.Fatal(err)
		}
		ws[g] = newBenchWriter(b, m)
		own := &Own{Epoch: 1}
		for p := range benchPartitions {
			own.Partitions = append(own.Partitions, placement.PartitionID(p))
		}
		ws[g].index++
		benchApply(b, m, mustEntry(b, ws[g].index, Command{Own: own}))
		ws[g].load(docs / groups)
	}
	sizes := [...]int{1, 2, 2, 2, 3, 3, 3, 4, 4} // 2.67 on average
	rng := rand.New(rand.NewPCG(3, 4))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.ReportAllocs()
	b.ResetTimer()
	var inApply, inAll time.Duration
	entries := make([]Entry, chunk)
	done := 0
	for done < b.N {
		b.StopTimer()
		for i := range entries {
			entries[i] = ws[i%groups].batch(sizes[rng.IntN(len(sizes))], wire.OpPut, func() int { return rng.IntN(docs / groups) })
		}
		b.StartTimer()
		thread, all := cpu(rusageThread), cpu(syscall.RUSAGE_SELF)
		for i := range entries {
			benchApply(b, ws[i%groups].m, entries[i])
		}
		inApply, inAll = inApply+cpu(rusageThread)-thread, inAll+cpu(syscall.RUSAGE_SELF)-all
		done += chunk
	}
	commands := float64(done) * 24 / 9
	b.ReportMetric(float64(inApply.Nanoseconds())/commands, "apply-ns/cmd")
	b.ReportMetric(float64(inAll.Nanoseconds())/commands, "cpu-ns/cmd")
}

// BenchmarkTransfers is what two groups see of transfers between accounts that
// lie in both: in each entry some begin (staged at home, prepared at the
// participant), those of the entry before are confirmed and resolved, and those
// before that forgotten. It says how many rows a transfer sets and deletes in
// the engine, and what the processor had to do for it: in Apply itself, and with
// the flushes and compactions that follow from it. With reads, both accounts are
// read before the transfer begins, and that is said too.
func BenchmarkTransfers(b *testing.B) {
	for _, size := range []int{40, 1000} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) { benchTransfers(b, size, false, 0) })
		b.Run(fmt.Sprintf("bytes=%d/reads", size), func(b *testing.B) { benchTransfers(b, size, true, 0) })
		b.Run(fmt.Sprintf("bytes=%d/reads/no-memory", size), func(b *testing.B) { benchTransfers(b, size, true, -1) })
	}
}

type benchTransfer struct {
	id   txn.ID
	of   [2]int // accounts, at home and at the participant
	most hlc.Timestamp
}

func benchTransfers(b *testing.B, size int, reads bool, newestBytes int64) {
	const accounts, each = 10_000, 4
	e := benchEngineWith(b, newestBytes)
	var ms [2]*Machine
	var at [2][accounts]hlc.Timestamp // of the newest versions
	var index uint64
	now := hlc.Timestamp(1000)
	home := func(n int) placement.PartitionID { return placement.PartitionID(n % benchPartitions) }
	var texts []doc.Raw // no two alike, lest they are compressed
	rng := rand.New(rand.NewPCG(1, 2))
	for len(texts) < 256 {
		var note strings.Builder
		for note.Len() < size-20 {
			note.WriteByte("0123456789abcdef"[rng.IntN(16)])
		}
		texts = append(texts, body(b, fmt.Sprintf(`{"balance":%d,"note":%q}`, rng.IntN(1000), note.String())))
	}
	own := &Own{Epoch: 1}
	for p := range benchPartitions {
		own.Partitions = append(own.Partitions, placement.PartitionID(p))
	}
	for g := range ms {
		m, err := Open(Options{Group: placement.GroupID(g + 1), Engine: e})
		if err != nil {
			b.Fatal(err)
		}
		ms[g], index = m, 1
		benchApply(b, m, mustEntry(b, 1, Command{Own: own}))
		for n := 0; n < accounts; n += 250 {
			cs := make([]Command, 250)
			for i := range cs {
				cs[i] = Command{Time: now, Write: &Write{Partition: home(n + i), Epoch: 1, Collection: 1, Item: wire.WriteItem{
					RequestID: request(uint64(now), uint64(n+i)), Op: wire.OpPut, ID: benchID(n + i), Body: texts[(n+i)%256],
				}}}
			}
			index++
			res, err := m.Apply([]Entry{mustEntry(b, index, cs...)})
			if err != nil {
				b.Fatal(err)
			}
			for i := range cs {
				at[g][n+i] = hlc.Timestamp(res[0][i].Wire.Time)
			}
		}
	}
	next := 0
	part := func(g, n int) txn.Part {
		return txn.Part{
			Reads:  []txn.Read{{Collection: 1, ID: benchID(n), At: at[g][n]}},
			Writes: []txn.Write{{Collection: 1, ID: benchID(n), Ops: []txn.Op{{Op: wire.OpPut, Body: texts[(n+next)%256]}}}},
		}
	}
	look := func(m *Machine, n int, at hlc.Timestamp) {
		key := [1]ReadKey{{Partition: home(n), Epoch: 1, Collection: 1, ID: benchID(n)}}
		if err := m.Visit(key[:], At{Time: at}, false, func(_ int, _ wire.Document, refusal error) {
			if refusal != nil {
				b.Error(refusal)
			}
		}); err != nil {
			b.Error(err)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var inApply, inReads time.Duration
	var young, old [2][]benchTransfer // by group of home: begun, confirmed
	done := 0
	before, err := e.Metrics()
	if err != nil {
		b.Fatal(err)
	}
	thread, all := cpu(rusageThread), cpu(syscall.RUSAGE_SELF)
	b.ResetTimer()
	for done < b.N {
		var begun [2][]benchTransfer
		var cs [2][]Command
		now += 100
		for g := range ms {
			for range each {
				n := next % accounts
				x := benchTransfer{id: txn.ID{Time: uint64(now)}, of: [2]int{n, (n + 1) % accounts}}
				binary.LittleEndian.PutUint64(x.id.Random[:], rng.Uint64())
				binary.LittleEndian.PutUint64(x.id.Random[8:], rng.Uint64())
				next += 2
				begun[g] = append(begun[g], x)
				p, q := home(x.of[0]), home(x.of[1])
				cs[g] = append(cs[g], Command{Time: now, Txn: &Txn{ID: x.id, Partition: p, Epoch: 1, Prepare: &Prepare{
					Participants: []placement.PartitionID{q}, Home: p, Deadline: now + 500, Born: now, Part: part(g, x.of[0])}}})
				cs[1-g] = append(cs[1-g], Command{Time: now, Txn: &Txn{ID: x.id, Partition: q, Epoch: 1, Prepare: &Prepare{
					Home: p, Deadline: now + 500, Born: now, Part: part(1-g, x.of[1])}}})
			}
		}
		prepares := [2]int{len(cs[0]), len(cs[1])}
		for g := range ms {
			for _, x := range young[g] {
				cs[g] = append(cs[g], Command{Time: now, Txn: &Txn{ID: x.id, Partition: home(x.of[0]), Epoch: 1, Confirm: &Confirm{At: x.most}}})
				cs[1-g] = append(cs[1-g], Command{Time: now, Txn: &Txn{ID: x.id, Partition: home(x.of[1]), Epoch: 1, Resolve: &Resolve{Commit: true, At: x.most}}})
				at[g][x.of[0]], at[1-g][x.of[1]] = x.most, x.most
			}
			for _, x := range old[g] {
				cs[g] = append(cs[g], Command{Time: now, Txn: &Txn{ID: x.id, Partition: home(x.of[0]), Epoch: 1, Forget: &Forget{}}})
			}
		}
		if reads {
			start := cpu(rusageThread)
			for g := range ms {
				for _, x := range begun[g] {
					look(ms[g], x.of[0], now-1)
					look(ms[1-g], x.of[1], now-1)
				}
			}
			inReads += cpu(rusageThread) - start
		}
		index++
		for g := range ms {
			entry := mustEntry(b, index, cs[g]...)
			start := cpu(rusageThread)
			res, err := ms[g].Apply([]Entry{entry})
			inApply += cpu(rusageThread) - start
			if err != nil {
				b.Fatal(err)
			}
			for i, r := range res[0] {
				if r.Txn == nil || i < prepares[g] && r.Txn.State != txn.Prepared {
					b.Fatalf("%+v was answered with %+v", cs[g][i].Txn, r)
				}
				if i >= prepares[g] {
					continue
				}
				for h := range begun {
					for j := range begun[h] {
						if x := &begun[h][j]; x.id == cs[g][i].Txn.ID {
							x.most = max(x.most, r.Txn.At)
						}
					}
				}
			}
		}
		young, old = begun, young
		done += 2 * each
	}
	b.StopTimer()
	// What the benchmark itself has done is left out.
	background := cpu(syscall.RUSAGE_SELF) - all - (cpu(rusageThread) - thread)
	after, err := e.Metrics()
	if err != nil {
		b.Fatal(err)
	}
	transfers := float64(done)
	b.ReportMetric(float64(after.Rows-before.Rows)/transfers, "rows/transfer")
	b.ReportMetric(float64(inApply.Nanoseconds())/transfers, "apply-ns/transfer")
	if reads {
		b.ReportMetric(float64(inReads.Nanoseconds())/transfers/2, "read-ns/get")
	}
	b.ReportMetric(float64((inApply+background).Nanoseconds())/transfers, "cpu-ns/transfer")
	b.ReportMetric(float64(after.FlushedBytes+after.CompactedBytes-before.FlushedBytes-before.CompactedBytes)/transfers, "disk-B/transfer")
}

const rusageThread = 1 // of Linux

// cpu is the processor time used so far.
func cpu(who int) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkGet is the newest version of one of 100,000 documents of 1 KiB.
func BenchmarkGet(b *testing.B) {
	m := benchMachine(b)
	w := newBenchWriter(b, m)
	w.load(100_000)
	if _, err := m.Flush(); err != nil {
		b.Fatal(err)
	}
	keys := make([]ReadKey, 1<<16)
	for i := range keys {
		keys[i] = benchKey(w.rng.IntN(100_000))
	}
	for _, hot := range []int{1000, 1 << 16} {
		b.Run(fmt.Sprintf("of=%d", hot), func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				if _, err := m.Get(keys[i%hot], At{}, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("absent", func(b *testing.B) {
		k := keys[0]
		for i := range b.N {
			k.ID = keys[i%len(keys)].ID + "x"
			if _, err := m.Get(k, At{}, false); err == nil {
				b.Fatal("found")
			}
		}
	})
}

// BenchmarkScan reads pages merged over 34 partitions.
func BenchmarkScan(b *testing.B) {
	m := benchMachine(b)
	newBenchWriter(b, m).load(100_000)
	for _, limit := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("limit=%d", limit), func(b *testing.B) {
			after, docs := "", 0
			for range b.N {
				page, more, _, err := m.Scan(ScanSpec{Collection: 1, After: after, Limit: limit})
				if err != nil {
					b.Fatal(err)
				}
				docs += len(page)
				after = ""
				if more {
					after = page[len(page)-1].ID
				}
			}
			b.ReportMetric(float64(docs)/b.Elapsed().Seconds(), "docs/s")
		})
	}
}

package history

import (
	"cmp"
	"fmt"
	"slices"
)

// orders is what a history says about the versions of every document: who made
// which, in which order, and who read which.
type orders struct {
	txns []Transaction
	keys []*order
	byID map[string]*order
	// there says that a transaction took effect: it was acknowledged, or
	// something of it was seen.
	there []bool
	f     *found
}

// order is one document's.
type order struct {
	index int32
	key   string
	list  bool // a list of appended elements, not numbered versions

	// versions are those that are known, ascending. A list's version n is its
	// first n elements.
	uses     []write // every part about the document
	versions []int64
	writer   map[int64]int // by version: the transaction that made it
	value    map[int64]string
	readers  map[int64][]int // by version
	byValue  map[string][]write
	deletes  bool  // some write removes the document
	unseen   []int // of a list: acknowledged appends that nobody ever read
	longest  []string
	readsAt  map[int][]int // of a list: readers by length
}

// write is a part of a transaction, most often one that changes a document.
type write struct{ txn, part int }

func newOrders(txns []Transaction, f *found) *orders {
	o := &orders{txns: txns, byID: map[string]*order{}, there: make([]bool, len(txns)), f: f}
	for i := range txns {
		o.there[i] = txns[i].Outcome == Done
		for j := range txns[i].Parts {
			p := &txns[i].Parts[j]
			k := o.of(p.Input.Key)
			k.uses = append(k.uses, write{i, j})
			if p.Input.Verb == Append || p.Output.List != nil {
				k.list = true
			}
			if p.Input.Writes() {
				k.byValue[p.Input.Value] = append(k.byValue[p.Input.Value], write{i, j})
				k.deletes = k.deletes || p.Input.Verb == Delete
			}
		}
	}
	for i := range txns {
		o.internal(i)
	}
	for _, k := range o.keys {
		if k.list {
			o.listOrder(k)
		} else {
			o.numbered(k)
		}
	}
	return o
}

func (o *orders) of(key string) *order {
	k := o.byID[key]
	if k == nil {
		k = &order{
			index: int32(len(o.keys)), key: key,
			writer: map[int64]int{}, value: map[int64]string{}, readers: map[int64][]int{},
			byValue: map[string][]write{}, readsAt: map[int][]int{},
		}
		o.byID[key] = k
		o.keys = append(o.keys, k)
	}
	return k
}

// parts calls fn with every part of the transactions about a document.
func (o *orders) parts(k *order, fn func(txn, part int, t *Transaction, p *Part)) {
	for _, u := range k.uses {
		fn(u.txn, u.part, &o.txns[u.txn], &o.txns[u.txn].Parts[u.part])
	}
}

// done says that the part was told what it read or made.
func done(t *Transaction, p *Part) bool { return t.Outcome == Done && p.Output.Outcome == Done }

// internal: a transaction sees its own writes.
func (o *orders) internal(i int) {
	t := &o.txns[i]
	if t.Outcome != Done || len(t.Parts) < 2 {
		return
	}
	wrote := map[string]*Part{}
	for j := range t.Parts {
		p := &t.Parts[j]
		mine := wrote[p.Input.Key]
		switch {
		case p.Input.Writes() && p.Output.Outcome == Done:
			wrote[p.Input.Key] = p
		case mine == nil || p.Input.Verb != Get:
		case p.Output.Outcome == Done && p.Output.List != nil && (len(p.Output.List) == 0 || p.Output.List[len(p.Output.List)-1] != mine.Input.Value),
			p.Output.Outcome == Done && p.Output.Document && p.Output.List == nil && p.Output.Value != mine.Input.Value,
			p.Output.Outcome == Missing && mine.Input.Verb != Delete:
			o.f.add(Anomaly{Name: "internal", Transactions: []Transaction{*t},
				Text: fmt.Sprintf("a transaction does not see its own write of %s:\n  %s", p.Input.Key, t)})
		}
	}
}

// last says that the write is the last of its transaction on the document.
func (o *orders) last(w write, key string) bool {
	parts := o.txns[w.txn].Parts
	for j := w.part + 1; j < len(parts); j++ {
		if parts[j].Input.Key == key && parts[j].Input.Writes() {
			return false
		}
	}
	return true
}

// ownBefore says that the transaction wrote the document before that part, so
// that what it read there is its own affair.
func ownBefore(t *Transaction, part int) bool {
	for j := range part {
		if t.Parts[j].Input.Writes() && t.Parts[j].Input.Key == t.Parts[part].Input.Key {
			return true
		}
	}
	return false
}

// source finds the write of a value that was seen, and judges it: nobody's
// (phantom), a refused one's (G1a) or one that its own transaction replaced
// (G1b).
func (o *orders) source(k *order, value string, reader *Transaction, newest bool) (write, bool) {
	writes := k.byValue[value]
	if len(writes) == 0 {
		o.f.add(Anomaly{Name: "phantom", Transactions: []Transaction{*reader},
			Text: fmt.Sprintf("%s: nobody wrote %q, which was read:\n  %s", k.key, value, reader)})
		return write{}, false
	}
	for _, w := range writes {
		if o.txns[w.txn].Outcome != Refused {
			o.there[w.txn] = true
			if newest && !o.last(w, k.key) && &o.txns[w.txn] != reader {
				o.f.add(Anomaly{Name: "G1b", Transactions: []Transaction{o.txns[w.txn], *reader},
					Text: fmt.Sprintf("intermediate read of %s: %q was replaced by the transaction that wrote it, and was read:\n  %s\n  %s",
						k.key, value, o.txns[w.txn], reader)})
			}
			return w, true
		}
	}
	o.f.add(Anomaly{Name: "G1a", Transactions: []Transaction{o.txns[writes[0].txn], *reader},
		Text: fmt.Sprintf("aborted read of %s: %q was refused, and was read:\n  %s\n  %s", k.key, value, o.txns[writes[0].txn], reader)})
	return write{}, false
}

// listOrder: every list read is the beginning of the longest one, which is the
// order of the elements.
func (o *orders) listOrder(k *order) {
	var longest *Transaction
	o.parts(k, func(i, j int, t *Transaction, p *Part) {
		if done(t, p) && p.Output.List != nil && len(p.Output.List) > len(k.longest) {
			k.longest, longest = p.Output.List, t
		}
	})
	seen := map[string]int{}
	for n, e := range k.longest {
		if first, twice := seen[e]; twice {
			o.f.add(Anomaly{Name: "duplicate", Transactions: []Transaction{*longest},
				Text: fmt.Sprintf("%s has %q twice, as elements %d and %d:\n  %s", k.key, e, first+1, n+1, longest)})
			continue
		}
		seen[e] = n
		// Whether an element may end a list is asked of every read, below.
		if w, ok := o.source(k, e, longest, false); ok {
			v := int64(n + 1)
			k.versions = append(k.versions, v)
			k.writer[v], k.value[v] = w.txn, e
		}
	}
	var last *Transaction // the latest to begin, of those that read everything
	o.parts(k, func(i, j int, t *Transaction, p *Part) {
		if done(t, p) && p.Output.List != nil && len(p.Output.List) == len(k.longest) && (last == nil || t.Call > last.Call) {
			last = t
		}
	})
	o.parts(k, func(i, j int, t *Transaction, p *Part) {
		if _, ok := seen[p.Input.Value]; p.Input.Verb == Append && t.Outcome == Done && !ok {
			if last != nil && last.Call > t.Return {
				// It cannot come any more: lists only grow.
				o.f.add(Anomaly{Name: "lost write", Transactions: []Transaction{*t, *last},
					Text: fmt.Sprintf("%s: %q was acknowledged, and a later read of the whole list does not have it:\n  %s\n  %s", k.key, p.Input.Value, t, last)})
			} else {
				k.unseen = append(k.unseen, i)
			}
		}
		if t.Outcome != Done || p.Input.Verb != Get || ownBefore(t, j) {
			return
		}
		switch {
		case p.Output.Outcome == Missing:
			k.readsAt[0] = append(k.readsAt[0], i)
			return
		case p.Output.Outcome != Done || p.Output.List == nil:
			return
		}
		list := p.Output.List
		for n, e := range list {
			if e != k.longest[n] {
				o.f.add(Anomaly{Name: "incompatible order", Transactions: []Transaction{*longest, *t},
					Text: fmt.Sprintf("%s: two reads disagree about element %d (%q and %q):\n  %s\n  %s", k.key, n+1, k.longest[n], e, longest, t)})
				return
			}
		}
		if len(list) > 0 {
			o.source(k, list[len(list)-1], t, true)
		}
		k.readsAt[len(list)] = append(k.readsAt[len(list)], i)
	})
}

// numbered: documents tell their versions.
func (o *orders) numbered(k *order) {
	claim := func(v int64, i int, value string, deleted bool) {
		t := &o.txns[i]
		if other, ok := k.writer[v]; ok && other != i {
			o.f.add(Anomaly{Name: "lost write", Transactions: []Transaction{o.txns[other], *t},
				Text: fmt.Sprintf("%s: two writes are both version %d:\n  %s\n  %s", k.key, v, o.txns[other], t)})
			return
		}
		k.writer[v] = i
		if !deleted {
			k.value[v] = value
		}
		o.there[i] = true
	}
	o.parts(k, func(i, j int, t *Transaction, p *Part) {
		if p.Input.Writes() && done(t, p) && p.Output.Version != 0 {
			claim(int64(p.Output.Version), i, p.Input.Value, p.Input.Verb == Delete)
		}
	})
	o.parts(k, func(i, j int, t *Transaction, p *Part) {
		if t.Outcome != Done || p.Input.Past() || ownBefore(t, j) {
			return
		}
		v := int64(p.Output.Version)
		switch {
		case p.Output.Outcome == Missing && p.Input.Verb == Get && !k.deletes:
			v = 0
		case p.Output.Outcome == Done && p.Input.Verb == Get && v != 0:
		case (p.Output.Outcome == Conflict || p.Output.Outcome == Exists) && v != 0:
		default:
			return
		}
		k.readers[v] = append(k.readers[v], i)
		if v == 0 || !p.Output.Document {
			return
		}
		w, ok := o.source(k, p.Output.Value, t, true)
		if !ok {
			return
		}
		told, known := k.writer[v]
		if known && k.value[v] != p.Output.Value {
			o.f.add(Anomaly{Name: "version changed", Transactions: []Transaction{o.txns[told], *t},
				Text: fmt.Sprintf("%s version %d was written as %q and read as %q:\n  %s\n  %s", k.key, v, k.value[v], p.Output.Value, o.txns[told], t)})
			return
		}
		if !known && o.txns[w.txn].Outcome == Unknown && len(k.byValue[p.Output.Value]) == 1 {
			// It was never acknowledged, and here is what it did.
			claim(v, w.txn, p.Output.Value, false)
		}
	})
	for v := range k.writer {
		k.versions = append(k.versions, v)
	}
	slices.Sort(k.versions)
}

// edges puts the dependencies of all documents into the graph: who replaced
// whose version, who read whose, and who replaced what was read.
func (o *orders) edges(g *graph) {
	for _, k := range o.keys {
		for n := 1; n < len(k.versions); n++ {
			a, b := k.versions[n-1], k.versions[n]
			g.add(k.writer[a], arc{int32(k.writer[b]), WW, k.index, a, b})
		}
		if k.list {
			o.listEdges(k, g)
			continue
		}
		for v, readers := range k.readers {
			// A version whose writer nobody knows lies between two that are known.
			n, exact := slices.BinarySearch(k.versions, v)
			after := n
			if exact {
				after++
			}
			for _, r := range readers {
				if after > 0 {
					before := k.versions[after-1]
					g.add(k.writer[before], arc{int32(r), WR, k.index, before, v})
				}
				if after < len(k.versions) {
					next := k.versions[after]
					g.add(r, arc{int32(k.writer[next]), RW, k.index, v, next})
				}
			}
		}
	}
}

func (o *orders) listEdges(k *order, g *graph) {
	end := int64(len(k.longest))
	for _, u := range k.unseen {
		// Lists only grow: an element that nobody saw is behind all that was seen.
		if n := len(k.versions); n > 0 {
			g.add(k.writer[k.versions[n-1]], arc{int32(u), WW, k.index, end, end + 1})
		}
		for _, r := range k.readsAt[len(k.longest)] {
			g.add(r, arc{int32(u), RW, k.index, end, end + 1})
		}
	}
	for length, readers := range k.readsAt {
		n, exact := slices.BinarySearch(k.versions, int64(length))
		after := n
		if exact {
			after++
		}
		for _, r := range readers {
			if after > 0 {
				g.add(k.writer[k.versions[after-1]], arc{int32(r), WR, k.index, k.versions[after-1], int64(length)})
			}
			if after < len(k.versions) {
				g.add(r, arc{int32(k.writer[k.versions[after]]), RW, k.index, int64(length), k.versions[after]})
			}
		}
	}
}

// timeEdges puts the order in time into the graph. Only transactions that took
// effect count; one without an answer has no end. A chain of barriers is fed by
// all and leads to all.
func (o *orders) timeEdges(g *graph) {
	type moment struct {
		at   int64
		txn  int
		call bool
	}
	var moments []moment
	for i := range o.txns {
		if !o.there[i] {
			continue
		}
		t := &o.txns[i]
		moments = append(moments, moment{int64(t.Call), i, true})
		if t.Outcome == Done {
			moments = append(moments, moment{int64(t.Return), i, false})
		}
	}
	// At one instant calls come first: what ended at that instant was not
	// surely before what began at it.
	slices.SortStableFunc(moments, func(a, b moment) int {
		if c := cmp.Compare(a.at, b.at); c != 0 {
			return c
		}
		switch {
		case a.call == b.call:
			return 0
		case a.call:
			return -1
		}
		return 1
	})
	last := -1 // the barrier
	for _, m := range moments {
		switch {
		case m.call && last >= 0:
			g.add(last, arc{int32(m.txn), RealTime, -1, 0, 0})
		case !m.call:
			b := g.barrier()
			if last >= 0 {
				g.add(last, arc{int32(b), RealTime, -1, 0, 0})
			}
			g.add(m.txn, arc{int32(b), RealTime, -1, 0, 0})
			last = b
		}
	}
}

// processEdges put each client's own order into the graph: what it was
// answered before it asked again, and the order inside of ordered calls.
func (o *orders) processEdges(g *graph) {
	byClient := map[int][]int{}
	for i := range o.txns {
		if o.there[i] {
			byClient[o.txns[i].Client] = append(byClient[o.txns[i].Client], i)
		}
	}
	for _, mine := range byClient {
		slices.SortStableFunc(mine, func(a, b int) int { return cmp.Compare(o.txns[a].Call, o.txns[b].Call) })
		var ended, open []int // ended: those that what begins now comes after directly
		lastSeq := -1
		for _, i := range mine {
			t := &o.txns[i]
			var now, still []int
			for _, j := range open {
				if o.txns[j].Return <= t.Call {
					now = append(now, j)
				} else {
					still = append(still, j)
				}
			}
			open = still
			if len(now) > 0 {
				first := o.txns[now[0]].Call
				ended = append(slices.DeleteFunc(ended, func(j int) bool { return o.txns[j].Return <= first }), now...)
			}
			for _, j := range ended {
				g.add(j, arc{int32(i), Process, -1, 0, 0})
			}
			if t.Outcome == Done {
				open = append(open, i)
			}
			if t.Seq > 0 && lastSeq >= 0 && o.txns[lastSeq].Seq < t.Seq && o.txns[lastSeq].Seq > 0 &&
				(o.txns[lastSeq].Outcome == Unknown || o.txns[lastSeq].Return > t.Call) {
				g.add(lastSeq, arc{int32(i), Process, -1, 0, 0})
			}
			if t.Seq > 0 {
				lastSeq = i
			}
		}
	}
}

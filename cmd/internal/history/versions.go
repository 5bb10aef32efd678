package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
)

// Stored is one version of a document as the database lists it at the end.
type Stored struct {
	Version uint64
	Time    uint64 // the database's timestamp
	Deleted bool
	Value   string
	Count   int64
}

// Versions follows the versions of documents: a version has one body for ever,
// versions never go back in real time, timestamps grow with versions, reads of
// the past agree with what the past is said to be, and so do scans of many
// documents as of one timestamp.
type Versions struct {
	// Stored are the histories read at rest, by document, in any order. Nil:
	// only what clients were told is compared with itself.
	Stored map[string][]Stored
	// Complete says that every version of the documents in Stored is listed:
	// nothing was collected.
	Complete bool
}

// seen is what is known of one version of one document, and who said so.
type seen struct {
	body string // "" if nobody told
	time uint64 // 0 if nobody told
	by   string
}

// Check judges operations on single documents and reads of many documents at
// one timestamp (Transaction.Time).
func (c Versions) Check(ops []Operation, snapshots []Transaction) Verdict {
	var f found
	told := map[string]map[uint64]seen{}
	tell := func(key string, version uint64, s seen) {
		if told[key] == nil {
			told[key] = map[uint64]seen{}
		}
		old, ok := told[key][version]
		switch {
		case ok && old.body != "" && s.body != "" && old.body != s.body:
			f.addf("version changed", "%s version %d is %s and is %s:\n  %s\n  %s", key, version, old.body, s.body, old.by, s.by)
		case ok && old.time != 0 && s.time != 0 && old.time != s.time:
			f.addf("version changed", "%s version %d is of time %d and of time %d:\n  %s\n  %s", key, version, old.time, s.time, old.by, s.by)
		}
		if s.body == "" || old.body != "" {
			s.body = old.body
		}
		if s.time == 0 || old.time != 0 {
			s.time = old.time
		}
		if old.by != "" {
			s.by = old.by
		}
		told[key][version] = s
	}
	for key, versions := range c.Stored {
		for _, v := range versions {
			tell(key, v.Version, seen{body: bodyOf(v.Deleted, v.Value, v.Count), time: v.Time, by: fmt.Sprintf("the history read at the end has version %d", v.Version)})
		}
	}
	versions := 0
	for i := range ops {
		op := &ops[i]
		if op.Output.Outcome != Done || op.Output.Version == 0 {
			continue
		}
		versions++
		s := seen{time: op.Output.Time, by: op.String()}
		switch {
		case op.Input.Verb == Delete:
			s.body = bodyOf(true, "", 0)
		case op.Output.Document && op.Output.List == nil:
			s.body = bodyOf(false, op.Output.Value, op.Output.Count)
		case op.Input.Verb == Put, op.Input.Verb == Insert:
			s.body = bodyOf(false, op.Input.Value, 0)
		}
		if op.Input.AtVersion != 0 && op.Input.Verb == Get && op.Output.Version != op.Input.AtVersion {
			f.addf("wrong version", "asked for version %d, got %d:\n  %s", op.Input.AtVersion, op.Output.Version, op)
		}
		tell(op.Input.Key, op.Output.Version, s)
	}
	for i := range snapshots {
		for _, p := range snapshots[i].Parts {
			if snapshots[i].Outcome == Done && p.Output.Outcome == Done && p.Output.Document && p.Output.List == nil {
				tell(p.Input.Key, p.Output.Version, seen{body: bodyOf(false, p.Output.Value, p.Output.Count), time: p.Output.Time, by: snapshots[i].String()})
			}
		}
	}
	c.monotonic(&f, ops)
	c.clocks(&f, told)
	c.stored(&f, ops)
	c.past(&f, ops, snapshots, told)
	return Verdict{
		Checker: "versions",
		Judged: fmt.Sprintf("%d answers with a version, %d snapshots, %d documents, %d of them compared with their histories",
			versions, len(snapshots), len(told), len(c.Stored)),
		Anomalies: f.ends(),
	}
}

func bodyOf(deleted bool, value string, count int64) string {
	if deleted {
		return "deleted"
	}
	return fmt.Sprintf("%q count=%d", value, count)
}

// monotonic: what begins after a version was told sees that version or a later
// one, and a write makes a later one.
func (c Versions) monotonic(f *found, ops []Operation) {
	byKey := map[string][]*Operation{}
	for i := range ops {
		op := &ops[i]
		if op.Output.Outcome == Done && op.Output.Version != 0 && !op.Input.Past() {
			byKey[op.Input.Key] = append(byKey[op.Input.Key], op)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		called := byKey[key]
		returned := slices.Clone(called)
		slices.SortStableFunc(called, func(a, b *Operation) int { return cmp.Compare(a.Call, b.Call) })
		slices.SortStableFunc(returned, func(a, b *Operation) int { return cmp.Compare(a.Return, b.Return) })
		var last *Operation // of those that returned, the one with the largest version
		next := 0
		for _, op := range called {
			for ; next < len(returned) && returned[next].Return < op.Call; next++ {
				if last == nil || returned[next].Output.Version > last.Output.Version {
					last = returned[next]
				}
			}
			if last == nil {
				continue
			}
			switch {
			case op.Output.Version < last.Output.Version && !op.Input.Writes():
				f.add(Anomaly{Name: "stale read", Operations: []Operation{*last, *op},
					Text: fmt.Sprintf("%s went back from version %d to %d:\n  %s\n  %s", key, last.Output.Version, op.Output.Version, last, op)})
			case op.Output.Version <= last.Output.Version && op.Input.Writes():
				f.add(Anomaly{Name: "lost update", Operations: []Operation{*last, *op},
					Text: fmt.Sprintf("%s: a write made version %d after version %d had been seen:\n  %s\n  %s", key, op.Output.Version, last.Output.Version, last, op)})
			}
		}
	}
}

// clocks: of one document, a later version has a later timestamp.
func (c Versions) clocks(f *found, told map[string]map[uint64]seen) {
	for _, key := range slices.Sorted(maps.Keys(told)) {
		last, at := uint64(0), seen{}
		for _, v := range slices.Sorted(maps.Keys(told[key])) {
			s := told[key][v]
			if s.time == 0 {
				continue
			}
			if last != 0 && s.time <= at.time {
				f.addf("time went back", "%s version %d is of time %d, version %d of %d:\n  %s\n  %s", key, last, at.time, v, s.time, at.by, s.by)
			}
			last, at = v, s
		}
	}
}

// stored: the histories at the end have every acknowledged write, each write
// once, none that was refused or never asked for, and no gap.
func (c Versions) stored(f *found, ops []Operation) {
	wrote := map[string]map[string][]*Operation{} // by key and value
	restored := map[string]bool{}                 // keys with restores: their values repeat
	for i := range ops {
		op := &ops[i]
		if !op.Input.Writes() {
			continue
		}
		if wrote[op.Input.Key] == nil {
			wrote[op.Input.Key] = map[string][]*Operation{}
		}
		restored[op.Input.Key] = restored[op.Input.Key] || op.Input.Verb == Restore
		wrote[op.Input.Key][op.Input.Value] = append(wrote[op.Input.Key][op.Input.Value], op)
	}
	for _, key := range slices.Sorted(maps.Keys(c.Stored)) {
		byVersion := map[uint64]Stored{}
		values := map[string]uint64{}
		for _, s := range c.Stored[key] {
			if _, twice := byVersion[s.Version]; twice {
				f.addf("version listed twice", "%s version %d is twice in its history", key, s.Version)
			}
			byVersion[s.Version] = s
			if s.Deleted {
				continue
			}
			writes := wrote[key][s.Value]
			if len(writes) == 0 {
				f.addf("phantom", "%s version %d has %q, which nobody wrote", key, s.Version, s.Value)
				continue
			}
			if other, twice := values[s.Value]; twice && !restored[key] {
				f.addf("applied twice", "%s has one write as versions %d and %d:\n  %s", key, other, s.Version, writes[0])
			}
			values[s.Value] = s.Version
			if !slices.ContainsFunc(writes, func(op *Operation) bool {
				return op.Output.Outcome == Unknown || op.Output.Outcome == Done && (restored[key] || op.Output.Version == 0 || op.Output.Version == s.Version)
			}) {
				name := "refused write took effect"
				if writes[0].Output.Outcome == Done {
					name = "applied twice"
				}
				f.add(Anomaly{Name: name, Operations: []Operation{*writes[0]},
					Text: fmt.Sprintf("%s version %d has the value of\n  %s", key, s.Version, writes[0])})
			}
		}
		if c.Complete {
			for v := uint64(1); v <= uint64(len(byVersion)); v++ {
				if _, ok := byVersion[v]; !ok {
					f.addf("gap in history", "%s has %d versions, but no version %d", key, len(byVersion), v)
					break
				}
			}
		}
		for _, writes := range wrote[key] {
			for _, op := range writes {
				if op.Output.Outcome != Done || op.Output.Version == 0 {
					continue
				}
				s, ok := byVersion[op.Output.Version]
				switch {
				case !ok && c.Complete:
					f.add(Anomaly{Name: "lost write", Operations: []Operation{*op},
						Text: fmt.Sprintf("acknowledged and not in the history:\n  %s", op)})
				case ok && (s.Deleted != (op.Input.Verb == Delete) || !s.Deleted && s.Value != op.Input.Value):
					f.add(Anomaly{Name: "lost write", Operations: []Operation{*op},
						Text: fmt.Sprintf("acknowledged, and its version is another write's (%s):\n  %s", bodyOf(s.Deleted, s.Value, s.Count), op)})
				}
			}
		}
	}
}

// past: a read as of a time has the newest version of that time.
func (c Versions) past(f *found, ops []Operation, snapshots []Transaction, told map[string]map[uint64]seen) {
	type line struct{ versions, times []uint64 }
	lines := map[string]line{}
	lineOf := func(key string) line {
		l, ok := lines[key]
		if !ok {
			for _, v := range slices.Sorted(maps.Keys(told[key])) {
				if t := told[key][v].time; t != 0 {
					l.versions, l.times = append(l.versions, v), append(l.times, t)
				}
			}
			lines[key] = l
		}
		return l
	}
	// wrong says why the answer is not the document as of a time.
	wrong := func(key string, at uint64, out Output) string {
		l := lineOf(key)
		i := sort.Search(len(l.times), func(i int) bool { return l.times[i] > at })
		var newest uint64
		if i > 0 {
			newest = l.versions[i-1]
		}
		deleted := newest != 0 && told[key][newest].body == "deleted"
		switch out.Outcome {
		case Done:
			if out.Time > at {
				return fmt.Sprintf("version %d is of time %d, after %d", out.Version, out.Time, at)
			}
			// A version between what is known and at may be one that nobody told of.
			if out.Version < newest || deleted && out.Version == newest {
				return fmt.Sprintf("at time %d version %d was there (of time %d), not %d", at, newest, l.times[i-1], out.Version)
			}
			if c.Complete && c.Stored[key] != nil && out.Version != newest {
				return fmt.Sprintf("at time %d there was version %d, not %d", at, newest, out.Version)
			}
		case Missing:
			if newest != 0 && told[key][newest].body != "" && !deleted && (c.Complete && c.Stored[key] != nil || i < len(l.times) && l.versions[i] == newest+1) {
				return fmt.Sprintf("at time %d version %d was there (of time %d), and it was not found", at, newest, l.times[i-1])
			}
		}
		return ""
	}
	for i := range ops {
		op := &ops[i]
		old, known := told[op.Input.Key][op.Input.AtVersion]
		switch {
		case op.Input.AtVersion == 0 || !known || old.body == "":
		case op.Input.Verb == Get && op.Output.Outcome == Missing && old.body != "deleted":
			f.add(Anomaly{Name: "lost version", Operations: []Operation{*op},
				Text: fmt.Sprintf("%s version %d is known and was not found:\n  %s\n  %s", op.Input.Key, op.Input.AtVersion, old.by, op)})
		case op.Input.Verb == Restore && op.Output.Outcome == Done && op.Output.Document && bodyOf(false, op.Output.Value, op.Output.Count) != old.body:
			f.add(Anomaly{Name: "wrong restore", Operations: []Operation{*op},
				Text: fmt.Sprintf("%s version %d is %s and was restored as another:\n  %s\n  %s", op.Input.Key, op.Input.AtVersion, old.body, old.by, op)})
		}
		if op.Input.Verb != Get || op.Input.AtTime == 0 {
			continue
		}
		if why := wrong(op.Input.Key, op.Input.AtTime, op.Output); why != "" {
			f.add(Anomaly{Name: "wrong past", Operations: []Operation{*op}, Text: fmt.Sprintf("%s: %s:\n  %s", op.Input.Key, why, op)})
		}
	}
	for i := range snapshots {
		t := &snapshots[i]
		if t.Outcome != Done || t.Time == 0 {
			continue
		}
		var bad []string
		for _, p := range t.Parts {
			if why := wrong(p.Input.Key, t.Time, p.Output); why != "" {
				bad = append(bad, p.Input.Key+": "+why)
			}
		}
		if len(bad) > 0 {
			f.add(Anomaly{Name: "torn snapshot", Transactions: []Transaction{*t},
				Text: fmt.Sprintf("a read of one instant is not of that instant:\n  %s\n  %s", strings.Join(bad, "\n  "), t)})
		}
	}
}

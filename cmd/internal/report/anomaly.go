package report

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"time"

	"github.com/impossibledb/idb/cmd/internal/history"
)

// row is an operation or transaction of an anomaly.
type row struct {
	label        string // "T1", or nothing
	client       int
	text         string
	call, ret    time.Duration
	open, failed bool // never answered; refused
}

func rowsOf(a history.Anomaly) []row {
	var rows []row
	for i, t := range a.Transactions {
		rows = append(rows, row{
			label: fmt.Sprintf("T%d", i+1), client: t.Client, text: partsOf(t), call: t.Call, ret: t.Return,
			open: t.Outcome == history.Unknown, failed: t.Outcome == history.Refused,
		})
	}
	if len(rows) > 0 {
		return rows
	}
	for _, op := range a.Operations {
		t := history.Single(op)
		rows = append(rows, row{
			client: op.Client, text: partsOf(t), call: op.Call, ret: op.Return,
			open: t.Outcome == history.Unknown, failed: t.Outcome == history.Refused,
		})
	}
	return rows
}

// partsOf is a transaction without its times and client, which are drawn.
func partsOf(t history.Transaction) string {
	t.Client, t.Call, t.Return = 0, 0, 0
	text := t.String()
	const head = "0..0 c0 "
	if t.Outcome == history.Unknown {
		return text[len("0..- c0 "):]
	}
	return text[len(head):]
}

// mostRows is how many operations of an anomaly are drawn.
const mostRows = 40

// figure draws an anomaly: its operations on the time they took, one below the
// other, and, for a cycle, each edge as an arrow to the next.
func figure(r *Report, a history.Anomaly) template.HTML {
	rows := rowsOf(a)
	if len(rows) == 0 {
		return ""
	}
	hidden := 0
	if len(rows) > mostRows {
		hidden, rows = len(rows)-mostRows, rows[:mostRows]
	}
	from, to := rows[0].call, rows[0].call
	for _, w := range rows {
		from, to = min(from, w.call), max(to, w.call, w.ret)
	}
	margin := max((to-from)/12, time.Microsecond)
	from, to = max(0, from-margin), to+margin
	cycle := len(a.Cycle) == len(rows) && len(rows) > 1
	gutter, who, height := 70.0, 8.0, 34.0
	if cycle {
		gutter, who, height = 260, 136, 52
	}
	const top = 8.0
	bottom := top + height*float64(len(rows))
	d := newDrawing(wide, bottom+34)
	ax := axis{from, to, gutter, right}
	d.faults(ax, r.Faults, top, bottom)
	d.grid(ax, top, bottom)
	for i, w := range rows {
		y := top + height*float64(i)
		class, end := "answered", w.ret
		switch {
		case w.open:
			class, end = "unknown open", to
		case w.failed:
			class = "refused"
		}
		x := ax.x(w.call)
		d.rect(class, x, y+17, max(3, ax.x(end)-x), 11, w.text)
		label := fmt.Sprintf("c%d", w.client)
		if w.label != "" {
			label = w.label + "  " + label
		}
		d.text("who", who, y+27, label)
		// The text begins at the bar where there is room behind it.
		room := (right - x) / 6.4
		at := x
		if n := float64(len([]rune(w.text))); n > room {
			at = max(gutter, right-6.4*min(n, (right-gutter)/6.4))
		}
		d.text("op", at, y+13, clip(w.text, int((right-gutter)/6.4)))
		if cycle && i+1 < len(rows) {
			e := a.Cycle[i]
			d.line("arrow", who+6, y+32, who+6, y+height+11)
			d.path("head", head(who+6, y+height+15), e.Why)
			d.text("edge", who+16, y+46, clip(edgeName(e), 16))
		}
	}
	if cycle {
		// The last edge leads back to the first.
		e := a.Cycle[len(rows)-1]
		y0, y1 := top+height*float64(len(rows)-1)+23, top+23
		x := who - 6
		d.path("arrow back", fmt.Sprintf("M%s %sH%sV%sH%s", num(x), num(y0), num(14), num(y1), num(x-5)), e.Why)
		d.path("head", fmt.Sprintf("M%s %sl-7 -4v8z", num(x), num(y1)), e.Why)
		d.text("edge", 22, (y0+y1)/2+4, clip(edgeName(e), 16))
	}
	if hidden > 0 {
		d.text("tick", gutter, bottom+28, fmt.Sprintf("and %d operations more", hidden))
	}
	return d.done("the operations of the anomaly in time")
}

// head is an arrow's head that points down.
func head(x, y float64) string { return fmt.Sprintf("M%s %sl-4 -7h8z", num(x), num(y)) }

func edgeName(e history.Edge) string {
	if e.Key == "" {
		return e.Kind.String()
	}
	return e.Kind.String() + " " + e.Key
}

// around are the calls of all workloads that were under way while the anomaly
// happened, the anomalous ones apart: what else went on.
func around(r *Report, a history.Anomaly) template.HTML {
	rows := rowsOf(a)
	if len(rows) == 0 {
		return ""
	}
	from, to := rows[0].call, rows[0].call
	type call struct {
		client int
		at     time.Duration
	}
	bad := map[call]bool{}
	for _, w := range rows {
		from, to = min(from, w.call), max(to, w.call, w.ret)
		bad[call{w.client, w.call}] = true
	}
	margin := max((to-from)/2, time.Millisecond)
	from, to = max(0, from-margin), to+margin
	var spans []history.Span
	for _, w := range r.Workloads {
		for _, s := range w.Timeline {
			if s.Call <= to && ended(s, to) >= from {
				spans = append(spans, s)
			}
		}
	}
	const most = 1500
	if len(spans) > most {
		// Those nearest to the anomaly.
		middle := (from + to) / 2
		distance := func(s history.Span) time.Duration {
			if bad[call{s.Client, s.Call}] {
				return -1
			}
			return max(s.Call-middle, middle-s.Call)
		}
		slices.SortStableFunc(spans, func(a, b history.Span) int { return cmp.Compare(distance(a), distance(b)) })
		spans = spans[:most]
	}
	byClient := map[int][]history.Span{}
	for _, s := range spans {
		byClient[s.Client] = append(byClient[s.Client], s)
	}
	clients := make([]int, 0, len(byClient))
	for c := range byClient {
		clients = append(clients, c)
	}
	slices.Sort(clients)
	const mostLanes = 48
	if len(clients) > mostLanes {
		keep := map[int]bool{}
		for _, w := range rows {
			keep[w.client] = true
		}
		slices.SortStableFunc(clients, func(a, b int) int {
			switch {
			case keep[a] == keep[b]:
				return cmp.Compare(a, b)
			case keep[a]:
				return -1
			}
			return 1
		})
		clients = clients[:mostLanes]
		slices.Sort(clients)
	}
	const lane, top = 15.0, 4.0
	bottom := top + lane*float64(len(clients))
	d := newDrawing(wide, bottom+20)
	ax := axis{from, to, left, right}
	d.faults(ax, r.Faults, top, bottom)
	d.grid(ax, top, bottom)
	for i, c := range clients {
		y := top + lane*float64(i)
		name := fmt.Sprintf("c%d", c)
		if c >= 1<<20 {
			name = "at rest"
		}
		d.text("tick end", left-6, y+11, name)
		for _, s := range byClient[c] {
			class := classOf(s)
			if bad[call{s.Client, s.Call}] {
				class = "bad"
			}
			x := ax.x(s.Call)
			title := fmt.Sprintf("client %d: %s, %s, %v to %v", s.Client, s.Name, s.Outcome, s.Call, s.Return)
			d.rect(class, x, y+2, max(1, ax.x(ended(s, to))-x), lane-4, clip(title, 200))
		}
	}
	return d.done("what all clients did around the anomaly")
}

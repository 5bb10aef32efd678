package report

import (
	"cmp"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/impossibledb/idb/cmd/internal/history"
)

// Sizes of the drawings, in units of which the page shows about one per pixel.
const (
	wide  = 1100.0
	left  = 64.0
	right = wide - 10
)

// columns is how many steps in time the whole run is aggregated into.
const columns = 240

// column is one step.
type column struct {
	answered, refused, unknown int
	latencies                  []time.Duration
}

// over aggregates the run.
func over(r *Report, end time.Duration) []column {
	all := make([]column, columns)
	at := func(t time.Duration) *column {
		return &all[min(columns-1, max(0, int(int64(t)*columns/int64(end+1))))]
	}
	for _, w := range r.Workloads {
		for _, s := range w.Timeline {
			c := at(ended(s, end))
			switch s.Outcome {
			case history.Refused:
				c.refused++
			case history.Unknown:
				c.unknown++
			default:
				c.answered++
				c.latencies = append(c.latencies, s.Return-s.Call)
			}
		}
	}
	for i := range all {
		slices.Sort(all[i].latencies)
	}
	return all
}

// ended is when a call returned, or the end of the run.
func ended(s history.Span, end time.Duration) time.Duration {
	if s.Return == 0 {
		return end
	}
	return s.Return
}

// rates draws operations per second, with what was refused and unknown on top.
func rates(r *Report, cols []column, end time.Duration) template.HTML {
	const top, bottom, height = 10.0, 150.0, 170.0
	d := newDrawing(wide, height)
	a := axis{0, end, left, right}
	d.faults(a, r.Faults, top, bottom)
	most := 1
	for _, c := range cols {
		most = max(most, c.answered+c.refused+c.unknown)
	}
	perSecond := func(n int) float64 { return float64(n) / (end.Seconds() / columns) }
	limit := round(perSecond(most))
	y := func(n int) float64 { return bottom - (bottom-top)*perSecond(n)/limit }
	for i := range 3 {
		v := limit * float64(i) / 2
		yy := bottom - (bottom-top)*float64(i)/2
		d.line("grid", left, yy, right, yy)
		d.text("tick end", left-6, yy+4, short(v))
	}
	d.grid(a, top, bottom)
	step := (right - left) / columns
	var answered, refused, unknown strings.Builder
	bar := func(b *strings.Builder, i int, low, high float64) {
		if low-high > 0 {
			fmt.Fprintf(b, "M%s %sV%sh%sV%sz", num(left+float64(i)*step), num(low), num(high), num(step+0.1), num(low))
		}
	}
	for i, c := range cols {
		y0, y1, y2 := y(c.answered), y(c.answered+c.refused), y(c.answered+c.refused+c.unknown)
		bar(&answered, i, bottom, y0)
		if c.refused > 0 {
			bar(&refused, i, y0, min(y1, y0-2))
		}
		if c.unknown > 0 {
			bar(&unknown, i, y1, min(y2, y1-2))
		}
	}
	d.path("answered", answered.String(), "")
	d.path("refused", refused.String(), "")
	d.path("unknown", unknown.String(), "")
	return d.done("operations per second over time")
}

// latencies draws the median, the 99th percentile and the slowest answer.
func latencies(r *Report, cols []column, end time.Duration) template.HTML {
	const top, bottom, height = 10.0, 150.0, 170.0
	d := newDrawing(wide, height)
	a := axis{0, end, left, right}
	d.faults(a, r.Faults, top, bottom)
	low, high := math.Inf(1), 0.0
	for _, c := range cols {
		if n := len(c.latencies); n > 0 {
			low = min(low, max(1e-6, c.latencies[n/2].Seconds()))
			high = max(high, c.latencies[n-1].Seconds())
		}
	}
	if high == 0 {
		low, high = 1e-3, 1
	}
	from, to := math.Floor(math.Log10(low)), math.Ceil(math.Log10(max(high, low*1.01)))
	y := func(t time.Duration) float64 {
		return bottom - (bottom-top)*(math.Log10(max(1e-9, t.Seconds()))-from)/(to-from)
	}
	for e := from; e <= to; e++ {
		yy := bottom - (bottom-top)*(e-from)/(to-from)
		d.line("grid", left, yy, right, yy)
		d.text("tick end", left-6, yy+4, time.Duration(math.Pow(10, e)*1e9).String())
	}
	d.grid(a, top, bottom)
	step := (right - left) / columns
	for _, line := range []struct {
		class string
		of    func(l []time.Duration) time.Duration
	}{
		{"slowest", func(l []time.Duration) time.Duration { return l[len(l)-1] }},
		{"p99", func(l []time.Duration) time.Duration { return l[len(l)*99/100] }},
		{"p50", func(l []time.Duration) time.Duration { return l[len(l)/2] }},
	} {
		var b strings.Builder
		pen := "M"
		for i, c := range cols {
			if len(c.latencies) == 0 {
				pen = "M" // a gap is a gap: nothing was answered
				continue
			}
			fmt.Fprintf(&b, "%s%s %s", pen, num(left+(float64(i)+0.5)*step), num(min(bottom, y(line.of(c.latencies)))))
			pen = "L"
		}
		d.path("curve "+line.class, b.String(), "")
	}
	return d.done("latency over time, logarithmic: median, 99th percentile, slowest")
}

// faultLanes names the faults under the charts' time axis.
func faultLanes(r *Report, end time.Duration) template.HTML {
	if len(r.Faults) == 0 {
		return ""
	}
	byTarget := map[string][]Fault{}
	var targets []string
	for _, f := range r.Faults {
		if byTarget[f.Target] == nil {
			targets = append(targets, f.Target)
		}
		byTarget[f.Target] = append(byTarget[f.Target], f)
	}
	slices.Sort(targets)
	const row, top = 20.0, 4.0
	bottom := top + row*float64(len(targets))
	d := newDrawing(wide, bottom+20)
	a := axis{0, end, left, right}
	d.grid(a, top, bottom)
	for i, t := range targets {
		y := top + row*float64(i)
		name := t
		if name == "" {
			name = "cluster"
		}
		d.text("tick end", left-6, y+13, clip(name, 9))
		free := left // where the next label may begin
		slices.SortStableFunc(byTarget[t], func(a, b Fault) int { return cmp.Compare(a.From, b.From) })
		for _, f := range byTarget[t] {
			to := f.To
			if to == 0 {
				to = end
			}
			x := a.x(f.From)
			d.rect("faultbar", x, y+3, max(2, a.x(to)-x), row-6, f.String())
			if x >= free {
				d.text("faultname", x+4, y+14, f.Name)
				free = x + 10 + 6.2*float64(len(f.Name))
			}
		}
	}
	return d.done("faults over time")
}

// lanes draws every client's calls: each by itself in a short run, else what
// happened in each step of time.
func lanes(r *Report, end time.Duration) template.HTML {
	type lane struct {
		workload string
		client   int
		spans    []history.Span
	}
	var all []lane
	total := 0
	for _, w := range r.Workloads {
		byClient := map[int][]history.Span{}
		for _, s := range w.Timeline {
			if s.Client < 1<<20 { // reads at rest have no lane
				byClient[s.Client] = append(byClient[s.Client], s)
				total++
			}
		}
		clients := make([]int, 0, len(byClient))
		for c := range byClient {
			clients = append(clients, c)
		}
		slices.Sort(clients)
		for _, c := range clients {
			all = append(all, lane{w.Verdict.Workload, c, byClient[c]})
		}
	}
	if len(all) == 0 {
		return ""
	}
	const most = 96
	hidden := 0
	if len(all) > most {
		hidden, all = len(all)-most, all[:most]
	}
	row := 9.0
	if len(all) <= 32 {
		row = 13
	}
	const top = 4.0
	bottom := top + row*float64(len(all))
	d := newDrawing(wide, bottom+34)
	a := axis{0, end, left + 40, right}
	d.faults(a, r.Faults, top, bottom)
	d.grid(a, top, bottom)
	single := total <= 2000
	name := ""
	for i, l := range all {
		y := top + row*float64(i)
		if l.workload != name {
			name = l.workload
			d.line("rule", 0, y, right, y)
			d.text("lane", 0, y+10, name)
		}
		d.text("tick end", left+34, y+row-2, fmt.Sprint(l.client))
		if single {
			for _, s := range l.spans {
				x := a.x(s.Call)
				title := fmt.Sprintf("client %d: %s, %s, %v to %v", s.Client, s.Name, s.Outcome, s.Call, s.Return)
				d.rect(classOf(s), x, y+1, max(1, a.x(ended(s, end))-x), row-2, clip(title, 200))
			}
			continue
		}
		laneSteps(d, a, l.spans, y, row, end)
	}
	if hidden > 0 {
		d.text("tick", left+40, bottom+28, fmt.Sprintf("and %d clients more", hidden))
	}
	return d.done("what every client did over time")
}

func classOf(s history.Span) string {
	switch s.Outcome {
	case history.Refused:
		return "refused"
	case history.Unknown:
		return "unknown"
	}
	return "answered"
}

// laneSteps draws one client's lane, aggregated: pale where calls wait, darker
// the more were answered, and whatever was refused or unknown on top.
func laneSteps(d *drawing, a axis, spans []history.Span, y, row float64, end time.Duration) {
	const steps = 480
	var answers [steps]int
	var worst [steps]history.Outcome
	var waits [steps]bool
	at := func(t time.Duration) int { return min(steps-1, max(0, int(int64(t)*steps/int64(end+1)))) }
	most := 1
	for _, s := range spans {
		to := at(ended(s, end))
		for i := at(s.Call); i <= to; i++ {
			waits[i] = true
		}
		switch s.Outcome {
		case history.Refused, history.Unknown:
			worst[to] = max(worst[to], s.Outcome)
		default:
			answers[to]++
			most = max(most, answers[to])
		}
	}
	step := (a.right - a.left) / steps
	// One path per shade: steps of one shade in a row are one rectangle.
	for _, shade := range []struct {
		class string
		in    func(i int) bool
	}{
		{"waiting", func(i int) bool { return waits[i] && answers[i] == 0 }},
		{"answered low", func(i int) bool { return answers[i] > 0 && 3*answers[i] <= most }},
		{"answered middle", func(i int) bool { return 3*answers[i] > most && 3*answers[i] <= 2*most }},
		{"answered", func(i int) bool { return 3*answers[i] > 2*most }},
		{"refused", func(i int) bool { return worst[i] == history.Refused }},
		{"unknown", func(i int) bool { return worst[i] == history.Unknown }},
	} {
		var b strings.Builder
		for i := 0; i < steps; i++ {
			if !shade.in(i) {
				continue
			}
			from := i
			for i+1 < steps && shade.in(i+1) {
				i++
			}
			x := a.left + float64(from)*step
			w := float64(i-from+1) * step
			fmt.Fprintf(&b, "M%s %sh%sv%sh-%sz", num(x), num(y+1), num(w), num(row-2), num(w))
		}
		d.path(shade.class, b.String(), "")
	}
}

// round is a round number not below v.
func round(v float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(max(v, 1e-9))))
	for _, m := range []float64{1, 2, 4, 5, 10} {
		if unit*m >= v {
			return unit * m
		}
	}
	return v
}

// short prints a number for an axis.
func short(v float64) string {
	switch {
	case v >= 10_000:
		return fmt.Sprintf("%.0fk", v/1000)
	case v >= 10 || v == 0:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

package report

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"strings"
	"time"
)

// drawing is an SVG under construction. Colours are classes of the page's style
// sheet, so that they follow its light and dark.
type drawing struct {
	b             strings.Builder
	width, height float64
}

func newDrawing(width, height float64) *drawing { return &drawing{width: width, height: height} }

// num prints a coordinate: a tenth of a pixel is enough.
func num(v float64) string {
	return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
}

func (d *drawing) rect(class string, x, y, w, h float64, title string) {
	fmt.Fprintf(&d.b, `<rect class="%s" x="%s" y="%s" width="%s" height="%s"`, class, num(x), num(y), num(max(w, 0.1)), num(h))
	d.close("rect", title)
}

func (d *drawing) line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(&d.b, `<line class="%s" x1="%s" y1="%s" x2="%s" y2="%s"/>`, class, num(x1), num(y1), num(x2), num(y2))
}

func (d *drawing) path(class, data, title string) {
	if data == "" {
		return
	}
	fmt.Fprintf(&d.b, `<path class="%s" d="%s"`, class, data)
	d.close("path", title)
}

func (d *drawing) text(class string, x, y float64, text string) {
	fmt.Fprintf(&d.b, `<text class="%s" x="%s" y="%s">%s</text>`, class, num(x), num(y), html.EscapeString(text))
}

func (d *drawing) close(tag, title string) {
	if title == "" {
		d.b.WriteString("/>")
		return
	}
	fmt.Fprintf(&d.b, "><title>%s</title></%s>", html.EscapeString(title), tag)
}

// done is the SVG. label says what it shows to those who do not see it.
func (d *drawing) done(label string) template.HTML {
	return template.HTML(fmt.Sprintf(`<svg viewBox="0 0 %s %s" role="img" aria-label="%s">%s</svg>`,
		num(d.width), num(d.height), html.EscapeString(label), d.b.String()))
}

// axis maps times to x.
type axis struct {
	from, to    time.Duration
	left, right float64
}

func (a axis) x(t time.Duration) float64 {
	t = min(max(t, a.from), a.to)
	return a.left + (a.right-a.left)*float64(t-a.from)/float64(max(1, a.to-a.from))
}

// ticks are round times, about n of them.
func (a axis) ticks(n int) []time.Duration {
	span := a.to - a.from
	unit := time.Duration(math.Pow(10, math.Floor(math.Log10(float64(max(1, span)/time.Duration(n))))))
	unit = max(unit, 1)
	for _, m := range []time.Duration{1, 2, 5, 10} {
		if span/(unit*m) <= time.Duration(n) {
			unit *= m
			break
		}
	}
	var all []time.Duration
	for t := (a.from + unit - 1) / unit * unit; t <= a.to; t += unit {
		all = append(all, t)
	}
	return all
}

// grid draws the ticks and their labels.
func (d *drawing) grid(a axis, top, bottom float64) {
	for _, t := range a.ticks(10) {
		x := a.x(t)
		d.line("grid", x, top, x, bottom)
		d.text("tick mid", x, bottom+13, t.String())
	}
}

// faults draws bands behind everything.
func (d *drawing) faults(a axis, faults []Fault, top, bottom float64) {
	for _, f := range faults {
		to := f.To
		if to == 0 {
			to = a.to
		}
		if to < a.from || f.From > a.to {
			continue
		}
		d.rect("fault", a.x(f.From), top, max(1, a.x(to)-a.x(f.From)), bottom-top, f.String())
	}
}

func (f Fault) String() string {
	text := f.Name
	if f.Target != "" {
		text += " " + f.Target
	}
	if f.To == 0 {
		return fmt.Sprintf("%s from %v on", text, f.From.Round(time.Millisecond))
	}
	return fmt.Sprintf("%s, %v to %v", text, f.From.Round(time.Millisecond), f.To.Round(time.Millisecond))
}

// clip keeps a text to n runes.
func clip(text string, n int) string {
	r := []rune(text)
	if len(r) <= n {
		return text
	}
	return string(r[:n-1]) + "…"
}

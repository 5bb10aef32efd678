package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

const (
	barEvery  = 100 * time.Millisecond // on a terminal
	lineEvery = 5 * time.Second        // elsewhere
)

// progress shows how far something is: a line that redraws itself on a
// terminal, a line now and then elsewhere.
type progress struct {
	w       io.Writer
	columns int // of the terminal; 0: not a terminal
	text    func(columns int) string

	mu     sync.Mutex
	drawn  bool // a bar is on the screen
	closed bool

	stop chan struct{}
	done chan struct{}
}

// startProgress begins to show documents of an import or export. total is of
// bytes, 0 if it is not known. Close ends it.
func startProgress(w io.Writer, label string, total int64, sample func() (bytes, docs int64)) *progress {
	started := time.Now()
	return startLine(w, func(columns int) string {
		bytes, docs := sample()
		return progressText(label, bytes, total, docs, time.Since(started), columns)
	})
}

// startLine begins to show any text.
func startLine(w io.Writer, text func(columns int) string) *progress {
	p := &progress{w: w, text: text, stop: make(chan struct{}), done: make(chan struct{})}
	p.columns, _ = terminal(w)
	go p.run()
	return p
}

func (p *progress) run() {
	defer close(p.done)
	every := lineEvery
	if p.columns > 0 {
		every = barEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
			p.mu.Lock()
			p.drawLocked()
			p.mu.Unlock()
		}
	}
}

// line writes a whole line above the bar.
func (p *progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eraseLocked()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// Close draws the last state, leaves it on the screen and ends. It may be
// called more than once.
func (p *progress) Close() {
	p.mu.Lock()
	first := !p.closed
	p.closed = true
	p.mu.Unlock()
	if !first {
		return
	}
	close(p.stop)
	<-p.done
	if p.columns > 0 {
		p.drawLocked()
		fmt.Fprintln(p.w)
	}
}

func (p *progress) eraseLocked() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

func (p *progress) drawLocked() {
	text := p.text(p.columns)
	if p.columns == 0 {
		fmt.Fprintln(p.w, text)
		return
	}
	if r := []rune(text); len(r) >= p.columns { // a wrapped bar cannot be erased
		text = string(r[:p.columns-1])
	}
	fmt.Fprint(p.w, "\r"+text+"\x1b[K")
	p.drawn = true
}

// progressText is one state: with columns a bar, without them a sentence.
//
//	cities  ███████████░░░░░░░░░   53%   91,210 documents   27,300/s   3s left
func progressText(label string, bytes, total, docs int64, elapsed time.Duration, columns int) string {
	rate := 0.0
	if s := elapsed.Seconds(); s > 0 {
		rate = float64(docs) / s
	}
	facts := fmt.Sprintf("%s documents   %s/s", thousands(docs), thousands(int64(rate)))
	if total <= 0 {
		return label + "   " + facts
	}
	part := min(max(float64(bytes)/float64(total), 0), 1)
	facts = fmt.Sprintf("%3.0f%%   %s", part*100, facts)
	if part > 0.01 && part < 1 {
		left := time.Duration(float64(elapsed) * (1 - part) / part).Round(time.Second)
		facts += fmt.Sprintf("   %s left", left)
	}
	// Room for facts that grow by a few letters, so that the bar keeps its width.
	const factsRoom = 58
	width := min(columns-len(label)-factsRoom, 40)
	if width < 8 {
		return label + "   " + facts
	}
	full := int(part * float64(width))
	return label + "  " + strings.Repeat("█", full) + strings.Repeat("░", width-full) + "  " + facts
}

// thousands writes 171075 as 171,075.
func thousands(n int64) string {
	s := fmt.Sprint(n)
	neg := strings.HasPrefix(s, "-")
	s = strings.TrimPrefix(s, "-")
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if neg {
		s = "-" + s
	}
	return s
}

// bytesText writes a size for eyes: 3.1 MiB.
func bytesText(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/1024, 0
	for f >= 1023.95 && unit < 4 {
		f, unit = f/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[unit])
}

package wire

import "time"

// pace decides how many requests of one client are served at once. Small
// answers cost next to nothing and are served as they come, up to the limit of
// the connection. A request for a large one may take a megabyte of memory and
// a millisecond of processor before the first byte is sent: a thousand of them
// at once would stand in the way of every other client, while four keep any
// line busy.
//
// The size of an answer is not known before it is made, so it is guessed from
// those before it of the same kind on the same connection. Of the kinds that
// read documents the guess begins high: a new connection is served eight of
// them at a time until their answers have shown what they are.
//
// A request that takes long does so because it waits, for a leader or for news,
// and not because it makes an answer: after a moment it counts no more, and
// cannot keep those behind it from beginning.
//
// Guarded by session.mu.
type pace struct {
	waiting []*inFlight // not begun, in order
	guess   [KindCancel]int64
	running [KindCancel]int
	charged int64 // guesses of what is running, together
	round   uint32
}

const (
	paceBudget  = 4 << 20   // guessed bytes of answers in the making
	firstGuess  = 512 << 10 // of a kind that reads documents
	smallGuess  = 1 << 10   // of any other
	alwaysServe = 4         // of one kind, whatever is guessed
	paceRound   = 5 * time.Millisecond
)

// admit says that r may begin now; otherwise it waits. Nothing begins while
// earlier answers are not taken: a request that waits takes no memory, its
// answer would.
func (p *pace) admit(r *inFlight, unread bool) bool {
	if unread || len(p.waiting) > 0 || !p.fits(r.request.Kind) {
		p.waiting = append(p.waiting, r)
		return false
	}
	p.began(r)
	return true
}

// next is a request that waited and may begin now.
func (p *pace) next() *inFlight {
	if len(p.waiting) == 0 || !p.fits(p.waiting[0].request.Kind) {
		return nil
	}
	r := p.waiting[0]
	p.waiting[0] = nil
	p.waiting = p.waiting[1:]
	p.began(r)
	return r
}

func (p *pace) fits(k Kind) bool {
	return k >= KindCancel || p.running[k] < alwaysServe || p.charged+p.guessed(k) <= paceBudget
}

func (p *pace) guessed(k Kind) int64 {
	if p.guess[k] != 0 {
		return p.guess[k]
	}
	switch k {
	case KindGet, KindScan, KindHistory:
		return firstGuess
	}
	return smallGuess
}

// began charges for a request. Nodes are not paced: their kinds are above.
func (p *pace) began(r *inFlight) {
	k := r.request.Kind
	if k >= KindCancel || r.session.info.Peer {
		return
	}
	r.round = p.round
	p.charge(r)
}

func (p *pace) charge(r *inFlight) {
	k := r.request.Kind
	r.charge = p.guessed(k)
	p.charged += r.charge
	p.running[k]++
}

// made says that r's answer, or a part of it, is ready and waits for its
// client: it holds memory, so r counts again if it has aged, and ages no more.
func (p *pace) made(r *inFlight) {
	if r.request.Kind >= KindCancel || r.session.info.Peer {
		return
	}
	r.made = true
	if r.charge == 0 {
		p.charge(r)
	}
}

// ended gives back what began has charged and learns from the answer.
func (p *pace) ended(r *inFlight) {
	k := r.request.Kind
	if k >= KindCancel || r.session.info.Peer {
		return
	}
	p.giveBack(r)
	guess := p.guessed(k)
	p.guess[k] = max(1, guess+(int64(r.largest)-guess)/8)
}

func (p *pace) giveBack(r *inFlight) {
	if r.charge == 0 {
		return
	}
	p.charged -= r.charge
	p.running[r.request.Kind]--
	r.charge = 0
}

// age begins a new round: what was begun before the last one, and has made
// nothing yet, counts no more.
func (p *pace) age(open map[uint64]*inFlight) {
	p.round++
	for _, r := range open {
		if !r.made && p.round-r.round > 1 {
			p.giveBack(r)
		}
	}
}

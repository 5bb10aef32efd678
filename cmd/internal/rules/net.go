package rules

// Net is a bag of messages on their way. Each step takes any of them, so that
// they overtake each other; some are lost, some arrive and stay in the bag, to
// arrive again when nobody expects them.
type Net struct {
	run  *Run
	bag  []message
	lose int // one in so many is lost; 0: none
	keep int // one in so many stays in the bag as well; 0: none
}

type message struct {
	from, to string
	what     any // printed with %v, if anybody reads it
	deliver  func()
}

// Send puts a message in the bag. What deliver finds, it finds on arrival.
func (n *Net) Send(from, to string, what any, deliver func()) {
	n.bag = append(n.bag, message{from, to, what, deliver})
}

// Step lets one message arrive, or not.
func (n *Net) Step() {
	if len(n.bag) == 0 {
		return
	}
	i := n.run.IntN(len(n.bag))
	m := n.bag[i]
	how := ""
	switch {
	case n.keep > 0 && n.run.Once(n.keep):
		how = " (and will again)"
	default:
		last := len(n.bag) - 1
		n.bag[i] = n.bag[last]
		n.bag[last] = message{}
		n.bag = n.bag[:last]
		if n.lose > 0 && n.run.Once(n.lose) {
			n.run.Say("lost: %s -> %s: %v", m.from, m.to, m.what)
			return
		}
	}
	n.run.Say("%s -> %s: %v%s", m.from, m.to, m.what, how)
	m.deliver()
}

// Drain lets everything arrive that is on its way, and what that brings about.
func (n *Net) Drain() {
	n.lose, n.keep = 0, 0
	for range 10_000 {
		if len(n.bag) == 0 || n.run.fault != nil {
			return
		}
		n.Step()
	}
	n.run.Fail("messages have no end")
}

package history

// EdgeKind is how one transaction is known to come before another.
type EdgeKind uint8

const (
	// WW: the other replaced what this one wrote.
	WW EdgeKind = iota
	// WR: the other read what this one wrote.
	WR
	// RW: the other replaced what this one read (an anti-dependency).
	RW
	// Process: one client did this before that.
	Process
	// RealTime: this had returned before that was called.
	RealTime
)

var edgeNames = [...]string{"ww", "wr", "rw", "process", "real time"}

func (k EdgeKind) String() string { return edgeNames[k] }

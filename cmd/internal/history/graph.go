package history

import "slices"

// graph says which transactions come before which. Nodes below txns are
// transactions, the others are barriers: a barrier stands for a moment, comes
// after everything that had ended by then and before everything that began
// later. With them, order in time costs three edges per transaction instead of
// one per pair.
type graph struct {
	txns int
	out  [][]arc
}

// arc is an edge to a node.
type arc struct {
	to       int32
	kind     EdgeKind
	key      int32 // in orders.keys; -1: none
	old, new int64 // the versions that tell, where there are some
}

func newGraph(txns int) *graph { return &graph{txns: txns, out: make([][]arc, txns)} }

func (g *graph) add(from int, a arc) {
	if from != int(a.to) {
		g.out[from] = append(g.out[from], a)
	}
}

// barrier makes a node that is no transaction.
func (g *graph) barrier() int {
	g.out = append(g.out, nil)
	return len(g.out) - 1
}

// kinds is a set of edge kinds.
type kinds uint8

func setOf(list ...EdgeKind) kinds {
	var s kinds
	for _, k := range list {
		s |= 1 << k
	}
	return s
}

func (s kinds) has(k EdgeKind) bool { return s&(1<<k) != 0 }

// components are the strongly connected components, by edges of some kinds,
// that have more than one node. Tarjan, "Depth-first search and linear graph
// algorithms" (1972), with a stack of its own: histories are long.
func (g *graph) components(allowed kinds) [][]int32 {
	n := len(g.out)
	index := make([]int32, n) // 0: not visited
	low := make([]int32, n)
	on := make([]bool, n)
	type frame struct {
		node int32
		next int // the edge to look at
	}
	var (
		stack  []int32
		frames []frame
		all    [][]int32
		count  int32
	)
	visit := func(v int32) {
		count++
		index[v], low[v] = count, count
		stack = append(stack, v)
		on[v] = true
		frames = append(frames, frame{node: v})
	}
	for root := range n {
		if index[root] != 0 {
			continue
		}
		visit(int32(root))
		for len(frames) > 0 {
			f := &frames[len(frames)-1]
			v := f.node
			if f.next < len(g.out[v]) {
				a := g.out[v][f.next]
				f.next++
				switch {
				case !allowed.has(a.kind):
				case index[a.to] == 0:
					visit(a.to)
				case on[a.to]:
					low[v] = min(low[v], index[a.to])
				}
				continue
			}
			frames = frames[:len(frames)-1]
			if len(frames) > 0 {
				p := frames[len(frames)-1].node
				low[p] = min(low[p], low[v])
			}
			if low[v] != index[v] {
				continue
			}
			var c []int32
			for {
				w := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				on[w] = false
				c = append(c, w)
				if w == v {
					break
				}
			}
			if len(c) > 1 {
				all = append(all, c)
			}
		}
	}
	return all
}

// step is one edge of a path.
type step struct {
	from int32
	arc
}

// path is a shortest way from one node to another inside a component, by
// edges of some kinds, barriers counting nothing. The search ends without an
// answer when the budget of edges is used up.
func (g *graph) path(from, to int32, allowed kinds, inside map[int32]bool, budget *int) []step {
	came := map[int32]step{}
	seen := map[int32]bool{from: true}
	// What is as far away as can be now; barriers are looked at first, because
	// a step out of them counts nothing.
	var barriers []int32
	near, far := []int32{from}, []int32(nil)
	for len(barriers)+len(near)+len(far) > 0 {
		if len(barriers)+len(near) == 0 {
			for _, v := range far {
				if int(v) >= g.txns {
					barriers = append(barriers, v)
				} else {
					near = append(near, v)
				}
			}
			far = far[:0]
			continue
		}
		next := &barriers
		if len(barriers) == 0 {
			next = &near
		}
		v := (*next)[len(*next)-1]
		*next = (*next)[:len(*next)-1]
		for _, a := range g.out[v] {
			if *budget--; *budget < 0 {
				return nil
			}
			if !allowed.has(a.kind) || !inside[a.to] || seen[a.to] {
				continue
			}
			seen[a.to] = true
			came[a.to] = step{v, a}
			switch {
			case a.to == to:
				var back []step
				for at := to; at != from; at = came[at].from {
					back = append(back, came[at])
				}
				slices.Reverse(back)
				return back
			case int(v) < g.txns:
				far = append(far, a.to)
			case int(a.to) >= g.txns:
				barriers = append(barriers, a.to)
			default:
				near = append(near, a.to)
			}
		}
	}
	return nil
}

// collapse replaces ways through barriers by one edge in time, and ways along
// the versions of one document by one edge: versions are in one order.
func (g *graph) collapse(cycle []step) []step {
	var short []step
	for _, s := range cycle {
		if int(s.from) >= g.txns {
			short[len(short)-1].to = s.to
			continue
		}
		if n := len(short); n > 0 && joins(short[n-1].arc, s.arc) && s.to != short[n-1].from {
			last := &short[n-1]
			if s.kind == WR {
				last.kind = WR
			}
			last.to, last.new = s.to, s.new
			continue
		}
		short = append(short, s)
	}
	return short
}

// joins says that one edge behind another is one step along a document's
// versions: who replaced what was read or made, however many times.
func joins(a, b arc) bool {
	return a.key == b.key && a.key >= 0 && (a.kind == WW && (b.kind == WW || b.kind == WR) || a.kind == RW && b.kind == WW)
}

package placement

// View is a State with indexes over it. Like the State it is immutable, so a
// request takes one pointer and sees one version from its start to its end.
type View struct {
	*State
	live map[string]int // name → index in Collections, without those being dropped
	gone map[string]int // the same for those being dropped
}

// NewView indexes a state.
func NewView(s *State) *View {
	v := &View{State: s, live: make(map[string]int, len(s.Collections))}
	for i := range s.Collections {
		c := &s.Collections[i]
		if !c.Dropping() {
			v.live[c.Name] = i
			continue
		}
		if v.gone == nil {
			v.gone = make(map[string]int)
		}
		v.gone[c.Name] = i
	}
	return v
}

// Collection is the live collection of that name. The pointer is into the
// immutable state.
func (v *View) Collection(name string) (*Collection, bool) {
	i, ok := v.live[name]
	if !ok {
		return nil, false
	}
	return &v.Collections[i], true
}

// Numbered is the live collection of that name, if it has that number.
func (v *View) Numbered(name string, number CollectionID) (*Collection, bool) {
	c, ok := v.Collection(name)
	if !ok || c.ID != number {
		return nil, false
	}
	return c, true
}

// Dropped is the collection of that name whose drop is not yet confirmed by
// every group.
func (v *View) Dropped(name string) (*Collection, bool) {
	i, ok := v.gone[name]
	if !ok {
		return nil, false
	}
	return &v.Collections[i], true
}

// Owner is the group that the map gives a partition; zero when there is none.
func (v *View) Owner(p PartitionID) GroupID {
	if int(p) >= len(v.Owners) {
		return 0
	}
	return v.Owners[p]
}

// Nearest is the live collection name that a mistyped one probably meant, or "".
func (v *View) Nearest(name string) string {
	names := func(yield func(string) bool) {
		for i := range v.Collections {
			if !v.Collections[i].Dropping() && !yield(v.Collections[i].Name) {
				return
			}
		}
	}
	return nearest(name, names)
}

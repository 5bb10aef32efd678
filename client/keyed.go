package client

import "iter"

// keyed is a map that keeps the order of its keys. A few are compared one by one:
// most transactions touch two or three documents, and Go's maps for them took as
// long as writing the requests.
type keyed[V any] struct {
	all []entry[V]
	at  map[string]int // where a key is in all; nil while there are few
}

type entry[V any] struct {
	key   string
	value V
}

// fewKeys is how many are compared one by one.
const fewKeys = 8

func (k *keyed[V]) len() int { return len(k.all) }

// find is where a key is, or negative.
func (k *keyed[V]) find(key string) int {
	if k.at != nil {
		if i, ok := k.at[key]; ok {
			return i
		}
		return -1
	}
	for i := range k.all {
		if k.all[i].key == key {
			return i
		}
	}
	return -1
}

func (k *keyed[V]) has(key string) bool { return k.find(key) >= 0 }

// get is a key's value; if there is none, the zero value.
func (k *keyed[V]) get(key string) (value V, ok bool) {
	if i := k.find(key); i >= 0 {
		return k.all[i].value, true
	}
	return value, false
}

// add adds a key that is not there.
func (k *keyed[V]) add(key string, value V) {
	k.all = append(k.all, entry[V]{key, value})
	switch {
	case k.at != nil:
		k.at[key] = len(k.all) - 1
	case len(k.all) > fewKeys:
		k.at = make(map[string]int, 2*len(k.all))
		for i := range k.all {
			k.at[k.all[i].key] = i
		}
	}
}

// drop takes the last that was added away.
func (k *keyed[V]) drop() {
	last := len(k.all) - 1
	delete(k.at, k.all[last].key)
	k.all[last] = entry[V]{}
	k.all = k.all[:last]
}

// values are all, in order.
func (k *keyed[V]) values() iter.Seq[V] {
	return func(yield func(V) bool) {
		for i := range k.all {
			if !yield(k.all[i].value) {
				return
			}
		}
	}
}

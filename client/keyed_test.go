package client

import (
	"fmt"
	"slices"
	"testing"
)

// TestKeyed: few or many, it is a map that keeps the order.
func TestKeyed(t *testing.T) {
	var k keyed[int]
	var want []int
	key := func(i int) string { return fmt.Sprint("k", i) }
	check := func() {
		t.Helper()
		if got := slices.Collect(k.values()); !slices.Equal(got, want) || k.len() != len(want) {
			t.Fatalf("%v, want %v", got, want)
		}
		for _, i := range want {
			if v, ok := k.get(key(i)); !ok || v != i || !k.has(key(i)) {
				t.Fatalf("%s is %d, %t", key(i), v, ok)
			}
		}
		for _, i := range []int{-1, len(want)} {
			if v, ok := k.get(key(i)); ok || v != 0 || k.has(key(i)) {
				t.Fatalf("%s is %d, and was never added", key(i), v)
			}
		}
	}
	for i := range 3 * fewKeys {
		check()
		k.add(key(i), i)
		k.drop()
		check()
		k.add(key(i), i)
		want = append(want, i)
	}
	for len(want) > 0 {
		check()
		k.drop()
		want = want[:len(want)-1]
	}
	check()
}

package leader

import (
	"testing"
	"time"

	"github.com/impossibledb/idb/txn/hlc"
)

func TestForget(t *testing.T) {
	const ttl = 16 * time.Minute
	at := func(d time.Duration) hlc.Timestamp { return hlc.FromMillis(1_700_000_000_000).Add(d) }
	for _, tc := range []struct {
		name            string
		have            hlc.Timestamp
		clock, youngest hlc.Timestamp
		now             hlc.Timestamp
		want            hlc.Timestamp // 0: nothing
	}{
		{"what is too old", at(-time.Hour), at(0), at(0), at(0), at(-ttl)},
		{"a sixteenth is not full", at(-ttl - time.Minute), at(0), at(0), at(0), 0},
		{"a sixteenth and more", at(-ttl - time.Minute - time.Millisecond), at(0), at(0), at(0), at(-ttl)},
		{"an empty group", 0, 0, 0, at(0), 0},
		{"the last writes, though they are few", at(-time.Second), at(0), at(0), at(2 * ttl), at(0)},
		{"an idle group", at(0), at(0), at(0), at(2 * ttl), 0},
		{"refusals alone", at(0), at(0), at(3 * time.Minute), at(2 * ttl), at(3 * time.Minute)},
		// Nothing was written since the clock jumped.
		{"a clock that is far ahead", at(-ttl), at(0), at(0), at(40 * ttl), at(0)},
		{"and back", at(-ttl), at(0), at(0), at(time.Second), 0},
		{"within the millisecond of the last write", 0, at(0) + 9, at(0), at(2 * ttl), at(0)},
		{"and not above it", at(0), at(0) + 9, at(0), at(2 * ttl), 0},
	} {
		got, ok := Forget(tc.have, tc.clock, uint64(tc.youngest), tc.now, ttl)
		if ok != (tc.want != 0) || ok && got != tc.want {
			t.Errorf("%s: %v, %v, want %v", tc.name, got, ok, tc.want)
		}
		if ok && got > max(tc.clock, tc.youngest) {
			t.Errorf("%s: the horizon %v is above everything that is to be forgotten", tc.name, got)
		}
	}
}

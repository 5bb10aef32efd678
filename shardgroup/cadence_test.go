package shardgroup

import (
	"testing"
	"testing/synctest"
	"time"
)

// seat is a batcher of which only the turns are of interest.
func seat() *batcher {
	b := &batcher{}
	b.cond.L = &b.mu
	return b
}

// come is what add does for a group that has asked already.
func come(c *cadence, n int) {
	c.moved(n, 0)
	c.came(false)
}

// ask is what take does: it asks for a turn for b.
func ask(c *cadence, b *batcher) (round uint64, now bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	round, now = c.enter(b)
	b.waits = !now
	return round, now
}

// turn is the round that b was given, 0 if none.
func turn(b *batcher) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	round := b.turn
	b.turn = 0
	return round
}

func TestCadenceLightLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c cadence
		defer c.stop()
		for i := range lightLoad {
			if round, now := ask(&c, seat()); round != 0 || !now {
				t.Fatalf("with %d commands on the node a group got round %d, start %v; want to start at once and in no round", i, round, now)
			}
			come(&c, 1)
		}
		if round, now := ask(&c, seat()); round == 0 || !now {
			t.Errorf("with %d commands the first group got round %d, start %v; want the first round", lightLoad, round, now)
		}
	})
}

// Groups that come while a round is under way start together when it has landed.
func TestCadenceTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c cadence
		defer c.stop()
		come(&c, 40)
		first, _ := ask(&c, seat())
		c.moved(-10, 10)
		a, b := seat(), seat()
		for _, g := range []*batcher{a, b} {
			if _, now := ask(&c, g); now {
				t.Fatal("a group started beside a round that has not landed")
			}
		}
		c.moved(0, -10)
		come(&c, 10) // the callers are back already
		c.leave(first)
		ra, rb := turn(a), turn(b)
		if ra == 0 || ra != rb || ra == first {
			t.Fatalf("groups that waited for round %d got rounds %d and %d, want the next one for both", first, ra, rb)
		}
		c.leave(ra)
		if _, now := ask(&c, seat()); now {
			t.Error("a group started while one of the round has not landed")
		}
	})
}

// A round that has landed leaves its callers a moment to come back.
func TestCadenceRests(t *testing.T) {
	type back struct {
		after time.Duration
		n     int
	}
	for _, c := range []struct {
		name  string
		usual time.Duration // a round takes
		back  []back
		rests time.Duration
	}{
		{"none back", 2 * restFor, nil, restFor},
		{"none back, rounds are short", restFor / 2, nil, restFor / 2},
		{"enough of them back", 2 * restFor, []back{{restFor / 2, 5}}, restFor / 2},
		{"some back, then nobody", 2 * restFor, []back{{restGap / 2, 2}, {restGap, 2}}, 2 * restGap},
		{"the last just before the end", 2 * restFor, []back{{restFor - restGap/2, 1}}, restFor},
		{"one after the other", 2 * restFor, []back{{restGap, 1}, {3 * restGap / 2, 1}, {2 * restGap, 1}}, 3 * restGap},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cad := cadence{usual: c.usual}
				defer cad.stop()
				come(&cad, 20)
				first, _ := ask(&cad, seat())
				cad.moved(-10, 10)
				next := seat()
				ask(&cad, next)
				time.Sleep(c.usual)
				cad.moved(0, -10)
				landed := time.Now()
				cad.leave(first)
				for _, b := range c.back {
					time.AfterFunc(b.after, func() { come(&cad, b.n) })
				}
				for turn(next) == 0 {
					if time.Since(landed) > 2*restFor {
						t.Fatal("the next round did not begin")
					}
					time.Sleep(restFor / 100)
					synctest.Wait()
				}
				if rested := time.Since(landed); rested > c.rests+restFor/50 || rested < c.rests {
					t.Errorf("the next round began after %s, want %s", rested, c.rests)
				}
			})
		})
	}
}

// While a round waits, few commands do not go ahead, and the group of the last
// that it waits for goes with it.
func TestCadenceLastToCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cad := cadence{usual: restFor}
		defer cad.stop()
		come(&cad, 20)
		first, _ := ask(&cad, seat())
		cad.moved(-20, 20)
		time.Sleep(restFor)
		cad.moved(0, -20)
		cad.leave(first)
		early, last := seat(), seat()
		come(&cad, 3)
		if _, now := ask(&cad, early); now {
			t.Fatal("a group started while the round waits for callers")
		}
		cad.moved(15, 0)
		cad.came(true)
		synctest.Wait()
		if turn(early) != 0 {
			t.Fatal("the round began without the group whose commands were the last")
		}
		ask(&cad, last)
		synctest.Wait()
		if e, l := turn(early), turn(last); e == 0 || e != l {
			t.Errorf("rounds %d and %d, want the next one for both, at once", e, l)
		}
	})
}

// An entry that does not land holds the others up for the length of some rounds,
// and what becomes of it later moves nothing.
func TestCadenceStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c cadence
		defer c.stop()
		come(&c, 40)
		stuck, _ := ask(&c, seat())
		next := seat()
		ask(&c, next)
		time.Sleep(minRound - 1)
		synctest.Wait()
		if turn(next) != 0 {
			t.Fatal("the round was given up too early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		round := turn(next)
		if round == 0 {
			t.Fatal("groups wait for an entry that does not land")
		}
		c.leave(stuck)
		if _, now := ask(&c, seat()); now {
			t.Error("the landing of a round that was given up ended the present one")
		}
	})
}

// A group that stops while it waits gives its turn back.
func TestCadenceStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c cadence
		defer c.stop()
		come(&c, 40)
		first, _ := ask(&c, seat())
		gone := seat()
		ask(&c, gone)
		gone.mu.Lock()
		gone.stopped = true
		gone.mu.Unlock()
		c.leave(first)
		if _, now := ask(&c, seat()); !now {
			t.Error("the turn of a group that stopped was not given back")
		}
	})
}

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
			c.came(1)
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
		c.came(40)
		first, _ := ask(&c, seat())
		c.moved(-10, 10)
		a, b := seat(), seat()
		for _, g := range []*batcher{a, b} {
			if _, now := ask(&c, g); now {
				t.Fatal("a group started beside a round that has not landed")
			}
		}
		c.moved(0, -10)
		c.came(10) // the callers are back already
		c.leave(first, 10, 0)
		ra, rb := turn(a), turn(b)
		if ra == 0 || ra != rb || ra == first {
			t.Fatalf("groups that waited for round %d got rounds %d and %d, want the next one for both", first, ra, rb)
		}
		c.leave(ra, 10, 0)
		if _, now := ask(&c, seat()); now {
			t.Error("a group started while one of the round has not landed")
		}
	})
}

// A round that has landed leaves its callers a moment to come back, but not
// those of transactions, who have something else to do first.
func TestCadenceRests(t *testing.T) {
	for _, c := range []struct {
		name        string
		steps, back int // of ten
		rests       time.Duration
	}{
		{"none back", 0, 0, restFor},
		{"most of them back", 0, 10, restFor / 2},
		{"none back, some of transactions", 4, 0, restFor},
		{"transactions", 5, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var cad cadence
				defer cad.stop()
				cad.came(20)
				first, _ := ask(&cad, seat())
				cad.moved(-10, 10)
				next := seat()
				ask(&cad, next)
				cad.moved(0, -10)
				landed := time.Now()
				cad.leave(first, 10, c.steps)
				if c.back > 0 {
					time.AfterFunc(restFor/2, func() { cad.came(c.back) })
				}
				for turn(next) == 0 {
					if time.Since(landed) > restFor {
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

// An entry that does not land holds the others up for the length of some rounds,
// and what becomes of it later moves nothing.
func TestCadenceStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c cadence
		defer c.stop()
		c.came(40)
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
		c.leave(stuck, 10, 0)
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
		c.came(40)
		first, _ := ask(&c, seat())
		gone := seat()
		ask(&c, gone)
		gone.mu.Lock()
		gone.stopped = true
		gone.mu.Unlock()
		c.leave(first, 10, 0)
		if _, now := ask(&c, seat()); !now {
			t.Error("the turn of a group that stopped was not given back")
		}
	})
}

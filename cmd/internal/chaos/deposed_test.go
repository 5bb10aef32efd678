package chaos

import (
	"fmt"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
)

// TestDeposedLeader: leaders that were stopped and replaced find requests in
// their sockets when they go on. They may refuse, or answer with what is true
// now; never with what was true when they fell asleep.
func TestDeposedLeader(t *testing.T) {
	c := start(t, Options{})
	ctx := within(t, time.Minute)
	// Quick to give a silent node up, so that there is time for more rounds.
	db, err := client.Dial(ctx, c.URL(), client.WithSilence(200*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	for round := range 5 {
		group := uint32(1 + round%4)
		d, acked, err := c.ProbeDeposed(ctx, db, group, fmt.Sprintf("round%d", round))
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		t.Logf("group %d: %s answered %d reads, refused %d, acknowledged %d inserts", d.Group, d.Node, d.Answered, d.Refused, d.Acked)
		if d.Answered+d.Refused == 0 {
			t.Errorf("round %d asked nothing", round)
		}
		for id, version := range acked {
			doc, err := db.Collection(probeCollection).Get(ctx, id)
			if err != nil || doc.Version != version {
				t.Fatalf("round %d: %s was acknowledged as version %d by %s, and now: %v, %v", round, id, version, d.Node, doc, err)
			}
		}
	}
	if err := CompareReplicas(ctx, db); err != nil {
		t.Fatal(err)
	}
}

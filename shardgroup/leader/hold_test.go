package leader

import (
	"testing"
	"time"

	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn"
)

func TestHolds(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	write := func(c placement.CollectionID) *fsm.Command { return &fsm.Command{Write: &fsm.Write{Collection: c}} }
	part := func(c placement.CollectionID) txn.Part { return txn.Part{Writes: []txn.Write{{Collection: c}}} }
	var m Memory
	if _, _, ok := m.Hold(now.Add(time.Second), nil); ok {
		t.Fatal("a hold without leading")
	}
	m.Open(3, 0, 0)
	m.Assign(0)
	m.Send()
	token, upto, ok := m.Hold(now.Add(time.Second), []placement.CollectionID{7})
	if !ok || m.Landed(upto) {
		t.Fatal("a hold is answered before what has its timestamp has landed")
	}
	m.Land()
	if !m.Landed(upto) {
		t.Fatal("a hold waits for what came later")
	}
	for _, tc := range []struct {
		name string
		c    *fsm.Command
		want bool
	}{
		{"a write", write(7), true},
		{"a write elsewhere", write(8), false},
		{"a prepare", &fsm.Command{Txn: &fsm.Txn{Prepare: &fsm.Prepare{Part: part(7)}}}, true},
		{"a prepare that only reads", &fsm.Command{Txn: &fsm.Txn{Prepare: &fsm.Prepare{Part: txn.Part{Reads: []txn.Read{{Collection: 7}}}}}}, false},
		{"a decide", &fsm.Command{Txn: &fsm.Txn{Decide: &fsm.Decide{Part: part(7)}}}, true},
		{"a commit", &fsm.Command{Txn: &fsm.Txn{Commit: &fsm.Commit{Parts: []fsm.PartitionPart{{Part: part(8)}, {Part: part(7)}}}}}, true},
		{"a commit elsewhere", &fsm.Command{Txn: &fsm.Txn{Commit: &fsm.Commit{Parts: []fsm.PartitionPart{{Part: part(8)}}}}}, false},
		{"a resolve", &fsm.Command{Txn: &fsm.Txn{Resolve: &fsm.Resolve{Commit: true}}}, false},
		{"an ask", &fsm.Command{Txn: &fsm.Txn{Settle: &fsm.Settle{Raise: 9}}}, false},
		{"a ceiling", &fsm.Command{Ceiling: &fsm.Ceiling{}}, false},
		{"a promise", &fsm.Command{Promise: &fsm.Promise{}}, false},
	} {
		if got := m.Held(tc.c); got != tc.want {
			t.Errorf("%s is kept back: %v", tc.name, got)
		}
	}
	all, _, _ := m.Hold(now.Add(2*time.Second), nil)
	if all == token || !m.Held(write(8)) {
		t.Fatal("holds share a token, or one of everything holds nothing")
	}
	if m.Redeem(2, token, now, 500) || m.Redeem(3, 99, now, 500) || m.Floor() >= 500 {
		t.Fatal("promised by another term's hold, or by none")
	}
	if !m.Redeem(3, token, now, 500) || m.Assign(0) != 501 {
		t.Fatal("a promise does not keep what comes then above it")
	}
	if m.Redeem(3, token, now, 600) {
		t.Fatal("promised twice by one hold")
	}
	if !m.Held(write(7)) {
		t.Fatal("the end of one hold has ended another")
	}
	m.Expire(now.Add(2 * time.Second))
	if m.Held(write(7)) || m.Redeem(3, all, now, 700) {
		t.Fatal("a hold lasts beyond its time")
	}

	late, _, _ := m.Hold(now.Add(time.Second), nil)
	if m.Redeem(3, late, now.Add(time.Second), 700) {
		t.Fatal("promised by a hold whose time was up")
	}
	lost, _, _ := m.Hold(now.Add(time.Second), nil)
	m.Send()
	m.Lose(3)
	if m.Held(write(7)) || m.Redeem(3, lost, now, 800) {
		t.Fatal("promised beside a batch that may yet be applied")
	}
	m.Open(4, 0, 0)
	before, _, _ := m.Hold(now.Add(time.Second), nil)
	m.Shut()
	m.Open(5, 0, 0)
	if m.Redeem(4, before, now, 900) || m.Redeem(5, before, now, 900) || m.Held(write(7)) {
		t.Fatal("a hold outlives its term")
	}
	if next, _, _ := m.Hold(now.Add(time.Second), nil); next == before {
		t.Fatal("a token was given twice")
	}
	m.Break()
	for range MaxHolds {
		if _, _, ok := m.Hold(now.Add(time.Second), nil); !ok {
			t.Fatal("fewer holds than the bound")
		}
	}
	if _, _, ok := m.Hold(now.Add(time.Second), nil); ok {
		t.Fatal("more holds than the bound")
	}
}

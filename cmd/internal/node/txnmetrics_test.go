package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/impossibledb/idb/client"
)

// scrape sums the metrics of all nodes by name and labels, without the group.
func scrape(t *testing.T, d *Dev) map[string]float64 {
	t.Helper()
	sums := map[string]float64{}
	for _, n := range d.Nodes() {
		_, text := get(t, "http://"+n.HTTPAddr()+"/metrics")
		for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
			name, value, ok := strings.Cut(lines.Text(), " ")
			if !ok || !strings.HasPrefix(name, "idb_transaction") {
				continue
			}
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
			name, labels, _ := strings.Cut(strings.TrimSuffix(name, "}"), "{")
			for l := range strings.SplitSeq(labels, ",") {
				if k, v, _ := strings.Cut(l, "="); k == "outcome" || k == "what" {
					name += " " + strings.Trim(v, `"`)
				}
			}
			sums[name] += v
		}
	}
	return sums
}

// TestTransactionMetrics: what transactions do moves the numbers that the
// documentation names.
func TestTransactionMetrics(t *testing.T) {
	d := startDev(t, t.TempDir(), 1)
	defer stopDev(t, d)
	db := dial(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	p := newPair(t, d, db)
	before := scrape(t, d)
	some := math.Inf(1) // by more than nothing
	// moved waits for the numbers: some are counted when the client was answered.
	moved := func(what string, want map[string]float64) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			now, wrong := scrape(t, d), ""
			for name, by := range want {
				if _, have := now[name]; !have {
					t.Fatalf("there is no %s", name)
				}
				if got := now[name] - before[name]; got != by && !(by == some && got > 0) {
					wrong += fmt.Sprintf("\n%s moved by %v, want %v", name, got, by)
				}
			}
			if wrong == "" {
				before = now
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s:%s", what, wrong)
			}
		}
	}
	things := db.Collection("things")

	put := func(tx *client.Tx, ids ...string) error {
		for _, id := range ids {
			if err := tx.Collection("things").Put(id, map[string]any{"n": 1}); err != nil {
				return err
			}
		}
		return nil
	}
	for _, ids := range [][]string{{p.home}, {p.home, p.other}} {
		if err := db.Transact(ctx, func(tx *client.Tx) error { return put(tx, ids...) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Transact(ctx, func(tx *client.Tx) error { _, err := tx.Collection("things").Get(ctx, p.home); return err }, client.ReadOnly()); err != nil {
		t.Fatal(err)
	}
	moved("three commits", map[string]float64{
		"idb_transactions_total one_group": 1, "idb_transactions_total several_groups": 1, "idb_transactions_total read_only": 1,
		"idb_transactions_total conflict": 0, "idb_transaction_retries_total": 0, "idb_transactions_running": 0, "idb_transactions_prepared": 0,
	})

	attempts := 0
	err := db.Transact(ctx, func(tx *client.Tx) error {
		if _, err := tx.Collection("things").Get(ctx, p.home); err != nil {
			return err
		}
		if attempts++; attempts == 1 {
			if _, err := things.Put(ctx, p.home, map[string]any{"n": 2}); err != nil {
				return err
			}
		}
		return put(tx, p.home)
	})
	if err != nil || attempts != 2 {
		t.Fatalf("%d attempts, %v", attempts, err)
	}
	tx := db.Begin()
	if err := tx.Collection("things").Insert(p.home, map[string]any{}); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Commit(ctx); !errors.Is(err, client.ErrAlreadyExists) {
		t.Fatal(err)
	}
	moved("a conflict and a condition", map[string]float64{
		"idb_transactions_total conflict": 1, "idb_transactions_total condition": 1, "idb_transactions_total one_group": 1, "idb_transaction_retries_total": 1,
	})

	// One that is left behind, and a write that waits for it.
	p.prepare(2 * time.Second)
	moved("one is prepared", map[string]float64{"idb_transactions_prepared": 1, "idb_transaction_oldest_prepared_seconds": some})
	wrote := make(chan error, 1)
	go func() {
		_, err := things.Put(ctx, p.other, map[string]any{})
		wrote <- err
	}()
	moved("a write waits", map[string]float64{"idb_transaction_waiting": 1})
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	moved("it is aborted and resolved", map[string]float64{
		"idb_transactions_prepared": -1, "idb_transaction_waiting": -1, "idb_transaction_wait_seconds_count": some, "idb_transaction_wait_seconds_sum": some,
		"idb_transaction_recoveries_total begun": some, "idb_transaction_recoveries_total aborted": some, "idb_transaction_recoveries_total resolved": some,
	})

	// A lock up front, and a younger one that steps back from it: it holds
	// something itself.
	older, younger := db.Begin(client.TxPriority(10)), db.Begin()
	if _, err := older.Collection("things").GetForUpdate(ctx, p.home); err != nil {
		t.Fatal(err)
	}
	if _, err := younger.Collection("things").GetForUpdate(ctx, p.other); err != nil {
		t.Fatal(err)
	}
	moved("two are locked", map[string]float64{"idb_transaction_locks": 2, "idb_transaction_locks_total": 2})
	if _, err := younger.Collection("things").GetForUpdate(ctx, p.home); !errors.Is(err, client.ErrTxConflict) {
		t.Fatalf("a younger one: %v", err)
	}
	moved("one steps back", map[string]float64{"idb_transaction_stepbacks_total": 1})
	older.Rollback(ctx)
	younger.Rollback(ctx)
}

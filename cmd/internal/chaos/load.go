package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/workload"
)

// LoadOptions shape a load. Zero means the default in every field.
type LoadOptions struct {
	// Clients work on shared documents with every operation; every other
	// workload has a quarter as many. Zero means 8.
	Clients int
	// Workloads by name, see package workload. Nil: all of them.
	Workloads []string
	// Patience is how long one operation may take, retries included. Shorter
	// leaves more outcomes unknown. Zero means 20s.
	Patience time.Duration
	// Pace is how long a client thinks between two operations. Zero: not at all.
	Pace time.Duration
	// Seed makes the choices; zero means 1.
	Seed uint64
}

// Load is every workload at once, with connections of its own.
type Load struct {
	*workload.Load
	url string
	dbs []*client.DB
}

// StartLoad connects and starts the clients. Stop must be called.
func StartLoad(ctx context.Context, url string, o LoadOptions) (_ *Load, err error) {
	if o.Clients == 0 {
		o.Clients = 8
	}
	l := &Load{url: url}
	defer func() {
		if err != nil {
			l.closeAll()
		}
	}()
	// Several connections, so that clients meet different nodes.
	for range 3 {
		db, err := client.Dial(ctx, url)
		if err != nil {
			return nil, err
		}
		l.dbs = append(l.dbs, db)
	}
	ws, err := workload.New(workload.Options{}, o.Workloads...)
	if err != nil {
		return nil, err
	}
	l.Load, err = workload.Start(ctx, l.dbs, workload.LoadOptions{
		Clients: max(1, o.Clients/4), Share: map[string]int{"register": o.Clients},
		Patience: o.Patience, Impatience: 0.01, Pace: o.Pace, Seed: o.Seed,
	}, ws...)
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Stop ends the clients after their operations under way and closes their
// connections. It may be called more than once.
func (l *Load) Stop() {
	l.Load.Stop()
	l.closeAll()
}

func (l *Load) closeAll() {
	for _, db := range l.dbs {
		db.Close()
	}
	l.dbs = nil
}

// Judge reads everything back once the load has stopped and the cluster is
// whole, and decides whether what clients were told is true, and whether
// replicas are equal. pictures is a directory for pictures of what is not
// linearizable, or empty.
func (l *Load) Judge(ctx context.Context, pictures string) (string, error) {
	db, err := client.Dial(ctx, l.url)
	if err != nil {
		return "", err
	}
	defer db.Close()
	verdicts := l.Load.Judge(ctx, db)
	err = workload.Err(verdicts)
	if pictures != "" {
		err = errors.Join(err, draw(verdicts, pictures))
	}
	if diverged := CompareReplicas(ctx, db); diverged != nil {
		err = errors.Join(err, fmt.Errorf("replicas: %w", diverged))
	}
	return workload.Text(verdicts) + "\nreplicas equal", err
}

// draw writes the pictures of anomalies and says where they are.
func draw(verdicts []workload.Verdict, dir string) error {
	var drawn []error
	for _, v := range verdicts {
		for i, a := range v.Anomalies() {
			if len(a.Page) == 0 {
				continue
			}
			path := filepath.Join(dir, fmt.Sprintf("%s-%d.html", v.Workload, i))
			if err := os.WriteFile(path, a.Page, 0o644); err != nil {
				drawn = append(drawn, err)
				continue
			}
			drawn = append(drawn, fmt.Errorf("picture: %s", path))
		}
	}
	return errors.Join(drawn...)
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/urfave/cli/v2"

	"github.com/impossibledb/idb/cmd/internal/node"
)

// shutdownPatience is how long a node may take to hand its leaderships over and
// finish what it has begun. Past it the process ends, which is safe.
const shutdownPatience = 15 * time.Second

func (a *app) nodeCommands() []*cli.Command {
	return []*cli.Command{
		{
			Name: "node", Category: "Start",
			Usage: "run one node of a cluster",
			Description: `Runs a node until SIGTERM or Ctrl-C, which hand its leaderships over and close;
killing it is always safe. A new node waits for idb cluster init; one that
belongs to a cluster takes its place in it again.

Every flag is also a key of the settings file (--config) and a variable: zone,
--zone, IDB_ZONE. A flag wins over a variable, a variable over the file; an
unknown key is an error. docs/configuration.md has more.

Examples:
  idb node --id n1 --data /var/lib/idb --zone a
  idb node --id n2 --data ./n2 --client-addr 127.0.0.1:7410 \
      --peer-addr 127.0.0.1:7411 --http-addr 127.0.0.1:7412
  IDB_ID=n3 idb node --config /etc/idb.yaml`,
			Flags:  nodeFlags(),
			Action: a.node,
		},
		{
			Name: "dev", Category: "Start",
			Usage: "run a cluster in one process, for development",
			Description: `Runs a cluster in this process, formed and ready: one node, or three of which
each is real, with its own directory, log and ports. Every feature works.

Without --data the data is temporary and removed at the end. With --data it
stays, and the same command goes on with it.

Examples:
  idb dev
  idb dev --data ./devdb
  idb dev --nodes 3 --port 17400`,
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "data", Usage: "`DIR`: where the data is", DefaultText: "a temporary one"},
				&cli.IntFlag{Name: "nodes", Usage: "`N`: nodes, 1 or 3", Value: 1},
				&cli.IntFlag{Name: "port", Usage: "`PORT`: first of all ports (peers +1, HTTP +2, next node +10); 0: free ones", Value: 7400},
				&cli.StringFlag{Name: "log-level", Usage: "`LEVEL`: trace, debug, info, warn or error", Value: "error"},
			},
			Action: a.dev,
		},
	}
}

// newLogger writes the log of nodes to standard error.
func (a *app) newLogger(level hclog.Level, asJSON bool) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name: "idb", Level: level, JSONFormat: asJSON, Output: a.Err,
		TimeFormat: "2006-01-02T15:04:05.000Z07:00",
	})
}

func (a *app) node(c *cli.Context) error {
	flags := map[string]string{}
	for _, k := range nodeSettingsTable {
		if c.IsSet(k.key) {
			flags[k.key] = c.String(k.key)
		}
	}
	s, err := loadNodeSettings(settingsSource{flags: flags, environ: a.Environ, file: c.String("config")})
	if err != nil {
		return err
	}
	log := a.newLogger(s.logLevel, s.logJSON)
	if path := a.getenv(node.ClockVariable); path != "" {
		log.Warn("this node's clock is moved on purpose: it is part of a test", "by", path)
		s.Now = node.ClockFile(path)
	}
	n, err := node.Start(c.Context, s.Config, log)
	if err != nil {
		return withCode(exitStart, err)
	}
	select {
	case <-c.Context.Done():
		log.Info("stopping", "node", s.ID)
		return a.shutdown(n)
	case err := <-n.Fatal():
		// No orderly end: what failed may fail it too, and a late write must
		// not land.
		return withCode(exitStopped, fmt.Errorf("node %s stops: %w", s.ID, err))
	}
}

// stopper is a node, or the nodes of a dev cluster.
type stopper interface {
	Shutdown(ctx context.Context) error
	Fatal() <-chan error
}

func (a *app) shutdown(s stopper) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownPatience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(ctx) }()
	select {
	case err := <-done:
		if err != nil && !errors.Is(err, context.Canceled) {
			return withCode(exitStopped, fmt.Errorf("stopping: %w", err))
		}
		return nil
	case err := <-s.Fatal():
		return withCode(exitStopped, fmt.Errorf("while stopping: %w", err))
	}
}

func (a *app) dev(c *cli.Context) (err error) {
	nodes, port := c.Int("nodes"), c.Int("port")
	if nodes != 1 && nodes != 3 {
		return usagef("idb dev: --nodes %d: choose 1 or 3", nodes)
	}
	if port < 0 || port > 65535-22 {
		return usagef("idb dev: --port %d: choose 1 to %d, or 0 for ports that are free", port, 65535-22)
	}
	level := hclog.LevelFromString(c.String("log-level"))
	if level == hclog.NoLevel {
		return usagef("idb dev: --log-level %q: choose trace, debug, info, warn or error", c.String("log-level"))
	}
	dir, kept := c.String("data"), "kept"
	if dir == "" {
		kept = "temporary, removed at the end"
		if dir, err = os.MkdirTemp("", "idb-dev."); err != nil {
			return withCode(exitStart, fmt.Errorf("no temporary directory: %w (give --data DIR)", bare(err)))
		}
		defer os.RemoveAll(dir)
	}
	started := time.Now()
	d, err := node.StartDev(c.Context, node.DevConfig{Dir: dir, Nodes: nodes, Port: port}, a.newLogger(level, false))
	if err != nil {
		return withCode(exitStart, err)
	}
	addrs := strings.Join(d.Addrs(), ",")
	a.say("idb dev: ready in %.1f s: %s, data in %s (%s)", time.Since(started).Seconds(), plural(nodes, "node"), dir, kept)
	a.say("")
	if addrs != node.DefaultClientAddr {
		a.say("  export IDB_ADDR=%s", addrs)
	}
	a.say(`  idb put users ada '{"name":"Ada"}'     in another terminal; clients connect to %s`, addrs)
	a.say("  Ctrl-C ends it")
	select {
	case <-c.Context.Done():
		return a.shutdown(d)
	case err := <-d.Fatal():
		return withCode(exitStopped, err)
	}
}

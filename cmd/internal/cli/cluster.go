package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

const (
	initPatience   = time.Minute
	statusPatience = 2 * time.Second // it answers within two seconds, also when nodes are down
	waitPoll       = 200 * time.Millisecond
)

func (a *app) clusterCommands() []*cli.Command {
	return []*cli.Command{{
		Name: "cluster", Category: "Start",
		Usage: "form a cluster and look at it",
		Description: `Examples:
  idb cluster init --nodes h1:7400,h2:7400,h3:7400
  idb cluster status`,
		Subcommands: []*cli.Command{a.clusterInit(), a.clusterStatus(), a.clusterLeaders(), a.clusterSettings()},
	}}
}

// outputFlag is -o; what the plain form is called differs.
func outputFlag(def string) cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FORMAT`: " + def + " or json", Value: def}
}

func outputFormat(c *cli.Context, allowed ...string) (string, error) {
	v := c.String("output")
	for _, a := range allowed {
		if v == a {
			return v, nil
		}
	}
	return "", usagef("%s: --output %q: choose %s", c.Command.HelpName, v, strings.Join(allowed, " or "))
}

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (a *app) clusterInit() *cli.Command {
	return &cli.Command{
		Name:  "init",
		Usage: "form a cluster out of running nodes",
		Description: `Forms a cluster: gives the nodes a common identity, makes the shard groups and
spreads their replicas and leaders over the nodes, and cuts the key space into
partitions. Waits until every node answers.

It may be interrupted anywhere and repeated: it goes on where it was. A cluster
that exists is left alone, and that is said.

The number of partitions is a prime and can never be changed; the number of
shard groups is how many leaders share the writes. --nodes are client addresses.
--leaders is explained by idb cluster leaders --help, which changes it later.

Examples:
  idb cluster init --nodes 127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420
  idb cluster init --nodes h1:7400,h2:7400,h3:7400 --shards 16 --partitions 1021
  idb cluster init --nodes h1:7400,h2:7400,h3:7400 --leaders together`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "nodes", Usage: "`HOST:PORT,...`: all nodes, by their client addresses"},
			&cli.UintFlag{Name: "shards", Usage: "`N`: shard groups", Value: 8},
			&cli.UintFlag{Name: "replicas", Usage: "`N`: replicas of every shard group", DefaultText: "3, or the number of nodes if fewer"},
			&cli.UintFlag{Name: "partitions", Usage: "`PRIME`: number of partitions", Value: 271},
			&cli.StringFlag{Name: "leaders", Usage: "`PLACE`: where leaders should be, spread or together", Value: client.LeadersSpread.String()},
			&cli.DurationFlag{Name: "timeout", Usage: "`DURATION`: when to give up (IDB_TIMEOUT)", DefaultText: initPatience.String()},
			outputFlag("text"),
		},
		Action: a.clusterInitAction,
	}
}

func (a *app) clusterInitAction(c *cli.Context) error {
	format, err := outputFormat(c, "text", "json")
	if err != nil {
		return err
	}
	nodes, err := addressList(c.String("nodes"))
	if err != nil {
		return usagef("idb cluster init: --nodes: %w", err)
	}
	req := client.InitRequest{Nodes: nodes, Shards: uint32(c.Uint("shards")), Replicas: uint32(c.Uint("replicas")), Partitions: uint32(c.Uint("partitions"))}
	if !c.IsSet("replicas") {
		req.Replicas = uint32(min(3, len(nodes)))
	}
	if req.Leaders, err = wire.ParseLeaders(c.String("leaders")); err != nil {
		return usagef("idb cluster init: --leaders %w", err)
	}
	limit, err := a.timeout(c, initPatience)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, limit)
	defer cancel()
	if err := a.waitForNodes(ctx, nodes); err != nil {
		return err
	}
	db, err := client.Dial(ctx, strings.Join(nodes, ","), client.WithName(clientName))
	if err != nil {
		return err
	}
	defer db.Close()
	reply, err := db.InitCluster(ctx, req)
	if err != nil {
		return err
	}
	if format == "json" {
		return a.printJSON(reply)
	}
	t := reply.Topology
	verb := "formed"
	if reply.Resumed {
		verb = "completed (an earlier init was interrupted)"
	}
	_, err = fmt.Fprintf(a.out, "cluster %s %s: %s, %s, %s, leaders %s\n", reply.ClusterID, verb,
		plural(len(t.Nodes), "node"), plural(shardGroups(t), "shard group"), plural(len(t.Owners), "partition"), t.Leaders)
	return err
}

func shardGroups(t wire.Topology) (n int) {
	for _, g := range t.Groups {
		if g.ID != 0 {
			n++
		}
	}
	return n
}

// addressList reads "h1:p1,h2:p2".
func addressList(list string) (out []string, err error) {
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		if s == "" {
			continue
		}
		host, port, err := net.SplitHostPort(s)
		if err != nil || host == "" || port == "" {
			return nil, fmt.Errorf("%q is not HOST:PORT", s)
		}
		for _, other := range out {
			if other == s {
				return nil, fmt.Errorf("%s is named twice", s)
			}
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, errors.New("name at least one node (HOST:PORT,HOST:PORT,HOST:PORT; client addresses)")
	}
	return out, nil
}

// waitForNodes waits until every address takes connections: init is often
// typed, or scripted, right after the nodes were started.
func (a *app) waitForNodes(ctx context.Context, addrs []string) error {
	var dialer net.Dialer
	said := false
	for _, addr := range addrs {
		for {
			attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
			conn, err := dialer.DialContext(attempt, "tcp", addr)
			cancel()
			if err == nil {
				conn.Close()
				break
			}
			if ctx.Err() != nil {
				return withCode(exitUnavailable, fmt.Errorf("node %s does not answer: %s (is it running? is this its client address?)", addr, dialText(err)))
			}
			if !said {
				a.say("waiting for %s", addr)
				said = true
			}
			if err := pause(ctx, waitPoll); err != nil {
				return withCode(exitUnavailable, fmt.Errorf("node %s does not answer: %s (is it running? is this its client address?)", addr, dialText(err)))
			}
		}
	}
	return nil
}

// dialText is the end of a dial error: "connection refused".
func dialText(err error) string {
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Err != nil {
		err = op.Err
	}
	s := err.Error()
	if i := strings.LastIndex(s, ": "); i >= 0 {
		s = s[i+2:]
	}
	return s
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (a *app) clusterStatus() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show nodes, groups, leaders, lag and documents",
		Description: `Shows every node and every group: leader, term, applied log index, partitions,
documents, and how many log entries each replica is behind. Nodes that do not
answer within a second are shown as down; the answer comes within two.

With --check the exit code is 7 unless every node is ready and every group has
a leader. With --wait it looks again until that is so.

Examples:
  idb cluster status
  idb cluster status -o json | jq '.groups[] | {name, leader, documents}'
  idb cluster status --check --wait 30s        # in a script, after a start`,
		Flags: clientFlags(
			outputFlag("table"),
			&cli.BoolFlag{Name: "check", Usage: "exit with 7 when something is wrong"},
			&cli.DurationFlag{Name: "wait", Usage: "`DURATION`: look again until nothing is wrong", DefaultText: "not at all"},
		),
		Action: a.clusterStatusAction,
	}
}

func (a *app) clusterStatusAction(c *cli.Context) error {
	format, err := outputFormat(c, "table", "json")
	if err != nil {
		return err
	}
	limit, err := a.timeout(c, statusPatience)
	if err != nil {
		return err
	}
	until := time.Now().Add(c.Duration("wait"))
	var view statusView
	for {
		ctx, cancel := context.WithTimeout(c.Context, limit)
		view, err = a.status(ctx, c)
		cancel()
		if err == nil && len(view.Problems) == 0 || !time.Now().Before(until) {
			break
		}
		if err := pause(c.Context, waitPoll); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	if format == "json" {
		err = a.printJSON(view)
	} else {
		err = view.writeTable(a.out)
	}
	if err == nil && c.Bool("check") && len(view.Problems) > 0 {
		return withCode(exitUnavailable, fmt.Errorf("cluster status: %s", strings.Join(view.Problems, "; ")))
	}
	return err
}

// status asks the cluster once.
func (a *app) status(ctx context.Context, c *cli.Context) (statusView, error) {
	db, err := a.dial(ctx, c)
	if err != nil {
		return statusView{}, err
	}
	defer db.Close()
	s, err := db.Status(ctx)
	if err != nil {
		return statusView{}, err
	}
	return newStatusView(*s), nil
}

func (a *app) clusterLeaders() *cli.Command {
	return &cli.Command{
		Name: "leaders", ArgsUsage: "PLACE",
		Usage: "change where the leaders of shard groups should be",
		Description: `PLACE is one of

  spread    every node a share of the leaders, as far as replicas allow. Each
            node carries a part of the reads and writes; one that is lost stops
            its part of the groups until they have elected others. Transactions
            over several groups go over the network to their leaders.
  together  leaders on as few nodes as possible: on one, if it has a replica of
            every group. Transactions over several groups stay within that node
            and cost less; but it carries all reads and writes, and if it is
            lost every group stops until it has elected another leader.

Nodes hand leaderships over one after the other, while clients go on working; a
group that is being handed over takes no writes for that moment. A node that is
down or behind gets its leaderships when it is back; until then other nodes
lead, as elections left them. --wait waits for that.

Examples:
  idb cluster leaders together
  idb cluster leaders spread --wait 30s`,
		Flags: clientFlags(
			outputFlag("text"),
			&cli.DurationFlag{Name: "wait", Usage: "`DURATION`: until all leaders are there; exit with 7 if they are not", DefaultText: "not at all"},
		),
		Action: a.clusterLeadersAction,
	}
}

func (a *app) clusterLeadersAction(c *cli.Context) error {
	format, err := outputFormat(c, "text", "json")
	if err != nil {
		return err
	}
	place, err := wire.ParseLeaders(c.Args().First())
	if err != nil {
		return usagef("idb cluster leaders: %w", err)
	}
	var t *client.Topology
	err = a.withDB(c, func(ctx context.Context, db *client.DB) (err error) {
		t, err = db.SetLeaders(ctx, place)
		return err
	})
	if err != nil {
		return err
	}
	if err := a.awaitLeaders(c, place); err != nil {
		return err
	}
	view := newLeadersView(*t)
	if format == "json" {
		return a.printJSON(view)
	}
	_, err = fmt.Fprintln(a.out, view)
	return err
}

// awaitLeaders waits, as long as --wait says, until leaders are where they
// should be.
func (a *app) awaitLeaders(c *cli.Context, place client.Leaders) error {
	until := time.Now().Add(c.Duration("wait"))
	for c.IsSet("wait") {
		ctx, cancel := context.WithTimeout(c.Context, statusPatience)
		view, err := a.status(ctx, c)
		cancel()
		away := view.away()
		if err == nil && len(away) == 0 {
			return nil
		}
		if !time.Now().Before(until) {
			if err != nil {
				return err
			}
			return withCode(exitUnavailable, fmt.Errorf("leaders should be %s now, but after %v %s (they go on moving; idb cluster status shows them)",
				place, c.Duration("wait"), strings.Join(away, ", ")))
		}
		if err := pause(c.Context, waitPoll); err != nil {
			return err
		}
	}
	return nil
}

// leadersView says who should lead what. It is also its JSON.
type leadersView struct {
	Leaders   client.Leaders      `json:"leaders"`
	Preferred map[string][]string `json:"preferred"` // node → groups
}

func newLeadersView(t wire.Topology) leadersView {
	v := leadersView{Leaders: t.Leaders, Preferred: map[string][]string{}}
	for _, g := range t.Groups {
		v.Preferred[g.Preferred] = append(v.Preferred[g.Preferred], placement.GroupID(g.ID).String())
	}
	return v
}

// String is a line for eyes.
func (v leadersView) String() string {
	var shares []string
	for _, n := range slices.Sorted(maps.Keys(v.Preferred)) {
		shares = append(shares, fmt.Sprintf("%s on %s", plural(len(v.Preferred[n]), "shard group"), n))
	}
	return fmt.Sprintf("leaders should be %s now: %s", v.Leaders, strings.Join(shares, ", "))
}

func (a *app) clusterSettings() *cli.Command {
	return &cli.Command{
		Name:  "settings",
		Usage: "show or change the settings of the whole cluster",
		Description: `Without flags shows the settings, as JSON. With flags changes them, on every
node at once, and shows the result.

Examples:
  idb cluster settings
  idb cluster settings --explicit-collections     # writes create no collections
  idb cluster settings --retention 24h            # default for superseded versions`,
		Flags: clientFlags(
			&cli.BoolFlag{Name: "explicit-collections", Usage: "refuse writes to collections that were not created"},
			&cli.DurationFlag{Name: "retention", Usage: "`DURATION`: how long superseded versions are kept by default"},
		),
		Action: func(c *cli.Context) error {
			if c.IsSet("retention") && c.Duration("retention") < time.Second {
				return usagef("idb cluster settings: --retention %v: want 1s or more", c.Duration("retention"))
			}
			return a.withDB(c, func(ctx context.Context, db *client.DB) error {
				set, err := db.Settings(ctx)
				if err != nil {
					return err
				}
				if c.IsSet("explicit-collections") || c.IsSet("retention") {
					set.RetentionSeconds = uint64(c.Duration("retention") / time.Second) // 0: unchanged
					if c.IsSet("explicit-collections") {
						set.ExplicitCollections = c.Bool("explicit-collections")
					}
					if set, err = db.SetSettings(ctx, set); err != nil {
						return err
					}
				}
				return a.line(map[string]any{"explicitCollections": set.ExplicitCollections, "retentionSeconds": set.RetentionSeconds})
			})
		},
	}
}

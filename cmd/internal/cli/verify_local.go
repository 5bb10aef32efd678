package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/cmd/internal/chaos"
	"github.com/impossibledb/idb/cmd/internal/check"
	"github.com/impossibledb/idb/cmd/internal/history"
	"github.com/impossibledb/idb/cmd/internal/node"
	"github.com/impossibledb/idb/cmd/internal/report"
)

const (
	localNodes  = 5
	localShards = 6
	localStart  = time.Minute
	// localPrefix begins the names of the directories of throw-away clusters.
	localPrefix = "idb-verify-local."
)

// local reads the flags of a throw-away cluster.
func (f *verifyFlags) local(c *cli.Context) error {
	if !c.Bool("local") {
		for _, name := range []string{"nodes", "faults"} {
			if c.IsSet(name) {
				return usagef("idb verify: --%s goes with --local", name)
			}
		}
		return nil
	}
	for _, name := range []string{"addr", "clean"} {
		if c.IsSet(name) {
			return usagef("idb verify: --%s does not go with --local, which starts a cluster of its own", name)
		}
	}
	if f.nodes = localNodes; c.IsSet("nodes") {
		f.nodes = c.Int("nodes")
	}
	if f.nodes < 3 || f.nodes > 9 {
		return usagef("idb verify: --nodes %d: choose 3 to 9", f.nodes)
	}
	switch v := strings.ReplaceAll(c.String("faults"), " ", ""); v {
	case "", "all":
		f.faults = slices.Clone(chaos.Kinds)
	case "none":
	default:
		f.asked = true
		for kind := range strings.SplitSeq(v, ",") {
			if !slices.Contains(chaos.Kinds, kind) {
				hint := ""
				if best := nearest(kind, chaos.Kinds); best != "" {
					hint = ", did you mean " + best + "?"
				}
				return usagef("idb verify: --faults: there is no kind %q%s (there are %s; or all, or none)", kind, hint, strings.Join(chaos.Kinds, ", "))
			}
			if !slices.Contains(f.faults, kind) {
				f.faults = append(f.faults, kind)
			}
		}
	}
	return nil
}

// verifyLocal runs against a throw-away cluster, in namespaces if it may.
func (a *app) verifyLocal(ctx context.Context, f verifyFlags) error {
	why := error(nil)
	if !chaos.Isolated() {
		var code int
		if code, why = chaos.Isolate(ctx, a.Args, a.In, a.Out, a.Err); why == nil {
			if code == exitOK {
				return nil
			}
			return &saidError{code}
		}
	}
	site := chaos.Loopback()
	if chaos.Isolated() {
		n, err := chaos.Namespaces(ctx, f.nodes)
		if err != nil {
			return withCode(exitStart, fmt.Errorf("verify: the namespaces' network cannot be made: %w", err))
		}
		site = n
	}
	dir, lock, err := localDirectory()
	if err != nil {
		_ = site.Close()
		return withCode(exitStart, err)
	}
	defer lock.Close()
	keep, err := a.verifyIn(ctx, f, site, dir, why)
	if keep {
		_ = os.Remove(filepath.Join(dir, localLock)) // a later run leaves it alone
		a.say("verify: the nodes' logs are kept in %s", dir)
		return err
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// verifyIn starts the cluster, breaks it and judges. keep says that the
// directory is worth looking at.
func (a *app) verifyIn(ctx context.Context, f verifyFlags, site chaos.Site, dir string, why error) (keep bool, err error) {
	self, err := os.Executable()
	if err != nil {
		_ = site.Close()
		return false, err
	}
	_, network := site.Network()
	a.say("verify: starting %s: %s", plural(f.nodes, "node"), network)
	if why != nil {
		a.say("verify: no namespaces: %v", why)
	}
	o := chaos.Options{
		Binary: self, Dir: dir, Nodes: f.nodes, Shards: localShards, Replicas: 3, Site: site,
		Clocks: slices.Contains(f.faults, chaos.ClockKind), NodeArgs: []string{"--log-level", "info"},
	}
	if slices.Contains(f.faults, chaos.Disk) {
		o.SmallDisks = 2
	}
	starting, cancel := context.WithTimeout(ctx, localStart)
	c, err := chaos.Start(starting, o)
	cancel()
	if err != nil {
		_ = site.Close()
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		return true, withCode(exitStart, fmt.Errorf("verify: the cluster does not start: %w", err))
	}
	defer c.Close()
	kinds, left, err := a.possible(c, f)
	if err != nil {
		return false, err
	}
	if f.Seed == 0 {
		f.Seed = uint64(time.Now().UnixNano())
	}
	if len(kinds) > 0 {
		f.Breaker = chaos.NewBreaker(c, kinds, f.Seed)
	}
	if o.Clocks {
		// A clock that was fast for a moment makes younger request IDs expire:
		// refusals, which docs/operations.md promises, and no anomaly.
		f.Tolerate = []client.Code{wire.CodeOutcomeExpired}
	}
	f.AtRest = atRest
	f.Dial = func(ctx context.Context) (*client.DB, error) {
		ctx, cancel := context.WithTimeout(ctx, f.Patience)
		defer cancel()
		return client.Dial(ctx, c.Addrs(), client.WithName(clientName), client.WithTimeout(f.Patience))
	}
	out, err := a.runVerify(ctx, f.Options)
	if err != nil {
		return ctx.Err() == nil, err
	}
	faults := "none"
	if len(kinds) > 0 {
		faults = strings.Join(kinds, ", ")
	}
	out.Facts = append([]report.Fact{
		{Name: "Cluster", Value: fmt.Sprintf("thrown away: %d nodes, %d shard groups of 3 replicas", f.nodes, localShards)},
		{Name: "Network", Value: network},
		{Name: "Faults", Value: strings.Join(append([]string{faults}, left...), "; ")},
		{Name: "Program", Value: "idb " + node.Version},
	}, out.Facts...)
	err = a.tellVerdict(f, out)
	return err != nil, err
}

// possible are the kinds of faults that this cluster can be hurt by.
func (a *app) possible(c *chaos.Cluster, f verifyFlags) (kinds, left []string, err error) {
	for _, kind := range f.faults {
		can, why := c.Can(kind)
		switch {
		case can:
			kinds = append(kinds, kind)
		case f.asked:
			return nil, nil, usagef("idb verify: --faults %s is not possible here: %s", kind, why)
		default:
			left = append(left, fmt.Sprintf("no %s: %s", kind, why))
			a.say("verify: no %s faults: %s", kind, why)
		}
	}
	return kinds, left, nil
}

// atRest compares the replicas of a cluster that is whole.
func atRest(ctx context.Context, db *client.DB) []history.Verdict {
	v := history.Verdict{Checker: "replicas and invariants"}
	r, err := check.Run(ctx, db, check.Options{RateKiB: 1 << 20, Parallel: 4})
	if err != nil {
		v.Judged = "nothing"
		v.Anomalies = []history.Anomaly{{Name: "unreadable", Text: fmt.Sprintf("replicas could not be compared: %v", err)}}
		return []history.Verdict{v}
	}
	var documents, versions uint64
	for _, g := range r.Groups {
		documents += g.Documents
		versions += g.Versions
	}
	v.Judged = fmt.Sprintf("%d groups, %d documents in %d versions, compared row by row", len(r.Groups), documents, versions)
	for _, f := range r.All() {
		if !f.Warning {
			v.Anomalies = append(v.Anomalies, history.Anomaly{Name: f.Kind, Text: f.String()})
		}
	}
	for _, text := range r.Incompletes() {
		v.Anomalies = append(v.Anomalies, history.Anomaly{Name: "not compared", Text: text})
	}
	return []history.Verdict{v}
}

// localLock is a file that is locked while a run uses the directory; a directory
// without it was kept for somebody.
const localLock = "LOCK"

// localDirectory makes a directory for a throw-away cluster, and removes those
// of runs that were killed. The lock is to be closed when it is removed.
func localDirectory() (dir string, lock *os.File, err error) {
	old, err := filepath.Glob(filepath.Join(os.TempDir(), localPrefix+"*", localLock))
	if err != nil {
		return "", nil, err
	}
	for _, path := range old {
		if f, err := lockFile(path, os.O_RDWR); err == nil {
			_ = os.RemoveAll(filepath.Dir(path)) // another run may be doing the same
			_ = f.Close()
		}
	}
	if dir, err = os.MkdirTemp("", localPrefix); err != nil {
		return "", nil, fmt.Errorf("no temporary directory: %w", bare(err))
	}
	if lock, err = lockFile(filepath.Join(dir, localLock), os.O_RDWR|os.O_CREATE); err != nil {
		return "", nil, errors.Join(fmt.Errorf("%s: %w", dir, bare(err)), os.RemoveAll(dir))
	}
	return dir, lock, nil
}

// lockFile opens a file and locks it; the end of the process unlocks it too.
func lockFile(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

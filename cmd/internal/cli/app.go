package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/chaos"
	"github.com/impossibledb/idb/cmd/internal/node"
)

// Process is what the command line knows of the process it runs in, so that a
// test can be one.
type Process struct {
	Args    []string // without the program's name
	Environ []string // "NAME=value"
	In      io.Reader
	Out     io.Writer
	Err     io.Writer
}

// app is one run of the command line.
type app struct {
	Process
	out *bufio.Writer // Out, flushed when the command ends
}

// Main runs one command line and answers the exit code. Cancelling ctx is the
// user's Ctrl-C: a node shuts down in order, other commands stop.
func Main(ctx context.Context, p Process) int {
	a := &app{Process: p, out: bufio.NewWriterSize(p.Out, 64<<10)}
	err := a.run(ctx)
	if flushErr := a.out.Flush(); err == nil && flushErr != nil {
		err = fmt.Errorf("standard output: %w", bare(flushErr))
	}
	code := exitCode(err)
	saidNothing := code != exitInterrupted || err != nil && err.Error() == context.Canceled.Error()
	if err != nil && ctx.Err() != nil && code != exitUnknown && code != exitIncomplete && saidNothing {
		err, code = errInterrupted, exitInterrupted
	}
	if said := (*saidError)(nil); err != nil && !errors.As(err, &said) {
		fmt.Fprintln(p.Err, withName(oneLine(err)))
	}
	return code
}

// withName begins a message with who says it, unless it does already.
func withName(message string) string {
	if strings.HasPrefix(message, "idb ") || strings.HasPrefix(message, "idb: ") {
		return message
	}
	return "idb: " + message
}

var errInterrupted = errors.New("interrupted")

func (a *app) run(ctx context.Context) error {
	root := a.root()
	tree := &cli.Command{Name: "idb", Usage: root.Usage, Description: root.Description, Subcommands: root.Commands, Flags: root.Flags}
	if len(a.Args) > 0 && a.Args[0] == completeCommand {
		return a.complete(ctx, tree, a.Args[1:])
	}
	if ran, err := chaos.Stub(a.Args); ran {
		return err
	}
	if len(a.Args) == 1 && a.Args[0] == "--version" {
		return a.version()
	}
	l, err := arrange(tree, a.Args)
	if err != nil {
		return err
	}
	switch {
	case l.help || len(l.path) == 0 && len(a.Args) == 0:
		return writeHelp(a.out, l)
	case len(l.cmd.Subcommands) > 0 && l.cmd.Action == nil:
		return usagef("%s: which command? (%s --help lists them)", l.name(), l.name())
	}
	if err := checkWords(l); err != nil {
		return err
	}
	return root.RunContext(ctx, l.argv())
}

// root is the whole tree. urfave/cli parses and dispatches; help, unknown
// words and errors are ours.
func (a *app) root() *cli.App {
	root := &cli.App{
		// A comma is part of what a flag says, as in --unique country,code.
		DisableSliceFlagSeparator: true,
		Name:                      "idb",
		Usage:                     "the ImpossibleDB document database",
		Description: `One binary: nodes, clusters, documents. Start with a database of your own:

  idb dev                                  a cluster in one process, ready at once
  idb put users ada '{"name":"Ada"}'       in another terminal
  idb get users ada

Documents go to standard output, one JSON object a line; everything else goes
to standard error. Every command explains itself: idb COMMAND --help.`,
		Writer:         io.Discard,
		ErrWriter:      io.Discard,
		HideHelp:       true,
		HideVersion:    true,
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   usageError,
		Commands: slices.Concat(
			a.nodeCommands(),
			a.clusterCommands(),
			a.documentCommands(),
			a.txnCommands(),
			a.collectionCommands(),
			a.transferCommands(),
			a.proofCommands(),
			a.otherCommands(),
		),
	}
	var prepare func(cmds []*cli.Command)
	prepare = func(cmds []*cli.Command) {
		for _, c := range cmds {
			c.HideHelp = true
			c.OnUsageError = usageError
			prepare(c.Subcommands)
		}
	}
	prepare(root.Commands)
	return root
}

// usageError words what urfave/cli found: with flags and words checked before,
// that is a value of the wrong form.
func usageError(c *cli.Context, err error, _ bool) error {
	msg := err.Error()
	if rest, ok := strings.CutPrefix(msg, "invalid value "); ok {
		// invalid value "x" for flag -limit: parse error
		value, rest, _ := strings.Cut(rest, " for flag -")
		flag, why, _ := strings.Cut(rest, ": ")
		why = strings.TrimPrefix(why, "parse error")
		if i := strings.LastIndex(why, ": "); i >= 0 {
			why = why[i+2:]
		}
		want := "wrong form"
		for _, f := range c.Command.Flags {
			if slices.Contains(f.Names(), flag) {
				want = wantOf(f)
			}
		}
		if why == "value out of range" {
			want = why
		}
		return usagef("%s: --%s %s: %s", c.Command.HelpName, flag, value, want)
	}
	return usagef("%s: %s", c.Command.HelpName, msg)
}

func wantOf(f cli.Flag) string {
	switch f.(type) {
	case *cli.BoolFlag:
		return "want true or false"
	case *cli.IntFlag, *cli.Int64Flag, *cli.UintFlag, *cli.Uint64Flag:
		return "want a whole number"
	case *cli.DurationFlag:
		return "want a duration, for example 500ms, 10s or 24h"
	}
	return "wrong form"
}

// checkWords compares the number of words with the command's ArgsUsage:
// "COLLECTION ID [DOCUMENT]" is two or three, "ID..." one or more.
func checkWords(l line) error {
	least, most := 0, 0
	var missing string
	for w := range strings.FieldsSeq(l.cmd.ArgsUsage) {
		optional := strings.HasPrefix(w, "[")
		if !optional {
			least++
			if least > len(l.words) && missing == "" {
				missing = strings.TrimSuffix(w, "...")
			}
		}
		most++
		if strings.HasSuffix(strings.TrimSuffix(w, "]"), "...") {
			most = 1 << 20
		}
	}
	usage := strings.TrimSpace(l.name() + " " + l.cmd.ArgsUsage)
	switch {
	case missing != "":
		return usagef("%s: %s is missing (usage: %s)", l.name(), missing, usage)
	case len(l.words) > most:
		return usagef("%s: %q is one word too many (usage: %s; quote a word with spaces)", l.name(), l.words[most], usage)
	}
	return nil
}

// getenv is a variable of the process.
func (a *app) getenv(name string) string {
	for _, e := range a.Environ {
		if n, v, _ := strings.Cut(e, "="); n == name {
			return v
		}
	}
	return ""
}

// say writes a line for eyes.
func (a *app) say(format string, args ...any) {
	fmt.Fprintf(a.Err, format+"\n", args...)
}

// terminal says whether a stream is one, and its width.
func terminal(stream any) (columns int, ok bool) {
	f, isFile := stream.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil || columns < 20 {
		columns = 80
	}
	return columns, true
}

const defaultTimeout = 15 * time.Second

// clientFlags are the flags of every command that talks to a cluster.
func clientFlags(more ...cli.Flag) []cli.Flag {
	return append(more,
		&cli.StringFlag{Name: "addr", Usage: "`HOST:PORT,...`: one or more nodes of the cluster (IDB_ADDR)", DefaultText: node.DefaultClientAddr},
		&cli.DurationFlag{Name: "timeout", Usage: "`DURATION`: when to give up (IDB_TIMEOUT)", DefaultText: defaultTimeout.String()},
	)
}

// addr is the cluster to talk to.
func (a *app) addr(c *cli.Context) string {
	if v := c.String("addr"); v != "" {
		return v
	}
	if v := a.getenv("IDB_ADDR"); v != "" {
		return v
	}
	return node.DefaultClientAddr
}

// timeout is how long a command may take; 0 is no bound.
func (a *app) timeout(c *cli.Context, def time.Duration) (time.Duration, error) {
	if c.IsSet("timeout") {
		if d := c.Duration("timeout"); d > 0 {
			return d, nil
		}
		return 0, usagef("%s: --timeout %v: want more than 0", c.Command.HelpName, c.Duration("timeout"))
	}
	if v := a.getenv("IDB_TIMEOUT"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 {
			return 0, usagef("environment: IDB_TIMEOUT %q is not a duration (for example 10s)", v)
		}
		return d, nil
	}
	return def, nil
}

// withDB runs f with a client of the cluster, within the command's timeout.
func (a *app) withDB(c *cli.Context, f func(ctx context.Context, db *client.DB) error) error {
	limit, err := a.timeout(c, defaultTimeout)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, limit)
	defer cancel()
	db, err := a.dial(ctx, c)
	if err != nil {
		return err
	}
	defer db.Close()
	return f(ctx, db)
}

// withStream is withDB for what may last: the timeout bounds each request.
func (a *app) withStream(c *cli.Context, f func(ctx context.Context, db *client.DB) error) error {
	limit, err := a.timeout(c, defaultTimeout)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, limit)
	db, err := a.dial(ctx, c, client.WithTimeout(limit))
	cancel()
	if err != nil {
		return err
	}
	defer db.Close()
	return f(c.Context, db)
}

const (
	// clientName is how the command line presents itself to servers.
	clientName = "idb-cli"
	// dialPatience is how long a command without a timeout of its own looks for
	// a first node: somebody is waiting at a prompt.
	dialPatience = 3 * time.Second
)

// dial connects. The caller closes.
func (a *app) dial(ctx context.Context, c *cli.Context, opts ...client.Option) (*client.DB, error) {
	if !c.IsSet("timeout") && a.getenv("IDB_TIMEOUT") == "" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, dialPatience)
		defer cancel()
	}
	db, err := client.Dial(ctx, a.addr(c), append(opts, client.WithName(clientName))...)
	if err == nil {
		return db, nil
	}
	if exitCode(err) == exitFault { // the address itself: Dial answers a plain error
		return nil, usagef("%s", strings.TrimPrefix(err.Error(), "client: "))
	}
	if c.String("addr") == "" && a.getenv("IDB_ADDR") == "" {
		err = fmt.Errorf("%w; --addr or IDB_ADDR names another cluster, idb dev starts one here", err)
	}
	return nil, err
}

func (a *app) version() error {
	_, err := fmt.Fprintf(a.out, "idb %s %s/%s %s\n", node.Version, runtime.GOOS, runtime.GOARCH, runtime.Version())
	return err
}

func (a *app) otherCommands() []*cli.Command {
	return []*cli.Command{
		a.completionCommand(),
		{
			Name: "version", Category: "Other",
			Usage: "print the version",
			Description: `Prints the version of this idb, its platform and the Go it was built with.

Examples:
  idb version`,
			Action: func(*cli.Context) error { return a.version() },
		},
	}
}

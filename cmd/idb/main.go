// Command idb is ImpossibleDB: node, cluster administration and document
// access in one binary. See idb --help, or docs/cli.md.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/impossibledb/idb/cmd/internal/cli"
)

func main() {
	coarseTimers() // before signals are listened to: it may start the program anew
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks; the second ends the process at once, which is
	// always safe.
	context.AfterFunc(ctx, stop)
	os.Exit(cli.Main(ctx, cli.Process{
		Args:    os.Args[1:],
		Environ: os.Environ(),
		In:      os.Stdin,
		Out:     os.Stdout,
		Err:     os.Stderr,
	}))
}

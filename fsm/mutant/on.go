//go:build mutants

package mutant

import (
	"fmt"
	"os"
	"slices"
)

// Enabled says whether this program can be broken.
const Enabled = true

// Variable names the mistake that this process makes.
const Variable = "IDB_TEST_MUTANT"

var active = func() Name {
	n := Name(os.Getenv(Variable))
	if n != "" && !slices.Contains(Names(), n) {
		fmt.Fprintf(os.Stderr, "%s=%s: there is no such mutant; there are %v\n", Variable, n, Names())
		os.Exit(2)
	}
	return n
}()

// On says whether this process makes that mistake.
func On(n Name) bool { return n == active }

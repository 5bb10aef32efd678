package cli

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/impossibledb/idb/placement"
)

// line is a command line taken apart: which command, which flags, which words.
type line struct {
	path  []string     // names from the root's first subcommand down
	cmd   *cli.Command // the command meant; the root for an empty path
	flags []string     // "--name=value", or "--name" of a switch
	words []string     // positional arguments
	help  bool         // --help, or `idb help …`
}

// arrange reads words (without the program's name) with the tree of commands
// in hand. Flags may stand anywhere before "--"; a word that starts with "-"
// and is no flag is an error that suggests the nearest flag.
func arrange(root *cli.Command, args []string) (line, error) {
	l := line{cmd: root}
	var flags []flagUse
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			l.words = append(l.words, args[i+1:]...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			if l.descend(arg) {
				continue
			}
			l.words = append(l.words, arg)
			continue
		}
		name, value, hasValue := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
		if name == "help" || name == "h" {
			l.help = true
			continue
		}
		// A flag before its command (idb --addr X get …) is looked up in the
		// whole tree; whether a flag takes a value is the same everywhere.
		takes, known := takesValue(l.cmd, name)
		if !known {
			return l, unknownFlag(l, arg, name)
		}
		if takes && !hasValue {
			if i+1 == len(args) {
				return l, usagef("%s: flag --%s needs a value", l.name(), name)
			}
			i++
			value, hasValue = args[i], true
		}
		flags = append(flags, flagUse{name, value, hasValue})
	}
	if len(l.cmd.Subcommands) > 0 && len(l.words) > 0 {
		if l.help {
			return l, nil
		}
		return l, unknownCommand(l)
	}
	for _, f := range flags {
		if !hasFlag(l.cmd, f.name) {
			if l.help {
				continue
			}
			if len(l.cmd.Subcommands) > 0 && l.cmd.Action == nil {
				continue // reported as a missing command
			}
			return l, unknownFlag(l, "--"+f.name, f.name)
		}
		s := "--" + f.name
		if f.hasValue {
			s += "=" + f.value
		}
		l.flags = append(l.flags, s)
	}
	return l, nil
}

type flagUse struct {
	name, value string
	hasValue    bool
}

// descend steps into a subcommand, if word names one. The word "help" steps
// nowhere: it asks for the help of what follows.
func (l *line) descend(word string) bool {
	if len(l.cmd.Subcommands) == 0 || len(l.words) > 0 {
		return false
	}
	if word == "help" {
		l.help = true
		return true
	}
	sub := l.cmd.Command(word)
	if sub == nil {
		return false
	}
	l.cmd, l.path = sub, append(l.path, sub.Name)
	return true
}

// name is the command as it is typed: "idb cluster init".
func (l line) name() string {
	return strings.Join(append([]string{"idb"}, l.path...), " ")
}

// argv is the command line as urfave/cli can parse it.
func (l line) argv() []string {
	out := append([]string{"idb"}, l.path...)
	out = append(out, l.flags...)
	if len(l.words) > 0 {
		out = append(append(out, "--"), l.words...)
	}
	return out
}

func hasFlag(cmd *cli.Command, name string) bool {
	return slices.ContainsFunc(cmd.Flags, func(f cli.Flag) bool { return hasName(f, name) })
}

func hasName(f cli.Flag, name string) bool { return slices.Contains(f.Names(), name) }

// takesValue finds a flag in cmd or anywhere below it and says whether it
// takes a value. A test keeps that the same for every use of a name.
func takesValue(cmd *cli.Command, name string) (takes, known bool) {
	for _, f := range cmd.Flags {
		if hasName(f, name) {
			d, ok := f.(cli.DocGenerationFlag)
			return !ok || d.TakesValue(), true
		}
	}
	for _, sub := range cmd.Subcommands {
		if takes, known = takesValue(sub, name); known {
			return takes, true
		}
	}
	return false, false
}

func unknownFlag(l line, shown, name string) error {
	var names []string
	for _, f := range l.cmd.Flags {
		for _, n := range f.Names() {
			if len(n) > 1 {
				names = append(names, n)
			}
		}
	}
	if best := nearest(name, names); best != "" {
		return usagef("%s: unknown flag %s, did you mean --%s? (%s --help lists them; a word that starts with - goes after --)", l.name(), shown, best, l.name())
	}
	return usagef("%s: unknown flag %s (%s --help lists them; a word that starts with - goes after --)", l.name(), shown, l.name())
}

func unknownCommand(l line) error {
	var names []string
	for _, c := range l.cmd.Subcommands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	if best := nearest(l.words[0], names); best != "" {
		return usagef("%s: unknown command %q, did you mean %s %s? (%s --help lists them)", l.name(), l.words[0], l.name(), best, l.name())
	}
	return usagef("%s: unknown command %q (%s --help lists them)", l.name(), l.words[0], l.name())
}

// nearest is the candidate within an edit distance worth suggesting, or "".
func nearest(word string, candidates []string) string {
	best, bound := "", 1+len(word)/3
	for _, c := range candidates {
		if d := placement.Edits(word, c); d <= bound {
			best, bound = c, d-1
		}
	}
	return best
}

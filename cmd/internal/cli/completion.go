package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/impossibledb/idb/client"
	"github.com/impossibledb/idb/cmd/internal/chaos"
	"github.com/impossibledb/idb/cmd/internal/node"
	"github.com/impossibledb/idb/cmd/internal/workload"
)

// completeCommand is what the completion scripts call: idb __complete -- WORDS,
// the last word being the one under the cursor. It answers one candidate a
// line, with a tab and a description where there is one.
const completeCommand = "__complete"

// completionPatience bounds the question to the cluster for collection names;
// a prompt that hangs is worse than one without names.
const completionPatience = 400 * time.Millisecond

// complete answers the candidates for the last word.
func (a *app) complete(ctx context.Context, tree *cli.Command, words []string) error {
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	if len(words) == 0 {
		words = []string{""}
	}
	cur := words[len(words)-1]
	l := line{cmd: tree}
	addr, open := a.getenv("IDB_ADDR"), "" // open: a flag that waits for its value
	onlyWords := false
	for _, w := range words[:len(words)-1] {
		switch {
		case open != "":
			if open == "addr" {
				addr = w
			}
			open = ""
		case onlyWords:
			l.words = append(l.words, w)
		case w == "--":
			onlyWords = true
		case len(w) > 1 && w[0] == '-':
			name, value, hasValue := strings.Cut(strings.TrimLeft(w, "-"), "=")
			if takes, _ := takesValue(l.cmd, name); takes && !hasValue {
				open = name
			} else if name == "addr" {
				addr = value
			}
		case !l.descend(w):
			l.words = append(l.words, w)
		}
	}
	for _, c := range a.candidates(ctx, l, open, cur, addr, onlyWords) {
		if strings.HasPrefix(c[0], cur) {
			if _, err := fmt.Fprintf(a.out, "%s\t%s\n", c[0], c[1]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *app) candidates(ctx context.Context, l line, open, cur, addr string, onlyWords bool) (out [][2]string) {
	switch {
	case open != "":
		for _, f := range l.cmd.Flags {
			if hasName(f, open) {
				for _, v := range flagValues[f.Names()[0]] {
					out = append(out, [2]string{v, ""})
				}
			}
		}
		return out
	case strings.HasPrefix(cur, "-") && !onlyWords:
		for _, f := range l.cmd.Flags {
			row := flagRow(f)
			out = append(out, [2]string{"--" + f.Names()[0], row[1]})
		}
		return append(out, [2]string{"--help", "explain this command"})
	case len(l.cmd.Subcommands) > 0:
		for _, c := range l.cmd.Subcommands {
			if !c.Hidden {
				out = append(out, [2]string{c.Name, c.Usage})
			}
		}
		return out
	case l.cmd.Name == "completion" && len(l.words) == 0:
		return [][2]string{{"bash", ""}, {"zsh", ""}, {"fish", ""}}
	case l.cmd.Name == "leaders" && len(l.words) == 0:
		return [][2]string{{"spread", "every node a share"}, {"together", "on as few nodes as possible"}}
	case len(l.words) == 0 && strings.HasPrefix(l.cmd.ArgsUsage, "COLLECTION"):
		ctx, cancel := context.WithTimeout(ctx, completionPatience)
		defer cancel()
		for _, name := range collectionNames(ctx, or(addr, node.DefaultClientAddr)) {
			out = append(out, [2]string{name, "collection"})
		}
	}
	return out
}

// collectionNames asks the cluster; a cluster that does not answer has none.
func collectionNames(ctx context.Context, addr string) (names []string) {
	db, err := client.Dial(ctx, addr, client.WithName(clientName))
	if err != nil {
		return nil
	}
	defer db.Close()
	t, err := db.Topology(ctx) // nobody completes a word to wait for an election
	if err != nil {
		return nil
	}
	for _, info := range t.Collections {
		if !info.Dropping {
			names = append(names, info.Name)
		}
	}
	slices.Sort(names)
	return names
}

// flagValues are the values of flags that have few.
var flagValues = map[string][]string{
	"output":     {"table", "json"},
	"log-level":  {"trace", "debug", "info", "warn", "error"},
	"log-format": {"text", "json"},
	"leaders":    {"spread", "together"},
	"nodes":      {"1", "3"},
	"faults":     slices.Concat([]string{"all", "none"}, chaos.Kinds),
	"workload":   workload.Names(),
}

func (a *app) completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Category: "Other", ArgsUsage: "SHELL",
		Usage: "print a completion script for bash, zsh or fish",
		Description: `Prints a script that completes commands, flags and the names of collections
(asked of the cluster that --addr or IDB_ADDR names).

Examples:
  source <(idb completion bash)                    # this shell; or in ~/.bashrc
  idb completion zsh > "${fpath[1]}/_idb"          # zsh, once
  idb completion fish > ~/.config/fish/completions/idb.fish`,
		Action: func(c *cli.Context) error {
			script, ok := completionScripts[c.Args().First()]
			if !ok {
				return usagef("idb completion: no script for %q (bash, zsh or fish)", c.Args().First())
			}
			_, err := a.out.WriteString(script)
			return err
		},
	}
}

// The scripts hand all words to idb. Bash splits words at ":" and "=", so its
// script puts addresses together again.
var completionScripts = map[string]string{
	"bash": `# bash completion for idb
_idb() {
    local i word words=() line
    for ((i = 1; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((${#words[@]})) && { [[ $word == [:=]* ]] || [[ ${COMP_WORDS[i - 1]} == *[:=] ]]; }; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
    done
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("${line%%$'\t'*}")
    done < <(idb __complete -- "${words[@]}" 2>/dev/null)
}
complete -o default -F _idb idb
`,
	"zsh": `#compdef idb
# zsh completion for idb
_idb() {
    local -a described
    local line
    while IFS= read -r line; do
        described+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done < <(idb __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)
    if (( ${#described} )); then
        _describe 'idb' described
    else
        _files
    fi
}
if [[ "${funcstack[1]}" == "_idb" ]]; then
    _idb
else
    compdef _idb idb
fi
`,
	"fish": `# fish completion for idb
function __idb_complete
    set -l words (commandline -opc) (commandline -ct)
    idb __complete -- $words[2..-1] 2>/dev/null
end
complete -c idb -f -a '(__idb_complete)'
complete -c idb -n '__fish_seen_subcommand_from import export put node' -F
`,
}

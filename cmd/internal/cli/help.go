package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

// writeHelp prints the help of the command that l names: what it does, how it
// is typed, the text with its examples, then flags or subcommands.
func writeHelp(w io.Writer, l line) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s - %s\n\nUsage:\n", l.name(), l.cmd.Usage)
	switch {
	case l.cmd.UsageText != "":
		for s := range strings.SplitSeq(l.cmd.UsageText, "\n") {
			fmt.Fprintf(&b, "  %s\n", s)
		}
	case len(l.cmd.Subcommands) > 0:
		fmt.Fprintf(&b, "  %s COMMAND\n", l.name())
	default:
		s := l.name()
		if l.cmd.ArgsUsage != "" {
			s += " " + l.cmd.ArgsUsage
		}
		if len(l.cmd.Flags) > 0 {
			s += " [flags]"
		}
		fmt.Fprintf(&b, "  %s\n", s)
	}
	if l.cmd.Description != "" {
		fmt.Fprintf(&b, "\n%s\n", l.cmd.Description)
	}
	writeCommands(&b, l.cmd.Subcommands)
	if len(l.cmd.Flags) > 0 {
		b.WriteString("\nFlags:\n")
		var rows [][2]string
		for _, f := range l.cmd.Flags {
			rows = append(rows, flagRow(f))
		}
		writeRows(&b, rows)
	}
	if len(l.path) == 0 {
		b.WriteString("\nExit codes:\n")
		var rows [][2]string
		for _, e := range exitTable {
			rows = append(rows, [2]string{fmt.Sprint(e.code), e.text})
		}
		writeRows(&b, rows)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeCommands lists commands under their categories, in the tree's order.
func writeCommands(b *strings.Builder, cmds []*cli.Command) {
	var order []string
	rows := map[string][][2]string{}
	for _, c := range cmds {
		if c.Hidden {
			continue
		}
		if _, ok := rows[c.Category]; !ok {
			order = append(order, c.Category)
		}
		rows[c.Category] = append(rows[c.Category], [2]string{c.Name, c.Usage})
	}
	for _, category := range order {
		title := category
		if title == "" {
			title = "Commands"
		}
		fmt.Fprintf(b, "\n%s:\n", title)
		writeRows(b, rows[category])
	}
}

// flagRow is "--output, -o FORMAT" and what it means. A flag's usage begins with
// its value in backquotes: "`FORMAT`: text or json".
func flagRow(f cli.Flag) [2]string {
	var names []string
	for _, n := range f.Names() {
		dashes := "--"
		if len(n) == 1 {
			dashes = "-"
		}
		names = append(names, dashes+n)
	}
	left := strings.Join(names, ", ")
	d, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return [2]string{left, ""}
	}
	usage := d.GetUsage()
	if rest, ok := strings.CutPrefix(usage, "`"); ok {
		value, after, _ := strings.Cut(rest, "`: ")
		left, usage = left+" "+value, after
	}
	if def := d.GetDefaultText(); d.TakesValue() && def != "" {
		usage += " (default " + strings.Trim(def, `"`) + ")"
	}
	return [2]string{left, usage}
}

// writeRows writes two columns; a row whose left side is long starts its right
// side on the next line.
func writeRows(b *strings.Builder, rows [][2]string) {
	const most = 30
	width := 0
	for _, r := range rows {
		if len(r[0]) <= most {
			width = max(width, len(r[0]))
		}
	}
	for _, r := range rows {
		if len(r[0]) > width {
			fmt.Fprintf(b, "  %s\n  %*s  %s\n", r[0], width, "", r[1])
			continue
		}
		fmt.Fprintf(b, "  %-*s  %s\n", width, r[0], r[1])
	}
}

package wire

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// docs/protocol.md is what others write clients from: its tables must list
// every field of every message in order, every kind, and the true partitions.
func TestProtocolIsDocumented(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "protocol.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, m := range everyMessage() {
		_, section, found := strings.Cut(text, "\n### "+nameOf(m)+"\n")
		if !found {
			t.Errorf("%s has no section", nameOf(m))
			continue
		}
		section, _, _ = strings.Cut(section, "\n## ")
		section, _, _ = strings.Cut(section, "\n### ")
		fields := reflect.TypeOf(m).Elem()
		for i := range fields.NumField() {
			row := fmt.Sprintf("\n| %d | %s | %s |", i, fields.Field(i).Name, documentedType(fields.Field(i)))
			if !strings.Contains(section, row) {
				t.Errorf("%s: no row %q", nameOf(m), row[1:])
			}
		}
		if strings.Contains(section, fmt.Sprintf("\n| %d | ", fields.NumField())) {
			t.Errorf("%s: more rows than fields", nameOf(m))
		}
	}
	for kind := KindHello; kind <= lastClientKind; kind++ {
		name := strings.ReplaceAll(kind.String(), "_", "")
		if !strings.Contains(strings.ToLower(text), fmt.Sprintf("\n| %d | %s | ", kind, name)) {
			t.Errorf("kind %d, %s, is not listed", kind, kind)
		}
	}
	for _, p := range partitionTable {
		row := fmt.Sprintf("| %s | %s | %s | %d | %d |", p.Collection, p.Separator, p.ID, p.Partitions, Partition(p.Collection, p.Separator, p.ID, p.Partitions))
		row = strings.ReplaceAll(row, "  ", " ")
		if !strings.Contains(text, "\n"+row+"\n") {
			t.Errorf("no row %q", row)
		}
	}
	for name, n := range map[string]int{"frame": MaxFrameBytes, "elements": MaxElements, "items": MaxItems, "in flight": MaxInFlight, "ID": MaxIDBytes, "name": MaxCollectionBytes, "list": maxListed} {
		if plain, grouped := fmt.Sprint(n), group3(n); !strings.Contains(text, plain) && !strings.Contains(text, grouped) {
			t.Errorf("the limit of %s, %s, is not told", name, grouped)
		}
	}
	if want := fmt.Sprintf("nests deeper than %d arrays", MaxDepth+envelopeDepth-1); !strings.Contains(text, want) {
		t.Errorf("%q is not told", want)
	}
	codes, err := os.ReadFile(filepath.Join("..", "..", "docs", "errors.md"))
	if err != nil {
		t.Fatal(err)
	}
	for code := range codeNames {
		if !strings.Contains(string(codes), fmt.Sprintf("\n| %d | ", uint16(code))) {
			t.Errorf("code %d, %s, is not in errors.md", uint16(code), code)
		}
	}
}

func documentedType(f reflect.StructField) string {
	if f.Name == "Error" && f.Type.Kind() == reflect.Pointer {
		return "Error or nil"
	}
	switch f.Name {
	case "Now", "Time", "CreatedAt", "UpdatedAt", "AtTime", "Clock":
		return "time"
	case "Body", "Doc":
		if f.Type.Kind() == reflect.Slice {
			return "document"
		}
	}
	switch f.Type.Kind() {
	case reflect.Slice, reflect.Array:
		if f.Type.Elem().Kind() == reflect.Uint8 {
			return "bytes"
		}
		return "[]" + f.Type.Elem().Name()
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return f.Type.Kind().String()
	}
	return f.Type.Name()
}

func group3(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/impossibledb/idb/fsm/vfs"
)

func TestDataDirKeepsIdentity(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	d, err := openDataDir(vfs.OS(), dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	first := d.id
	if first.Incarnation == "" || first.Format != formatVersion {
		t.Fatalf("identity is %+v", first)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err = openDataDir(vfs.OS(), dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.id != first {
		t.Fatalf("reopened: %+v, was %+v", d.id, first)
	}
}

// Every way in which a directory can be the wrong one has a line of its own.
func TestDataDirRefusals(t *testing.T) {
	make1 := func(t *testing.T, dir string) *dataDir {
		d, err := openDataDir(vfs.OS(), dir, "n1")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	tests := []struct {
		name string
		prep func(t *testing.T, dir string)
		node string
		want string
	}{
		{"in use", func(t *testing.T, dir string) {
			d := make1(t, dir)
			t.Cleanup(func() { d.Close() })
		}, "n1", "is in use by another idb process"},
		{"another node's", func(t *testing.T, dir string) { make1(t, dir).Close() }, "n2", `belongs to node "n1", not "n2"`},
		{"foreign", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "photo.jpg"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "n1", `not empty and not an idb directory (it holds "photo.jpg")`},
		{"newer", func(t *testing.T, dir string) {
			d := make1(t, dir)
			d.id.Format = formatVersion + 1
			if err := d.writeJSON(fileIdentity, d.id); err != nil {
				t.Fatal(err)
			}
			d.Close()
		}, "n1", "use a newer idb"},
		{"older", func(t *testing.T, dir string) {
			d := make1(t, dir)
			d.id.Format = formatVersion - 1
			if err := d.writeJSON(fileIdentity, d.id); err != nil {
				t.Fatal(err)
			}
			d.Close()
		}, "n1", fmt.Sprintf("has format %d and this idb", formatVersion-1)},
		{"damaged", func(t *testing.T, dir string) {
			make1(t, dir).Close()
			if err := os.WriteFile(filepath.Join(dir, fileIdentity), []byte("{"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "n1", "IDENTITY file is damaged"},
		{"a file", func(t *testing.T, dir string) {
			if err := os.Remove(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "n1", "cannot be made"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			tt.prep(t, dir)
			d, err := openDataDir(vfs.OS(), dir, tt.node)
			if err == nil {
				d.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error is %q, want it to contain %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("error has more than one line: %q", err)
			}
		})
	}
}

func TestConfigRefusals(t *testing.T) {
	good := Config{ID: "n1", DataDir: "x"}
	tests := []struct {
		name string
		edit func(*Config)
		want string
	}{
		{"no ID", func(c *Config) { c.ID = "" }, "give --id"},
		{"bad ID", func(c *Config) { c.ID = "N 1" }, `node ID "N 1"`},
		{"no directory", func(c *Config) { c.DataDir = "" }, "give --data DIR"},
		{"bad address", func(c *Config) { c.PeerAddr = "localhost" }, `--peer-addr "localhost": want HOST:PORT`},
		{"wildcard", func(c *Config) { c.ClientAddr = "0.0.0.0:1" }, "give --advertise-client-addr"},
		{"wildcard, empty host", func(c *Config) { c.HTTPAddr = ":1" }, "give --advertise-http-addr"},
		{"document limit", func(c *Config) { c.MaxDocumentBytes = 1 << 30 }, "max document size"},
		{"election timeout", func(c *Config) { c.ElectionTimeout = 1 }, "election timeout 1ns"},
	}
	if err := good.withDefaults().validate(); err != nil {
		t.Fatalf("defaults are refused: %v", err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := good
			tt.edit(&c)
			err := c.withDefaults().validate()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error is %v, want it to contain %q", err, tt.want)
			}
		})
	}
}

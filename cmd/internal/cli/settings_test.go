package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSettingsPrecedence(t *testing.T) {
	file := writeFile(t, "idb.yaml", "id: from-file\ndata: /file\nzone: zf # a comment\nregion: rf\nmax-document: 2MiB\nmax-client-conns: 10\n")
	s, err := loadNodeSettings(settingsSource{
		file:    file,
		environ: []string{"IDB_DATA=/env", "IDB_ZONE=ze", "IDB_MAX_DOCUMENT=3MiB", "HOME=/root", "IDB_REGION="},
		flags:   map[string]string{"zone": "zflag", "max-document": "4MiB", "election-timeout": "1s", "log-level": "debug"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"id, from the file", s.ID, "from-file"},
		{"data, a variable over the file", s.DataDir, "/env"},
		{"zone, a flag over both", s.Zone, "zflag"},
		{"region, an empty variable is unset", s.Region, "rf"},
		{"max-document", s.MaxDocumentBytes, 4 << 20},
		{"max-client-conns", s.MaxClientConns, 10},
		{"election-timeout", s.ElectionTimeout, time.Second},
		{"log-level", s.logLevel, hclog.Debug},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %v, want %v", c.what, c.got, c.want)
		}
	}
}

// What 0 turns off is off, and not as if nothing had been said.
func TestReadCacheNone(t *testing.T) {
	for value, want := range map[string]int64{"0": -1, "1MiB": 1 << 20} {
		s, err := loadNodeSettings(settingsSource{flags: map[string]string{"id": "n1", "data": "d", "read-cache": value}})
		if err != nil || s.NewestBytes != want {
			t.Errorf("read-cache %s: %d, %v; want %d", value, s.NewestBytes, err, want)
		}
	}
	if _, err := loadNodeSettings(settingsSource{flags: map[string]string{"id": "n1", "data": "d", "state-cache": "0"}}); err == nil {
		t.Error("a state cache of 0 is accepted")
	}
}

// TestSettingsEveryKey sets every key of the table in each source alone and
// sees that it arrives: a key that is listed and not wired cannot pass.
func TestSettingsEveryKey(t *testing.T) {
	values := map[string]string{"SIZE": "5MiB", "N": "7", "DURATION": "5s", "LEVEL": "error", "FORMAT": "json", "HOST:PORT": "127.0.0.9:1", "NAME": "name-x", "DIR": "/dir-x"}
	base, err := loadNodeSettings(settingsSource{flags: map[string]string{"id": "n1", "data": "d"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range nodeSettingsTable {
		value, ok := values[k.arg]
		if !ok {
			t.Fatalf("%s: no test value for %s", k.key, k.arg)
		}
		rest := map[string]string{"id": "n1", "data": "d"}
		delete(rest, k.key)
		sources := map[string]settingsSource{
			"flag":     {flags: map[string]string{k.key: value}},
			"variable": {flags: rest, environ: []string{variableName(k.key) + "=" + value}},
			"file":     {flags: rest, file: writeFile(t, "idb.yaml", k.key+": "+value+"\n")},
		}
		for n, v := range rest {
			sources["flag"].flags[n] = v
		}
		for name, src := range sources {
			s, err := loadNodeSettings(src)
			if err != nil {
				t.Errorf("%s by %s: %v", k.key, name, err)
			} else if fmt.Sprintf("%+v", s) == fmt.Sprintf("%+v", base) {
				t.Errorf("%s by %s changes nothing", k.key, name)
			}
		}
	}
}

func TestSettingsRefused(t *testing.T) {
	node := map[string]string{"id": "n1", "data": "d"}
	for _, tc := range []struct {
		name    string
		file    string
		environ []string
		flags   map[string]string
		want    string // FILE stands for the file's path
	}{
		{"unknown key in the file", "id: n1\nzonne: z\n", nil, node, `FILE:2: unknown setting "zonne", did you mean "zone"?`},
		{"unknown variable", "", []string{"IDB_ZOEN=z"}, node, `environment: unknown setting IDB_ZOEN, did you mean IDB_ZONE?`},
		{"unknown variable, nothing near", "", []string{"IDB_FROBNICATE=z"}, node, `environment: unknown setting IDB_FROBNICATE (unset it; idb node --help lists the settings)`},
		{"twice in the file", "zone: a\nzone: b\n", nil, node, `FILE:2: zone is set twice (first in line 1)`},
		{"a list", "zone: [a, b]\n", nil, node, `FILE:1: zone: want one value, not a list or a mapping`},
		{"not a mapping", "- a\n- b\n", nil, node, `FILE:1: want lines of the form setting: value`},
		{"not YAML", "zone: a: b: c\n", nil, node, `settings file FILE is not YAML: mapping values are not allowed in this context`},
		{"two documents", "zone: a\n---\nzone: b\n", nil, node, `settings file FILE holds more than one YAML document: keep the first`},
		{"bad size in the file", "\nmax-document: many\n", nil, node, `FILE:2: max-document: "many" is not a size (for example 4096, 64KiB or 1GiB)`},
		{"bad size in a variable", "", []string{"IDB_DISK_RESERVE=-1"}, node, `IDB_DISK_RESERVE: "-1" is not a size (for example 4096, 64KiB or 1GiB)`},
		{"bad duration in a flag", "", nil, map[string]string{"id": "n1", "data": "d", "election-timeout": "5"}, `--election-timeout: "5" is not a duration (for example 300ms or 2s)`},
		{"bad level", "", []string{"IDB_LOG_LEVEL=loud"}, node, `IDB_LOG_LEVEL: "loud" is not a log level (trace, debug, info, warn, error)`},
		{"no name", "", nil, map[string]string{"data": "d"}, `the node has no name (give --id NAME, for example --id n1)`},
		{"no directory", "", nil, map[string]string{"id": "n1"}, `the node has no data directory (give --data DIR)`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			src := settingsSource{environ: tc.environ, flags: tc.flags}
			if tc.file != "" {
				src.file = writeFile(t, "idb.yaml", tc.file)
			}
			_, err := loadNodeSettings(src)
			if err == nil {
				t.Fatal("no error")
			}
			got := err.Error()
			if src.file != "" {
				got = strings.ReplaceAll(got, src.file, "FILE")
			}
			if got != tc.want {
				t.Errorf("\n got  %s\n want %s", got, tc.want)
			}
			if exitCode(err) != exitUsage {
				t.Errorf("exit code %d, want %d", exitCode(err), exitUsage)
			}
		})
	}
}

func TestSettingsFileMissing(t *testing.T) {
	_, err := loadNodeSettings(settingsSource{environ: []string{"IDB_CONFIG=/nonexistent/idb.yaml"}})
	if err == nil || err.Error() != "settings file /nonexistent/idb.yaml cannot be read: no such file or directory" {
		t.Errorf("error %v", err)
	}
}

// TestForeignVariables lets pass what is not ours to judge.
func TestForeignVariables(t *testing.T) {
	for _, name := range []string{
		"IDB_ADDR", "IDB_TIMEOUT",
		"IDB_SERVICE_HOST", "IDB_SERVICE_PORT", "IDB_SERVICE_PORT_CLIENT", "IDB_PORT", "IDB_PORT_7400_TCP", "IDB_PORT_7400_TCP_ADDR",
		"IDB_HEADLESS_SERVICE_HOST", "IDB_HEADLESS_PORT_7401_TCP_PROTO", "IDB_TEST_ANYTHING", "IDBX",
	} {
		if _, err := settingVariables([]string{name + "=x"}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"IDB_HOST", "IDB_PORTS", "IDB_CLIENT_PORT_X", "IDB_"} {
		if _, err := settingVariables([]string{name + "=x"}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestSettingsFileNeverPanics(t *testing.T) {
	for _, s := range []string{"", "#", "---", "null", "~", "&a [*a]", "a: &x {b: *x}", "? [a]\n: b", "\x00", "zone:", "{}", "!!binary x", "zone: *nope"} {
		_, _ = parseSettings("f", []byte(s))
	}
	got, err := parseSettings("f", []byte("zone:\nregion: ~\n"))
	if err != nil || len(got) != 0 {
		t.Errorf("settings without a value: %v, %v; want none", got, err)
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"4096": 4096, "1k": 1024, "1KiB": 1024, "1KB": 1000, "64 MiB": 64 << 20, "2g": 2 << 30, "1TiB": 1 << 40, "10b": 10, "10MB": 10e6,
		"": 0, "0": 0, "-1": 0, "1.5G": 0, "1 XiB": 0, "10iB": 0, "999999999999999T": 0, "KiB": 0,
	} {
		got, err := parseSize(s)
		if got != want && !(want == 0 && err != nil) || want != 0 && err != nil {
			t.Errorf("parseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
}

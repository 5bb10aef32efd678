package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/urfave/cli/v2"
	"gopkg.in/yaml.v3"

	"github.com/impossibledb/idb/cmd/internal/node"
)

// nodeSettings is what `idb node` needs to know.
type nodeSettings struct {
	node.Config
	logLevel hclog.Level
	logJSON  bool
}

// setting is one thing that can be set for a node, in three ways: the key in
// the file, the flag --key, the variable IDB_KEY.
type setting struct {
	key   string
	arg   string // what the value is, for help
	def   string // default, for help
	usage string
	set   func(s *nodeSettings, value string) error
}

// nodeSettingsTable is the one list of settings; flags, variables, file keys,
// help and docs/configuration.md follow it.
var nodeSettingsTable = []setting{
	{"id", "NAME", "", "this node's name in its cluster, for ever: 1 to 32 of a-z, 0-9 and -", text(func(s *nodeSettings) *string { return &s.ID })},
	{"data", "DIR", "", "data directory; one process at a time", text(func(s *nodeSettings) *string { return &s.DataDir })},
	{"client-addr", "HOST:PORT", node.DefaultClientAddr, "where clients connect", text(func(s *nodeSettings) *string { return &s.ClientAddr })},
	{"peer-addr", "HOST:PORT", node.DefaultPeerAddr, "where other nodes connect", text(func(s *nodeSettings) *string { return &s.PeerAddr })},
	{"http-addr", "HOST:PORT", node.DefaultHTTPAddr, "health and metrics: /healthz /readyz /metrics", text(func(s *nodeSettings) *string { return &s.HTTPAddr })},
	{"advertise-client-addr", "HOST:PORT", "client-addr", "what clients are told to connect to", text(func(s *nodeSettings) *string { return &s.AdvertiseClientAddr })},
	{"advertise-peer-addr", "HOST:PORT", "peer-addr", "what other nodes are told to connect to", text(func(s *nodeSettings) *string { return &s.AdvertisePeerAddr })},
	{"advertise-http-addr", "HOST:PORT", "http-addr", "what status shows as the HTTP address", text(func(s *nodeSettings) *string { return &s.AdvertiseHTTPAddr })},
	{"region", "NAME", "", "region label; replicas are spread over regions", text(func(s *nodeSettings) *string { return &s.Region })},
	{"zone", "NAME", "", "zone label; replicas are spread over zones", text(func(s *nodeSettings) *string { return &s.Zone })},
	{"max-document", "SIZE", "1MiB", "largest document accepted, 1KiB to 16MiB; the same on every node", size(func(s *nodeSettings, n int64) { s.MaxDocumentBytes = int(n) })},
	{"disk-reserve", "SIZE", "256MiB", "free space to keep: below it writes are refused", size(func(s *nodeSettings, n int64) { s.DiskReserveBytes = uint64(n) })},
	{"log-size", "SIZE", "512MiB", "disk for the log; followers further behind get a snapshot", size(func(s *nodeSettings, n int64) { s.LogBytes = n })},
	{"state-cache", "SIZE", "64MiB", "memory for the state engine's block cache", size(func(s *nodeSettings, n int64) { s.StateCacheBytes = n })},
	{"read-cache", "SIZE", "16MiB", "memory for documents written lately, for reads; 0: none", sizeOrNone(func(s *nodeSettings, n int64) { s.NewestBytes = n })},
	{"max-client-conns", "N", "4096", "connections accepted on the client port", number(func(s *nodeSettings, n int) { s.MaxClientConns = n })},
	{"election-timeout", "DURATION", "500ms", "how long followers wait for a silent leader, 50ms to 1m", duration(func(s *nodeSettings, d time.Duration) { s.ElectionTimeout = d })},
	{"log-level", "LEVEL", "info", "trace, debug, info, warn or error", setLogLevel},
	{"log-format", "FORMAT", "text", "text or json", setLogFormat},
}

// settingsSource is where the values of one run come from.
type settingsSource struct {
	flags   map[string]string // given on the command line
	environ []string          // "NAME=value"
	file    string            // path, or "" for IDB_CONFIG, or none
}

// loadNodeSettings reads the three sources. A flag wins over a variable, a
// variable over the file. Every key must be known, in every source.
func loadNodeSettings(src settingsSource) (nodeSettings, error) {
	s := nodeSettings{logLevel: hclog.Info}
	vars, err := settingVariables(src.environ)
	if err != nil {
		return s, err
	}
	file := src.file
	if file == "" {
		file = vars["config"]
	}
	fromFile := map[string]fileValue{}
	if file != "" {
		if fromFile, err = readSettingsFile(file); err != nil {
			return s, err
		}
	}
	for _, k := range nodeSettingsTable {
		value, where := "", ""
		if v, ok := fromFile[k.key]; ok {
			value, where = v.value, fmt.Sprintf("%s:%d: %s", file, v.line, k.key)
		}
		if v, ok := vars[k.key]; ok {
			value, where = v, variableName(k.key)
		}
		if v, ok := src.flags[k.key]; ok {
			value, where = v, "--"+k.key
		}
		if where == "" {
			continue
		}
		if err := k.set(&s, value); err != nil {
			return s, usagef("%s: %w", where, err)
		}
	}
	if s.ID == "" {
		return s, usagef("the node has no name (give --id NAME, for example --id n1)")
	}
	if s.DataDir == "" {
		return s, usagef("the node has no data directory (give --data DIR)")
	}
	return s, nil
}

// variableName is the IDB_ variable of a setting.
func variableName(key string) string {
	return "IDB_" + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// Variables that are known and are no settings of a node.
var otherVariables = []string{"IDB_ADDR", "IDB_TIMEOUT", "IDB_CONFIG"}

// What an orchestrator sets for services whose names start with "idb", and
// what tests set for themselves.
var foreignVariables = regexp.MustCompile(`^IDB(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$|^IDB_TEST_`)

// settingVariables picks the IDB_ variables: setting key (or "config") → value.
func settingVariables(environ []string) (map[string]string, error) {
	known := map[string]string{"IDB_CONFIG": "config"}
	names := slices.Clone(otherVariables)
	for _, k := range nodeSettingsTable {
		known[variableName(k.key)] = k.key
		names = append(names, variableName(k.key))
	}
	out := map[string]string{}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, "IDB_") {
			continue
		}
		if key, ok := known[name]; ok {
			if value != "" { // an empty variable is an unset one
				out[key] = value
			}
			continue
		}
		if slices.Contains(otherVariables, name) || foreignVariables.MatchString(name) {
			continue
		}
		if best := nearest(name, names); best != "" {
			return nil, usagef("environment: unknown setting %s, did you mean %s?", name, best)
		}
		return nil, usagef("environment: unknown setting %s (unset it; idb node --help lists the settings)", name)
	}
	return out, nil
}

// fileValue is a value in a settings file and its line.
type fileValue struct {
	value string
	line  int
}

// maxSettingsFile bounds a settings file, which is a page of text.
const maxSettingsFile = 1 << 20

// readSettingsFile reads a YAML file of one flat mapping, setting → scalar.
func readSettingsFile(path string) (map[string]fileValue, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usagef("settings file %s cannot be read: %w", path, bare(err))
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxSettingsFile+1))
	if err != nil {
		return nil, usagef("settings file %s cannot be read: %w", path, bare(err))
	}
	if len(raw) > maxSettingsFile {
		return nil, usagef("settings file %s is larger than %d bytes: is it the right file?", path, maxSettingsFile)
	}
	return parseSettings(path, raw)
}

// parseSettings walks the YAML tree itself instead of decoding into a struct:
// so an unknown key is reported with its line and the nearest known one.
func parseSettings(path string, raw []byte) (map[string]fileValue, error) {
	out := map[string]fileValue{}
	var root yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		return out, nil // empty, or comments only
	case err != nil:
		return nil, usagef("settings file %s is not YAML: %w", path, trimPrefix(err, "yaml: "))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, usagef("settings file %s holds more than one YAML document: keep the first", path)
	}
	var keys []string
	for _, k := range nodeSettingsTable {
		keys = append(keys, k.key)
	}
	top := root.Content[0]
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return out, nil
	}
	if top.Kind != yaml.MappingNode {
		return nil, usagef("%s:%d: want lines of the form setting: value", path, top.Line)
	}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		if !slices.Contains(keys, key.Value) {
			if best := nearest(key.Value, keys); best != "" {
				return nil, usagef("%s:%d: unknown setting %q, did you mean %q?", path, key.Line, key.Value, best)
			}
			return nil, usagef("%s:%d: unknown setting %q (known: %s)", path, key.Line, key.Value, strings.Join(keys, ", "))
		}
		if value.Kind != yaml.ScalarNode {
			return nil, usagef("%s:%d: %s: want one value, not a list or a mapping", path, value.Line, key.Value)
		}
		if first, twice := out[key.Value]; twice {
			return nil, usagef("%s:%d: %s is set twice (first in line %d)", path, key.Line, key.Value, first.line)
		}
		if value.Tag == "!!null" {
			continue
		}
		out[key.Value] = fileValue{value.Value, value.Line}
	}
	return out, nil
}

// nodeFlags are the flags of `idb node`, from the table.
func nodeFlags() []cli.Flag {
	flags := []cli.Flag{&cli.StringFlag{Name: "config", Usage: "`FILE`: settings, YAML; flags and IDB_ variables win over it"}}
	for _, k := range nodeSettingsTable {
		flags = append(flags, &cli.StringFlag{Name: k.key, Usage: "`" + k.arg + "`: " + k.usage, DefaultText: k.def})
	}
	return flags
}

func text(field func(*nodeSettings) *string) func(*nodeSettings, string) error {
	return func(s *nodeSettings, v string) error {
		*field(s) = v
		return nil
	}
}

func size(set func(*nodeSettings, int64)) func(*nodeSettings, string) error {
	return func(s *nodeSettings, v string) error {
		n, err := parseSize(v)
		if err == nil {
			set(s, n)
		}
		return err
	}
}

// sizeOrNone is size, or 0 for none, which is set as -1.
func sizeOrNone(set func(*nodeSettings, int64)) func(*nodeSettings, string) error {
	return func(s *nodeSettings, v string) error {
		if v == "0" {
			set(s, -1)
			return nil
		}
		return size(set)(s, v)
	}
}

func number(set func(*nodeSettings, int)) func(*nodeSettings, string) error {
	return func(s *nodeSettings, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n <= 0 {
			return fmt.Errorf("%q is not a number above 0", v)
		}
		set(s, n)
		return nil
	}
}

func duration(set func(*nodeSettings, time.Duration)) func(*nodeSettings, string) error {
	return func(s *nodeSettings, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 {
			return fmt.Errorf("%q is not a duration (for example 300ms or 2s)", v)
		}
		set(s, d)
		return nil
	}
}

func setLogLevel(s *nodeSettings, v string) error {
	level := hclog.LevelFromString(v)
	if level == hclog.NoLevel {
		return fmt.Errorf("%q is not a log level (trace, debug, info, warn, error)", v)
	}
	s.logLevel = level
	return nil
}

func setLogFormat(s *nodeSettings, v string) error {
	if v != "text" && v != "json" {
		return fmt.Errorf("%q is not a log format (text, json)", v)
	}
	s.logJSON = v == "json"
	return nil
}

var sizePattern = regexp.MustCompile(`^([0-9]{1,15}) *(?:([kKmMgGtT])(i?))?([bB]?)$`)

// parseSize reads a number of bytes: "4096", "64KiB", "1 GiB", "10MB". KiB is
// 1024 bytes and KB is 1000; a bare K, M, G or T is the binary unit.
func parseSize(v string) (int64, error) {
	m := sizePattern.FindStringSubmatch(strings.TrimSpace(v))
	if m == nil {
		return 0, fmt.Errorf("%q is not a size (for example 4096, 64KiB or 1GiB)", v)
	}
	n, _ := strconv.ParseInt(m[1], 10, 64) // at most 15 digits
	unit := int64(1024)
	if m[3] == "" && m[4] != "" {
		unit = 1000
	}
	for range strings.Index("_kmgt", strings.ToLower(m[2] + "_")[:1]) {
		if n > (1<<62)/unit {
			return 0, fmt.Errorf("%q is too large", v)
		}
		n *= unit
	}
	if n == 0 {
		return 0, fmt.Errorf("%q: want more than 0", v)
	}
	return n, nil
}

// bare drops the "open /path:" that the message around it already says.
func bare(err error) error {
	if pe := (*os.PathError)(nil); errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// trimPrefix drops a library's prefix from an error's text.
func trimPrefix(err error, prefix string) error {
	return errors.New(strings.TrimPrefix(err.Error(), prefix))
}

package client

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/impossibledb/idb/client/route"
)

// Defaults of a DB.
const (
	DefaultPort           = "7400"
	DefaultTimeout        = 30 * time.Second
	DefaultConnectTimeout = 5 * time.Second
)

// Option changes how Dial connects. An option wins over the URL.
type Option func(*config)

type config struct {
	route          route.Options
	timeout        time.Duration
	connectTimeout time.Duration
}

// WithTimeout is how long an operation tries when its context has no deadline.
// Too short gives up during an election; too long keeps callers waiting for a
// cluster that is gone. Zero or less: for ever. The default is 30s.
func WithTimeout(d time.Duration) Option {
	return func(c *config) { c.timeout = max(d, 0) }
}

// WithConnectTimeout is how long Dial tries when its context has no deadline.
// The default is 5s.
func WithConnectTimeout(d time.Duration) Option {
	return func(c *config) { c.connectTimeout = d }
}

// WithConnections is how many connections carry the requests to one node.
// The default is 2.
func WithConnections(n int) Option {
	return func(c *config) { c.route.ConnsPerNode = n }
}

// WithCluster refuses nodes of any cluster but this one.
func WithCluster(id string) Option {
	return func(c *config) { c.route.ClusterID = id }
}

// WithName tells the servers' logs who connects.
func WithName(name string) Option {
	return func(c *config) { c.route.Name = name }
}

// WithLogger hears of connections and topologies, at debug level.
func WithLogger(l *slog.Logger) Option {
	return func(c *config) { c.route.Logger = l }
}

// WithDialer replaces TCP, for tunnels, TLS and tests.
func WithDialer(dial func(ctx context.Context, addr string) (net.Conn, error)) Option {
	return func(c *config) { c.route.Dial = dial }
}

// WithSilence is how long a node that owes answers may say nothing before it is
// asked for a sign of life, and then again before it is given up. The default
// is 1s.
func WithSilence(d time.Duration) Option {
	return func(c *config) { c.route.Silence = d }
}

// parse reads a URL such as
//
//	idb://db1:7400,db2,db3/?timeout=10s&connections=1&cluster=…
//
// A plain list of host:port is taken as well.
func parse(target string) (config, error) {
	cfg := config{timeout: DefaultTimeout, connectTimeout: DefaultConnectTimeout}
	bad := func(format string, args ...any) (config, error) {
		return cfg, fmt.Errorf("client: address %q: %s (want idb://host:port,host:port/?timeout=10s)", target, fmt.Sprintf(format, args...))
	}
	rest := target
	if scheme, after, ok := strings.Cut(target, "://"); ok {
		if scheme != "idb" {
			return bad("scheme %q is not idb", scheme)
		}
		rest = after
	}
	rest, query, _ := strings.Cut(rest, "?")
	hosts, path, _ := strings.Cut(rest, "/")
	if path != "" {
		return bad("a path %q has no meaning", path)
	}
	if strings.Contains(hosts, "@") {
		return bad("a user has no meaning")
	}
	for host := range strings.SplitSeq(hosts, ",") {
		host = strings.TrimSpace(host)
		if host == "" {
			continue
		}
		name, port, err := net.SplitHostPort(host)
		if err != nil {
			name, port = strings.Trim(host, "[]"), DefaultPort
			if strings.Contains(name, ":") && !strings.HasPrefix(host, "[") {
				return bad("host %q: %v", host, err)
			}
		}
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return bad("port %q of %q is not 1 to 65535", port, host)
		}
		cfg.route.Addrs = append(cfg.route.Addrs, net.JoinHostPort(name, port))
	}
	if len(cfg.route.Addrs) == 0 {
		return bad("no host")
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return bad("%v", err)
	}
	for key, v := range values {
		value := v[len(v)-1]
		var err error
		switch key {
		case "timeout":
			cfg.timeout, err = time.ParseDuration(value)
		case "connect_timeout":
			cfg.connectTimeout, err = time.ParseDuration(value)
		case "silence":
			cfg.route.Silence, err = time.ParseDuration(value)
		case "connections":
			cfg.route.ConnsPerNode, err = strconv.Atoi(value)
		case "cluster":
			cfg.route.ClusterID = value
		case "name":
			cfg.route.Name = value
		default:
			return bad("option %q is not known: timeout, connect_timeout, silence, connections, cluster and name are", key)
		}
		if err != nil {
			return bad("option %s=%q: %v", key, value, err)
		}
	}
	return cfg, nil
}

// WriteOption is a condition or a wish of one write. Options are values, so
// that a write with some allocates nothing for them.
type WriteOption struct {
	kind    writeOption
	version uint64
	id      RequestID
	number  uint32 // of the collection that it was sent to
}

type writeOption uint8

const (
	optIfVersion writeOption = iota + 1
	optIfAbsent
	optIfPresent
	optReturnDoc
	optRequestID
	optRepeat
)

// IfVersion writes only if the document has this version.
func IfVersion(v uint64) WriteOption { return WriteOption{kind: optIfVersion, version: v} }

// IfAbsent writes only if there is no such document.
func IfAbsent() WriteOption { return WriteOption{kind: optIfAbsent} }

// IfPresent writes only if there is such a document.
func IfPresent() WriteOption { return WriteOption{kind: optIfPresent} }

// ReturnDoc answers with the document as written, in Result.Doc.
func ReturnDoc() WriteOption { return WriteOption{kind: optReturnDoc} }

// WithRequestID writes under a fresh ID of DB.NewRequestID, which the caller
// keeps so that a later process can repeat the write (Repeat) without doing it
// twice. An ID is for one write: a different one under it gets the first's answer.
func WithRequestID(id RequestID) WriteOption { return WriteOption{kind: optRequestID, id: id} }

// Repeat writes under an ID that may have been used for this write before: it
// is done now if it was not done then, and the answer is that of the first time.
// Everything else about the write must be as it was, the collection too: one
// that was dropped and made anew with another separator places its documents
// elsewhere, and knows nothing of what was written to the old one. (RetryOf
// knows which it was.)
func Repeat(id RequestID) WriteOption { return WriteOption{kind: optRepeat, id: id} }

// RetryOf is Repeat of the write that ended with err (ErrOutcomeUnknown). Any
// other err is ignored: what was surely not done is simply written.
func RetryOf(err error) WriteOption {
	if e, ok := asError(err); ok && e.Unknown() && e.RequestID != (RequestID{}) {
		return WriteOption{kind: optRepeat, id: e.RequestID, number: e.number}
	}
	return WriteOption{}
}

// ReadOption says what to read, or how.
type ReadOption struct {
	kind readOption
	n    uint64
	text string
	raw  []byte
	cost *Cost
}

type readOption uint8

const (
	optAtVersion readOption = iota + 1
	optAtTime
	optNoBody
	optPrefix
	optCursor
	optLimit
	optPage
	optReverse
	optBefore
	optCost
)

// AtVersion reads this version of a document.
func AtVersion(v uint64) ReadOption { return ReadOption{kind: optAtVersion, n: v} }

// AtTime reads as of t: everything that was written until the end of its
// millisecond.
func AtTime(t time.Time) ReadOption { return AtTimestamp(endOf(t)) }

// AtTimestamp reads as of ts, such as Result.Timestamp or Iterator.Timestamp.
func AtTimestamp(ts Timestamp) ReadOption { return ReadOption{kind: optAtTime, n: uint64(ts)} }

// NoBody reads versions and times only.
func NoBody() ReadOption { return ReadOption{kind: optNoBody} }

// Prefix scans or counts the documents whose IDs begin so.
func Prefix(p string) ReadOption { return ReadOption{kind: optPrefix, text: p} }

// FromCursor goes on where Iterator.Cursor was taken, with the same snapshot;
// also in another process.
func FromCursor(cursor []byte) ReadOption { return ReadOption{kind: optCursor, raw: cursor} }

// Limit ends a scan or a history after n documents.
func Limit(n int) ReadOption { return ReadOption{kind: optLimit, n: uint64(max(n, 0))} }

// PageSize is how many documents one request of a scan or history asks for.
// The default is 1000, at most 1 MiB of them.
func PageSize(n int) ReadOption { return ReadOption{kind: optPage, n: uint64(max(n, 1))} }

// Reverse scans from the last ID to the first.
func Reverse() ReadOption { return ReadOption{kind: optReverse} }

// Before lists only versions below v.
func Before(v uint64) ReadOption { return ReadOption{kind: optBefore, n: v} }

// CostTo adds what the answers took to c. It must not be read, nor used by
// another call, before the call or the iteration has ended.
func CostTo(c *Cost) ReadOption { return ReadOption{kind: optCost, cost: c} }

// reading is the sum of read options.
type reading struct {
	atVersion, atTime uint64
	noBody, reverse   bool
	prefix            string
	cursor            []byte
	limit, page       uint64
	before            uint64
	cost              *Cost
}

func readingOf(opts []ReadOption) reading {
	var r reading
	for i := range opts {
		switch o := &opts[i]; o.kind {
		case optAtVersion:
			r.atVersion = o.n
		case optAtTime:
			r.atTime = o.n
		case optNoBody:
			r.noBody = true
		case optPrefix:
			r.prefix = o.text
		case optCursor:
			r.cursor = o.raw
		case optLimit:
			r.limit = o.n
		case optPage:
			r.page = o.n
		case optReverse:
			r.reverse = true
		case optBefore:
			r.before = o.n
		case optCost:
			r.cost = o.cost
		}
	}
	return r
}

// addCost adds more to the sum.
func addCost(sum *Cost, more *Cost) {
	if sum == nil {
		return
	}
	sum.Groups += more.Groups
	sum.Keys += more.Keys
	sum.Docs += more.Docs
	sum.Bytes += more.Bytes
	sum.WaitMicros += more.WaitMicros
	sum.ReadVersion = max(sum.ReadVersion, more.ReadVersion)
}

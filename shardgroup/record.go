package shardgroup

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup/transport"
)

// Member is one replica's place in a group.
type Member struct {
	Node        placement.NodeID
	Incarnation string // of the node when the group was made; empty: any
	Learner     bool   // gets the log, and has no vote
}

// serverID is the member's name in raft's configuration. The incarnation is
// part of it: a node that lost its data is another server.
func (m Member) serverID() raft.ServerID { return transport.ServerID(m.Node, m.Incarnation) }

// GroupSpec says who is in a group. Every member starts with the same one.
type GroupSpec struct {
	ID      placement.GroupID
	Members []Member
	// Preferred is the member that should lead when nothing speaks against it;
	// it only spreads load. Empty: none.
	Preferred placement.NodeID
}

func (s GroupSpec) validate() error {
	if len(s.Members) == 0 || len(s.Members) > maxMembers {
		return fmt.Errorf("shardgroup: %s has %d members, it must have 1 to %d", s.ID, len(s.Members), maxMembers)
	}
	seen := make(map[placement.NodeID]bool, len(s.Members))
	if s.voters() == 0 {
		return fmt.Errorf("shardgroup: %s has no member with a vote", s.ID)
	}
	for _, m := range s.Members {
		if m.Node == "" || len(m.Node) > 255 || len(m.Incarnation) > 255 {
			return fmt.Errorf("shardgroup: %s has a member with a bad name %q", s.ID, m.Node)
		}
		if seen[m.Node] {
			return fmt.Errorf("shardgroup: %s names member %s twice", s.ID, m.Node)
		}
		if (m.Incarnation == "") != s.plain() {
			return fmt.Errorf("shardgroup: %s names incarnations of some members and not of others", s.ID)
		}
		seen[m.Node] = true
	}
	return nil
}

// self is the name under which a node of this incarnation is a member.
func (s GroupSpec) self(n placement.NodeID, incarnation string) (raft.ServerID, error) {
	for _, m := range s.Members {
		switch {
		case m.Node != n:
		case m.Incarnation != "" && m.Incarnation != incarnation:
			return "", fmt.Errorf("shardgroup: %s has incarnation %s of node %s as its member, this is incarnation %s (its data was wiped; it must be removed and added again)", s.ID, m.Incarnation, n, incarnation)
		default:
			return m.serverID(), nil
		}
	}
	return "", fmt.Errorf("shardgroup: node %s is not a member of %s", n, s.ID)
}

func (s GroupSpec) voters() (n int) {
	for _, m := range s.Members {
		if !m.Learner {
			n++
		}
	}
	return n
}

// plain says that members are known by their nodes alone.
func (s GroupSpec) plain() bool { return s.Members[0].Incarnation == "" }

func (s GroupSpec) sameMembers(o GroupSpec) bool {
	if len(s.Members) != len(o.Members) {
		return false
	}
	have := make(map[Member]bool, len(s.Members))
	for _, m := range s.Members {
		have[m] = true
	}
	for _, m := range o.Members {
		if !have[m] {
			return false
		}
	}
	return true
}

func (s GroupSpec) configuration() raft.Configuration {
	var c raft.Configuration
	for _, m := range s.Members {
		server := raft.Server{Suffrage: raft.Voter, ID: m.serverID(), Address: raft.ServerAddress(m.Node)}
		if m.Learner {
			server.Suffrage = raft.Nonvoter
		}
		c.Servers = append(c.Servers, server)
	}
	return c
}

const maxMembers = 15

// Versions of the records below. Zero is never valid, so a zeroed block is
// told from a record; a larger one was written by a newer version.
const recordVersion = 1

var (
	errRecordDamaged = errors.New("record is damaged")
	errRecordNewer   = errors.New("record was written by a newer version")
)

// A group record:
//
//	| version u8 | preferred str8 | count u8 | count × (node str8, incarnation str8, learner u8) |
//
// str8 is a length byte and that many bytes.
func encodeGroup(s GroupSpec) []byte {
	b := []byte{recordVersion}
	b = appendStr8(b, string(s.Preferred))
	b = append(b, byte(len(s.Members)))
	for _, m := range s.Members {
		b = appendStr8(b, string(m.Node))
		b = appendStr8(b, m.Incarnation)
		if m.Learner {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	return b
}

func decodeGroup(id placement.GroupID, b []byte) (GroupSpec, error) {
	r := recordReader{b: b}
	r.version()
	s := GroupSpec{ID: id, Preferred: placement.NodeID(r.str8())}
	n := int(r.u8())
	if n > maxMembers {
		r.fail(errRecordDamaged)
	}
	for i := 0; i < n && r.err == nil; i++ {
		s.Members = append(s.Members, Member{Node: placement.NodeID(r.str8()), Incarnation: r.str8(), Learner: r.u8() == 1})
	}
	if err := r.done(); err != nil {
		return GroupSpec{}, fmt.Errorf("shardgroup: record of %s: %w", id, err)
	}
	return s, nil
}

// marker says that the state up to index is on disk. It is a raft snapshot
// without the data.
type marker struct {
	index, term uint64
	// applied is the machine's own index at that point: not above index, and
	// below it if raft's last entries were none of the machine's.
	applied   uint64
	confIndex uint64
	conf      raft.Configuration
}

// A snapshot marker:
//
//	| version u8 | index u64 | term u64 | applied u64 | configuration index u64 | configuration bytes32 |
//
// bytes32 is a length u32 and that many bytes; the configuration is in raft's
// own encoding, which is what its log holds too.
func encodeMarker(m marker) []byte {
	b := []byte{recordVersion}
	b = binary.BigEndian.AppendUint64(b, m.index)
	b = binary.BigEndian.AppendUint64(b, m.term)
	b = binary.BigEndian.AppendUint64(b, m.applied)
	b = binary.BigEndian.AppendUint64(b, m.confIndex)
	return appendBytes32(b, raft.EncodeConfiguration(m.conf))
}

func decodeMarker(b []byte) (marker, error) {
	r := recordReader{b: b}
	r.version()
	m := marker{index: r.u64(), term: r.u64(), applied: r.u64(), confIndex: r.u64()}
	conf := r.bytes32()
	if err := r.done(); err != nil {
		return marker{}, fmt.Errorf("shardgroup: snapshot marker: %w", err)
	}
	c, err := decodeConfiguration(conf)
	if err != nil {
		return marker{}, fmt.Errorf("shardgroup: snapshot marker: %w", err)
	}
	m.conf = c
	return m, nil
}

// decodeConfiguration is raft.DecodeConfiguration, which panics on damage,
// with an error instead.
func decodeConfiguration(b []byte) (c raft.Configuration, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: configuration: %v", errRecordDamaged, p)
		}
	}()
	if len(b) > 1<<16 {
		return c, fmt.Errorf("%w: configuration of %d bytes", errRecordDamaged, len(b))
	}
	return raft.DecodeConfiguration(b), nil
}

// pendingInstall is a received snapshot whose tables are complete and synced.
// From the moment its record is on disk the install will happen.
type pendingInstall struct {
	marker
	dir string // below DIR/install
}

// A pending install:
//
//	| version u8 | marker bytes32 | dir str8 |
func encodePending(p pendingInstall) []byte {
	b := appendBytes32([]byte{recordVersion}, encodeMarker(p.marker))
	return appendStr8(b, p.dir)
}

func decodePending(b []byte) (pendingInstall, error) {
	r := recordReader{b: b}
	r.version()
	mb := r.bytes32()
	p := pendingInstall{dir: r.str8()}
	if err := r.done(); err != nil {
		return pendingInstall{}, fmt.Errorf("shardgroup: pending install: %w", err)
	}
	m, err := decodeMarker(mb)
	if err != nil {
		return pendingInstall{}, fmt.Errorf("shardgroup: pending install: %w", err)
	}
	p.marker = m
	return p, nil
}

func appendStr8(b []byte, s string) []byte {
	return append(append(b, byte(len(s))), s...)
}

func appendBytes32(b, v []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
}

// recordReader takes a record apart. After the first error everything it
// answers is zero; done tells.
type recordReader struct {
	b   []byte
	err error
}

func (r *recordReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *recordReader) take(n int) []byte {
	if r.err != nil || n > len(r.b) {
		r.fail(errRecordDamaged)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *recordReader) version() {
	switch v := r.u8(); {
	case r.err != nil:
	case v == 0:
		r.fail(errRecordDamaged)
	case v > recordVersion:
		r.fail(fmt.Errorf("%w (version %d, this program reads up to %d)", errRecordNewer, v, recordVersion))
	}
}

func (r *recordReader) u8() byte {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *recordReader) u32() uint32 {
	if v := r.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (r *recordReader) u64() uint64 {
	if v := r.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (r *recordReader) str8() string { return string(r.take(int(r.u8()))) }

func (r *recordReader) bytes32() []byte {
	n := r.u32()
	if uint64(n) > uint64(len(r.b)) {
		r.fail(errRecordDamaged)
		return nil
	}
	return r.take(int(n))
}

func (r *recordReader) done() error {
	if r.err == nil && len(r.b) != 0 {
		r.fail(errRecordDamaged)
	}
	return r.err
}

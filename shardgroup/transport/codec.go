package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
)

// Bodies of Raft's messages. Every one begins with a version and a group, and
// all integers are big-endian. Who sends is known from the connection's hello.
//
//	request       | version u8 = 2 | group u32 | …
//	append        | burst u32 | of u16 | term u64 | previous index u64 | previous term u64 | commit u64 | count u32 | count × entry |
//	entry         | term u64 | type u8 | appended at, unix ns i64 | extensions u32 | data u32 | extensions… | data… |
//	vote          | term u64 | last index u64 | last term u64 | flags u8 (1: leadership transfer) |
//	pre-vote      | term u64 | last index u64 | last term u64 |
//	timeout now   (nothing)
//	answer        | version u8 = 2 | term u64 | last index u64 | flags u8 |
//
// Entries of one message have consecutive indexes from previous index + 1, so
// an entry does not carry its own. Burst and of are a Burst.
const (
	bodyVersion = 2
	entryHeader = 8 + 1 + 8 + 4 + 4

	// MaxEntryBytes bounds one entry's data and extensions: a message holds at
	// least one entry and must fit in a frame.
	MaxEntryBytes = wire.MaxFrameBytes - 64<<10
	// maxAppendBytes is how much of a request's entries goes into one message.
	// The first entry always does.
	maxAppendBytes = 2 << 20
	// maxAppendEntries bounds what a message may claim to hold.
	maxAppendEntries = 4096
)

// Flags of an answer.
const (
	flagSuccess        = 1 << 0 // entries accepted, vote granted, snapshot installed
	flagNoRetryBackoff = 1 << 1
	flagFull           = 1 << 2 // the answerer's disk is nearly full: do not make it leader
)

// Flags of a vote.
const flagTransfer = 1 << 0

var errBody = errors.New("transport: body is damaged")

// BodyError says why a message from a peer cannot be read.
type BodyError struct{ Reason string }

// Error gives the reason.
func (e *BodyError) Error() string { return "transport: " + e.Reason }

// Is makes every BodyError a damaged body.
func (e *BodyError) Is(target error) bool { return target == errBody }

func bodyError(format string, args ...any) error {
	return &BodyError{Reason: fmt.Sprintf(format, args...)}
}

// appendGroup begins a request's body.
func appendGroup(b []byte, g placement.GroupID) []byte {
	return binary.BigEndian.AppendUint32(append(b, bodyVersion), uint32(g))
}

// takeGroup reads the beginning of a request's body.
func takeGroup(b []byte) (placement.GroupID, []byte, error) {
	if len(b) < 5 {
		return 0, nil, bodyError("request of %d bytes is too short", len(b))
	}
	if b[0] != bodyVersion {
		return 0, nil, bodyError("request has version %d, this program speaks %d", b[0], bodyVersion)
	}
	return placement.GroupID(binary.BigEndian.Uint32(b[1:])), b[5:], nil
}

// appendAppend encodes as many of the request's entries as one message may
// hold, and says how many that is.
func appendAppend(b []byte, a *raft.AppendEntriesRequest, burst Burst) ([]byte, int) {
	b = binary.BigEndian.AppendUint32(b, burst.Number)
	b = binary.BigEndian.AppendUint16(b, burst.Count)
	b = binary.BigEndian.AppendUint64(b, a.Term)
	b = binary.BigEndian.AppendUint64(b, a.PrevLogEntry)
	b = binary.BigEndian.AppendUint64(b, a.PrevLogTerm)
	b = binary.BigEndian.AppendUint64(b, a.LeaderCommitIndex)
	count := len(b)
	b = binary.BigEndian.AppendUint32(b, 0)
	n, size := 0, 0
	for _, e := range a.Entries {
		s := entryHeader + len(e.Extensions) + len(e.Data)
		if n > 0 && size+s > maxAppendBytes {
			break
		}
		b = appendEntry(b, e)
		n, size = n+1, size+s
	}
	binary.BigEndian.PutUint32(b[count:], uint32(n))
	return b, n
}

// appendSize is about how large appendAppend's answer will be.
func appendSize(a *raft.AppendEntriesRequest) int {
	size := 64
	for i, e := range a.Entries {
		s := entryHeader + len(e.Extensions) + len(e.Data)
		if i > 0 && size+s > maxAppendBytes {
			break
		}
		size += s
	}
	return size
}

func appendEntry(b []byte, e *raft.Log) []byte {
	b = binary.BigEndian.AppendUint64(b, e.Term)
	b = append(b, byte(e.Type))
	var at int64
	if !e.AppendedAt.IsZero() {
		at = e.AppendedAt.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Extensions)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Data)))
	b = append(b, e.Extensions...)
	return append(b, e.Data...)
}

// decodeAppend reads what appendAppend wrote. The entries share b's memory.
func decodeAppend(b []byte, a *raft.AppendEntriesRequest) (burst Burst, err error) {
	if len(b) < 6+36 {
		return burst, bodyError("append of %d bytes is too short", len(b))
	}
	burst.Number, burst.Count = binary.BigEndian.Uint32(b), binary.BigEndian.Uint16(b[4:])
	return burst, decodeEntries(b[6:], a)
}

func decodeEntries(b []byte, a *raft.AppendEntriesRequest) error {
	a.Term = binary.BigEndian.Uint64(b)
	a.PrevLogEntry = binary.BigEndian.Uint64(b[8:])
	a.PrevLogTerm = binary.BigEndian.Uint64(b[16:])
	a.LeaderCommitIndex = binary.BigEndian.Uint64(b[24:])
	n := binary.BigEndian.Uint32(b[32:])
	b = b[36:]
	if n > maxAppendEntries || uint64(n)*entryHeader > uint64(len(b)) {
		return bodyError("append claims %d entries in %d bytes", n, len(b))
	}
	if n == 0 {
		if len(b) != 0 {
			return bodyError("append has %d bytes after its entries", len(b))
		}
		return nil
	}
	logs := make([]raft.Log, n)
	a.Entries = make([]*raft.Log, n)
	for i := range logs {
		if len(b) < entryHeader {
			return bodyError("entry %d of %d is cut off", i, n)
		}
		l := &logs[i]
		l.Index = a.PrevLogEntry + 1 + uint64(i)
		l.Term = binary.BigEndian.Uint64(b)
		l.Type = raft.LogType(b[8])
		if l.Type > raft.LogConfiguration {
			return bodyError("entry %d has unknown type %d", i, b[8])
		}
		if at := int64(binary.BigEndian.Uint64(b[9:])); at != 0 {
			l.AppendedAt = time.Unix(0, at)
		}
		ext, data := binary.BigEndian.Uint32(b[17:]), binary.BigEndian.Uint32(b[21:])
		b = b[entryHeader:]
		if uint64(ext)+uint64(data) > uint64(len(b)) || uint64(ext)+uint64(data) > MaxEntryBytes {
			return bodyError("entry %d claims %d bytes of %d", i, uint64(ext)+uint64(data), len(b))
		}
		if ext > 0 {
			l.Extensions = b[:ext:ext]
		}
		b = b[ext:]
		if data > 0 {
			l.Data = b[:data:data]
		}
		b = b[data:]
		if l.Type == raft.LogConfiguration {
			// raft panics on a configuration that it cannot decode.
			if err := checkConfiguration(l.Data); err != nil {
				return err
			}
		}
		a.Entries[i] = l
	}
	if len(b) != 0 {
		return bodyError("append has %d bytes after its entries", len(b))
	}
	return nil
}

func appendVote(b []byte, v *raft.RequestVoteRequest) []byte {
	b = binary.BigEndian.AppendUint64(b, v.Term)
	b = binary.BigEndian.AppendUint64(b, v.LastLogIndex)
	b = binary.BigEndian.AppendUint64(b, v.LastLogTerm)
	if v.LeadershipTransfer {
		return append(b, flagTransfer)
	}
	return append(b, 0)
}

func decodeVote(b []byte, v *raft.RequestVoteRequest) error {
	if len(b) != 25 {
		return bodyError("vote request of %d bytes, 25 expected", len(b))
	}
	v.Term = binary.BigEndian.Uint64(b)
	v.LastLogIndex = binary.BigEndian.Uint64(b[8:])
	v.LastLogTerm = binary.BigEndian.Uint64(b[16:])
	v.LeadershipTransfer = b[24]&flagTransfer != 0
	return nil
}

func appendPreVote(b []byte, v *raft.RequestPreVoteRequest) []byte {
	b = binary.BigEndian.AppendUint64(b, v.Term)
	b = binary.BigEndian.AppendUint64(b, v.LastLogIndex)
	return binary.BigEndian.AppendUint64(b, v.LastLogTerm)
}

func decodePreVote(b []byte, v *raft.RequestPreVoteRequest) error {
	if len(b) != 24 {
		return bodyError("pre-vote request of %d bytes, 24 expected", len(b))
	}
	v.Term = binary.BigEndian.Uint64(b)
	v.LastLogIndex = binary.BigEndian.Uint64(b[8:])
	v.LastLogTerm = binary.BigEndian.Uint64(b[16:])
	return nil
}

// answer is what any of Raft's messages is answered with.
type answer struct {
	term, last uint64
	flags      byte
}

func appendAnswer(b []byte, a answer) []byte {
	b = append(b, bodyVersion)
	b = binary.BigEndian.AppendUint64(b, a.term)
	b = binary.BigEndian.AppendUint64(b, a.last)
	return append(b, a.flags)
}

func decodeAnswer(b []byte) (answer, error) {
	if len(b) != 18 {
		return answer{}, bodyError("answer of %d bytes, 18 expected", len(b))
	}
	if b[0] != bodyVersion {
		return answer{}, bodyError("answer has version %d, this program speaks %d", b[0], bodyVersion)
	}
	return answer{
		term:  binary.BigEndian.Uint64(b[1:]),
		last:  binary.BigEndian.Uint64(b[9:]),
		flags: b[17],
	}, nil
}

// A snapshot is sent in pieces, one call each, so that every piece is
// acknowledged and the sender can never run ahead of the receiver's disk:
//
//	piece         | version u8 | group u32 | step u8 | stream u64 | …
//	1 begin       | meta                                              -> empty
//	2 data        | offset u64 | bytes…                               -> empty
//	3 end         | total u64                                         -> answer
//	4 abort                                                           -> empty
//
//	meta          | term u64 | last index u64 | last term u64 | size u64 |
//	              | configuration index u64 | configuration u32 | bytes… |
const (
	stepBegin = 1
	stepData  = 2
	stepEnd   = 3
	stepAbort = 4

	pieceHeader = 1 + 8
	// pieceBytes is how much data one piece carries.
	pieceBytes = 1 << 20
	// maxConfiguration bounds the configuration in a snapshot's meta.
	maxConfiguration = 1 << 16
)

func appendMeta(b []byte, r *raft.InstallSnapshotRequest) []byte {
	b = binary.BigEndian.AppendUint64(b, r.Term)
	b = binary.BigEndian.AppendUint64(b, r.LastLogIndex)
	b = binary.BigEndian.AppendUint64(b, r.LastLogTerm)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Size))
	b = binary.BigEndian.AppendUint64(b, r.ConfigurationIndex)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Configuration)))
	return append(b, r.Configuration...)
}

func decodeMeta(b []byte, r *raft.InstallSnapshotRequest) error {
	if len(b) < 44 {
		return bodyError("snapshot meta of %d bytes is too short", len(b))
	}
	r.SnapshotVersion = raft.SnapshotVersionMax
	r.Term = binary.BigEndian.Uint64(b)
	r.LastLogIndex = binary.BigEndian.Uint64(b[8:])
	r.LastLogTerm = binary.BigEndian.Uint64(b[16:])
	size := binary.BigEndian.Uint64(b[24:])
	if size > 1<<62 {
		return bodyError("snapshot claims %d bytes", size)
	}
	r.Size = int64(size)
	r.ConfigurationIndex = binary.BigEndian.Uint64(b[32:])
	n := binary.BigEndian.Uint32(b[40:])
	b = b[44:]
	if n > maxConfiguration || int(n) != len(b) {
		return bodyError("snapshot meta claims a configuration of %d bytes in %d", n, len(b))
	}
	// raft panics on a configuration that it cannot decode.
	if err := checkConfiguration(b); err != nil {
		return err
	}
	r.Configuration = append([]byte(nil), b...)
	return nil
}

func checkConfiguration(b []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = bodyError("configuration does not decode: %v", p)
		}
	}()
	raft.DecodeConfiguration(b)
	return nil
}

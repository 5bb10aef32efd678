package router

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/shardgroup"
)

// errorRow documents one code. The table is the source of docs/errors.md.
type errorRow struct {
	code wire.Code
	name string // as in package wire, without "Code"
	what string // what happened
	do   string // what the caller may do next
}

// errorTable has every code, in order. Its sentences are what a client says
// when a server sent a code without a message.
var errorTable = []errorRow{
	{wire.CodeOK, "OK", "It was done.", "Nothing."},

	{wire.CodeBadRequest, "BadRequest", "The message, or one of its fields, is malformed.", "Correct the request; the message names the field."},
	{wire.CodeBadVersion, "BadVersion", "Client and server have no protocol version in common.", "Upgrade the older one."},
	{wire.CodeBadDocument, "BadDocument", "It is not a document, or holds a value that cannot be stored.", "Correct the document; the message names the path."},
	{wire.CodeBadUpdate, "BadUpdate", "The update operators do not parse, or two of them touch the same path.", "Correct the operators; the message names the path."},
	{wire.CodeBadID, "BadID", "The document ID is empty, longer than 512 bytes or not UTF-8.", "Use another ID."},
	{wire.CodeBadCollection, "BadCollection", "The collection's name or options are not allowed.", "Use another name or other options."},
	{wire.CodeBadCursor, "BadCursor", "The cursor was not made by this cluster, is for another scan, or was damaged.", "Start the scan again without a cursor."},
	{wire.CodeBadClusterRequest, "BadClusterRequest", "A cluster cannot be formed as asked.", "Correct the nodes or the numbers; the message says which."},
	{wire.CodeUnsupported, "Unsupported", "The server does not know this kind of request, or not on this port.", "Upgrade the server, or ask another port."},
	{wire.CodeFutureTime, "FutureTime", "A read at a time that neither the server's clock nor that of any group has come near. `Version` is the time now.", "Read at that time, or an earlier one."},

	{wire.CodeNotFound, "NotFound", "There is no such document.", "Nothing was done."},
	{wire.CodeCollectionNotFound, "CollectionNotFound", "There is no such collection (the message suggests the nearest name), or the one of that number was dropped.", "Create it, or correct the name; look its number up again."},
	{wire.CodeVersionNotFound, "VersionNotFound", "The document never had that version, or did not exist at that time.", "List its history."},
	{wire.CodeHistoryExpired, "HistoryExpired", "The version existed, but is past the retention window.", "Read a later time; raise the collection's retention for the future. A scan has to start again."},

	{wire.CodeVersionConflict, "VersionConflict", "The document has another version than the write expected. `Version` is the one it has.", "Read the document again, then decide."},
	{wire.CodeAlreadyExists, "AlreadyExists", "The write demanded that the document does not exist, and it does. `Version` is its version.", "Read it, then decide; `put` replaces it."},
	{wire.CodeUpdateFailed, "UpdateFailed", "The operators do not fit the document, as `$inc` of a string.", "Read the document; the message names the path."},
	{wire.CodeCollectionExists, "CollectionExists", "The collection exists with other options.", "Use it as it is, or drop it first."},
	{wire.CodeClusterExists, "ClusterExists", "The nodes form a cluster already, or began to form another one.", "Use it, or complete it; the message says which."},
	{wire.CodeNotAttempted, "NotAttempted", "An earlier item of an ordered bulk write failed; this one was not tried.", "Resolve the earlier one, then send the rest."},

	{wire.CodeTxnConflict, "TxnConflict", "A transaction read what has changed since, or met another that holds what it needs; the message names the document and the other. Nothing was done.", "Run the transaction again from its first read; the client library does."},
	{wire.CodeTxnAborted, "TxnAborted", "A transaction was not decided within its time, or somebody aborted it. Nothing was done.", "Run the transaction again from its first read; the client library does."},

	{wire.CodeDuplicateValue, "DuplicateValue", "Another document holds the value of a unique field; the message names the field, the value and the document. Nothing was done.", "Use another value, or write the document that holds it."},

	{wire.CodeDocumentTooLarge, "DocumentTooLarge", "The document is larger than the cluster accepts.", "Split it."},
	{wire.CodeTooDeep, "TooDeep", "The document's arrays and maps are nested deeper than 64.", "Flatten it."},
	{wire.CodeFrameTooLarge, "FrameTooLarge", "The message is larger than a frame may be.", "Send several smaller requests."},
	{wire.CodeTooManyItems, "TooManyItems", "The request has more items than are allowed.", "Send several smaller requests."},
	{wire.CodeTooManyRequests, "TooManyRequests", "Too many requests are in flight on one connection.", "Wait for answers, or use another connection."},
	{wire.CodeDiskFull, "DiskFull", "Free disk space is below the reserve; writes are refused, reads are served. Nothing was done.", "Free space; the same request may then be sent again."},
	{wire.CodeTooManyConns, "TooManyConns", "The server has as many connections as it accepts.", "Share connections, or ask another node."},

	{wire.CodeNotLeader, "NotLeader", "This node does not lead the shard group. `Leader` names the node that does, if it is known. Nothing was done.", "Send the same request there, or without `Direct`."},
	{wire.CodeStaleEpoch, "StaleEpoch", "The request was routed by an old placement map. Nothing was done.", "Fetch the topology, then send the same request again."},
	{wire.CodeUnavailable, "Unavailable", "The shard group has no leader or no majority right now. Nothing was done.", "Send the same request again."},
	{wire.CodeOverloaded, "Overloaded", "The shard group's queue is full. Nothing was done.", "Wait, then send the same request again."},
	{wire.CodeTimeout, "Timeout", "The deadline passed before anything was done.", "Send the same request again, with more time."},
	{wire.CodeNotInitialised, "NotInitialised", "The node belongs to no cluster yet.", "Run `idb cluster init`."},
	{wire.CodeWrongCluster, "WrongCluster", "The node belongs to another cluster, or was wiped.", "Check the address."},
	{wire.CodeShuttingDown, "ShuttingDown", "The node is shutting down. Nothing was done.", "Send the same request to another node."},
	{wire.CodeLocked, "Locked", "A transaction that is about to be decided holds the document; the message names it. Nothing was done.", "Wait, then send the same request again."},

	{wire.CodeOutcomeUnknown, "OutcomeUnknown", "The write was sent to its shard group and no answer came in time: it may have happened, and may yet happen.", "Send it again under the same request ID: it has the effect of once, and the answer is the first one's."},
	{wire.CodeOutcomeExpired, "OutcomeExpired", "The request ID is older than what the cluster remembers, so whether it was done is not known any more. This attempt did nothing.", "Read the document, or the catalog, to see."},

	{wire.CodeInternal, "Internal", "A fault of the server.", "Look at the server's log; report it."},
}

// rowOf finds a code's row.
func rowOf(c wire.Code) (errorRow, bool) {
	for _, row := range errorTable {
		if row.code == c {
			return row, true
		}
	}
	return errorRow{}, false
}

// subject is what a refusal is about: "users/u17", "users", or nothing.
type subject struct{ collection, id string }

func (s subject) String() string {
	switch {
	case s.collection == "":
		return "the request"
	case s.id == "":
		return s.collection
	}
	return s.collection + "/" + showID(s.id)
}

// showID prints an ID as it is where that is readable, else quoted, and cut.
func showID(id string) string {
	const most = 80
	short := id
	if len(short) > most {
		short = strings.ToValidUTF8(short[:most], "") + "…"
	}
	if !utf8.ValidString(id) || strings.ContainsFunc(short, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(short)
	}
	return short
}

// refuse makes a refusal.
func refuse(code wire.Code, format string, args ...any) *wire.Error {
	return &wire.Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// wireError turns what a lower package answered into a refusal about s.
// Nothing that it does not know is passed on: that is Internal, and logged.
func (r *Router) wireError(err error, s subject) *wire.Error {
	var (
		refusal   *wire.Error
		notLeader *shardgroup.NotLeaderError
		conn      *wire.ConnError
		halted    *shardgroup.HaltError
		back      *shardgroup.StepBack
	)
	switch {
	case errors.As(err, &refusal):
		return r.word(refusal, s, "")
	case errors.As(err, &notLeader):
		e := refuse(wire.CodeNotLeader, "%s: %s is led by %s (ask it)", s, notLeader.Group, notLeader.Leader)
		if notLeader.Leader == "" {
			e.Message = fmt.Sprintf("%s: %s has no known leader right now (retry)", s, notLeader.Group)
		}
		e.Leader = string(notLeader.Leader)
		return e
	case errors.Is(err, shardgroup.ErrOutcomeUnknown):
		return refuse(wire.CodeOutcomeUnknown, "%s: the write was proposed and its outcome is unknown: it may yet happen (retry under the same request ID)", s)
	case errors.As(err, &back):
		return refuse(wire.CodeTxnConflict, "%s: is held by transaction %s, which is older (run the transaction again)", s, back.Rival)
	case errors.Is(err, shardgroup.ErrOverloaded):
		e := refuse(wire.CodeOverloaded, "%s: too many writes are waiting at its shard group (wait, then retry)", s)
		e.RetryAfterMillis = 20
		return e
	case errors.Is(err, shardgroup.ErrHoldRefused), errors.Is(err, shardgroup.ErrHoldBroken):
		return refuse(wire.CodeUnavailable, "%s: no moment was found to read several shard groups at, others want the same (retry)", s)
	case errors.Is(err, shardgroup.ErrDiskFull):
		what := fmt.Sprintf("the disk of node %s is", r.opts.Self)
		var full *shardgroup.DiskFullError
		if errors.As(err, &full) && len(full.Nodes) == 1 {
			what = fmt.Sprintf("the disk of node %s is", full.Nodes[0])
		} else if full != nil {
			what = fmt.Sprintf("the disks of nodes %s are", joinNodes(full.Nodes))
		}
		e := refuse(wire.CodeDiskFull, "%s: %s full up to its reserve, writes are refused (free space, then retry)", s, what)
		e.RetryAfterMillis = 1000
		return e
	case errors.As(err, &halted), errors.Is(err, shardgroup.ErrStopped), errors.Is(err, shardgroup.ErrNoGroup):
		return refuse(wire.CodeUnavailable, "%s: node %s does not serve its shard group now (retry)", s, r.opts.Self)
	case errors.As(err, &conn):
		if conn.Sent {
			return refuse(wire.CodeOutcomeUnknown, "%s: no answer from the leader of its shard group: %v (retry under the same request ID)", s, conn.Err)
		}
		return refuse(wire.CodeUnavailable, "%s: the leader of its shard group cannot be reached: %v (retry)", s, conn.Err)
	case errors.Is(err, shardgroup.ErrTimeout), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return refuse(wire.CodeTimeout, "%s: the time was up before anything was done (retry, with more time)", s)
	}
	if e := r.machineError(err, s); e != nil {
		return e
	}
	r.log.Error("request failed", "error", err)
	return refuse(wire.CodeInternal, "%s: a fault of node %s, see its log: %v", s, r.opts.Self, err)
}

// wireReadError is wireError for what changes nothing: its outcome cannot be
// unknown, it just was not answered.
func (r *Router) wireReadError(err error, s subject) *wire.Error {
	e := r.wireError(err, s)
	if e.Code == wire.CodeOutcomeUnknown {
		return refuse(wire.CodeUnavailable, "%s: no answer from its shard group (retry): %v", s, err)
	}
	return e
}

// word gives a refusal that carries only codes and numbers its sentence. One
// that has a sentence keeps it.
func (r *Router) word(e *wire.Error, s subject, detail string) *wire.Error {
	if e.Message != "" {
		return e
	}
	worded := *e
	switch e.Code {
	case wire.CodeNotFound:
		worded.Message = fmt.Sprintf("%s: does not exist", s)
	case wire.CodeVersionNotFound:
		worded.Message = fmt.Sprintf("%s: has no such version (list its history)", s)
	case wire.CodeHistoryExpired:
		worded.Message = fmt.Sprintf("%s: that version is past the retention window and was collected", s)
	case wire.CodeAlreadyExists:
		worded.Message = fmt.Sprintf("%s: exists already, at version %d (put replaces it)", s, e.Version)
	case wire.CodeVersionConflict:
		worded.Message = fmt.Sprintf("%s: version is %d, the write expected another (re-read and retry)", s, e.Version)
	case wire.CodeStaleEpoch:
		worded.Message = fmt.Sprintf("%s: routed by an old placement map (refresh the map, then retry)", s)
	case wire.CodeOutcomeExpired:
		worded.Message = fmt.Sprintf("%s: this request ID is older than what the cluster remembers, nothing was done now (read the document to see what was done then)", s)
	case wire.CodeCollectionNotFound:
		worded.Message = fmt.Sprintf("collection %s does not exist any more", s.collection)
	default:
		row, ok := rowOf(e.Code)
		if !ok {
			row.what = fmt.Sprintf("Refused with code %d.", e.Code)
		}
		worded.Message = fmt.Sprintf("%s: %s", s, sentence(row.what))
	}
	if detail != "" {
		worded.Message = fmt.Sprintf("%s: %s", s, detail)
	}
	return &worded
}

// sentence takes a table's sentence into the middle of a message.
func sentence(s string) string {
	first, size := utf8.DecodeRuneInString(s)
	return string(unicode.ToLower(first)) + strings.TrimSuffix(s[size:], ".")
}

// wordWrite is word with what only the write knows.
func (r *Router) wordWrite(e *wire.Error, collection string, item *wire.WriteItem, detail string) *wire.Error {
	if e.Message != "" {
		return e
	}
	s := subject{collection, item.ID}
	switch {
	case e.Code == wire.CodeVersionConflict && e.Version == 0 && item.IfVersion != 0:
		worded := *e
		worded.Message = fmt.Sprintf("%s: does not exist, the write expected version %d (re-read and retry)", s, item.IfVersion)
		return &worded
	case e.Code == wire.CodeVersionConflict && item.IfVersion != 0:
		worded := *e
		worded.Message = fmt.Sprintf("%s: version is %d, the write expected %d (re-read and retry)", s, e.Version, item.IfVersion)
		return &worded
	case e.Code == wire.CodeVersionNotFound && item.Op == wire.OpRestore:
		worded := *e
		worded.Message = fmt.Sprintf("%s: has no version %d to restore (list its history)", s, item.RestoreVersion)
		return &worded
	case e.Code == wire.CodeHistoryExpired && item.Op == wire.OpRestore:
		worded := *e
		worded.Message = fmt.Sprintf("%s: version %d is past the retention window and was collected", s, item.RestoreVersion)
		return &worded
	}
	return r.word(e, s, detail)
}

// passing says that routing again may help.
func passing(c wire.Code) bool {
	switch c {
	case wire.CodeNotLeader, wire.CodeStaleEpoch, wire.CodeUnavailable, wire.CodeShuttingDown, wire.CodeLocked:
		return true
	}
	return false
}

// decided says that a write's refusal came from the log, under its request ID,
// or from what no attempt could change: it is true of earlier attempts too. Any
// other refusal is of the last attempt alone.
func decided(c wire.Code) bool {
	switch c {
	case wire.CodeNotFound, wire.CodeVersionNotFound, wire.CodeHistoryExpired, wire.CodeVersionConflict,
		wire.CodeAlreadyExists, wire.CodeUpdateFailed, wire.CodeDuplicateValue, wire.CodeDocumentTooLarge, wire.CodeTooDeep,
		wire.CodeBadRequest, wire.CodeBadDocument, wire.CodeBadUpdate, wire.CodeNotAttempted:
		return true
	}
	return c.Unknown()
}

// notLeaderHere refuses what this node would have to forward.
func notLeaderHere(g placement.GroupID, leader placement.NodeID, s subject) *wire.Error {
	e := &wire.Error{Code: wire.CodeNotLeader, Leader: string(leader)}
	if leader == "" {
		e.Message = fmt.Sprintf("%s: %s has no known leader right now (retry)", s, g)
	} else {
		e.Message = fmt.Sprintf("%s: %s is led by %s (ask it)", s, g, leader)
	}
	return e
}

// joinNodes is "n1, n2 and n3".
func joinNodes(nodes []placement.NodeID) string {
	var b strings.Builder
	for i, n := range nodes {
		switch {
		case i == 0:
		case i == len(nodes)-1:
			b.WriteString(" and ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(string(n))
	}
	return b.String()
}

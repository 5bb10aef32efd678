package wire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"

	"github.com/tinylib/msgp/msgp"
)

// The vectors in testdata/wire are what SDKs in other languages are tested on.
// They are written from the tables below (IDB_TEST_GOLDEN=write) and read back
// here: the bytes in the files must give these values, and these values the
// bytes. A change in the files is a change of the protocol.

type vectors struct {
	About      string
	Frames     []frameVector
	Messages   []messageVector
	Refused    []refusedVector
	Partitions []partitionVector
}

type frameVector struct {
	Name    string
	Meaning string
	Kind    uint8
	Flags   uint8
	Timeout uint32
	Request uint64
	Body    string // hex
	Hex     string
}

type messageVector struct {
	Name    string
	Message string
	Meaning string
	Hex     string
	Value   json.RawMessage
}

type refusedVector struct {
	Name    string
	Message string
	Code    uint16
	Hex     string
	Repeat  string `json:",omitempty"` // hex that follows Hex…
	Times   int    `json:",omitempty"` // …so many times
}

type partitionVector struct {
	Collection string
	Separator  string
	ID         string
	Key        string
	Partitions uint32
	Partition  uint32
}

var random16 = [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

// berlin is {"name": "Berlin", "people": 3677472}, keys in order.
func berlin() []byte {
	b := msgp.AppendMapHeader(nil, 2)
	b = msgp.AppendString(b, "name")
	b = msgp.AppendString(b, "Berlin")
	b = msgp.AppendString(b, "people")
	return msgp.AppendUint64(b, 3677472)
}

func grow() []byte { // {"$inc": {"people": 1}}
	b := msgp.AppendMapHeader(nil, 1)
	b = msgp.AppendString(b, "$inc")
	b = msgp.AppendMapHeader(b, 1)
	b = msgp.AppendString(b, "people")
	return msgp.AppendUint64(b, 1)
}

var aCost = Cost{Groups: 1, Keys: 2, Docs: 1, Bytes: 70, WaitMicros: 480, ReadVersion: 0}

var messageTable = []struct {
	name, meaning string
	m             Message
}{
	{"hello", "the first body of every connection of a client", &Hello{Magic: Magic, MinVersion: 1, MaxVersion: 1, Client: "example 1.0", ClusterID: ""}},
	{"hello to one cluster", "refused with WrongCluster by a node of another", &Hello{Magic: Magic, MinVersion: 1, MaxVersion: 3, Client: "example 1.0", ClusterID: "5f0c9a"}},
	{"hello reply", "version 1 was chosen; Now is the base of request IDs", &HelloReply{Version: 1, Server: "idb 0.1.0", NodeID: "n1", ClusterID: "5f0c9a", Now: 114967706271645696, MaxFrame: MaxFrameBytes, MaxDocument: 1 << 20, MaxInFlight: 1024, TopologyEpoch: 1}},
	{"error", "every field in use", &Error{Code: CodeVersionConflict, Message: "cities/DE/1: version is 9, the write expected 8 (re-read and retry)", Leader: "n2", Version: 9, Epoch: 3, RetryAfterMillis: 50, Now: 114967706271645699}},
	{"error, least", "only the code and the text", &Error{Code: CodeNotFound, Message: "cities/DE/0 does not exist"}},
	{"request ID", "16 random bytes, never used for another write", &RequestID{Time: 114967706271645696, Random: random16}},
	{"put", "create or replace one document", &WriteRequest{Collection: "cities", Number: 7, Epoch: 1, Items: []WriteItem{{RequestID: RequestID{114967706271645696, random16}, Op: OpPut, ID: "DE/1", Body: berlin()}}}},
	{"insert and answer with the document", "refused with AlreadyExists if it exists", &WriteRequest{Collection: "cities", Number: 7, Items: []WriteItem{{RequestID: RequestID{1, random16}, Op: OpInsert, ID: "DE/1", Body: berlin(), ReturnDoc: true}}}},
	{"update at version 8", "the body is a map of operators", &WriteRequest{Collection: "cities", Number: 7, Epoch: 1, Direct: true, Items: []WriteItem{{RequestID: RequestID{1, random16}, Op: OpUpdate, ID: "DE/1", Body: grow(), IfVersion: 8}}}},
	{"ordered bulk", "an upsert, a delete that needs the document, a restore of version 3", &WriteRequest{Collection: "cities", Number: 7, Ordered: true, Items: []WriteItem{
		{RequestID: RequestID{1, random16}, Op: OpUpsert, ID: "a", Body: grow(), Cond: CondAbsent},
		{RequestID: RequestID{2, random16}, Op: OpDelete, ID: "b", Cond: CondPresent},
		{RequestID: RequestID{1<<64 - 1, random16}, Op: OpRestore, ID: "ü", RestoreVersion: 3},
	}}},
	{"write item", "alone, as nodes pass it on", &WriteItem{RequestID: RequestID{1, random16}, Op: OpPut, ID: "a", Body: berlin(), IfVersion: 1, Cond: CondPresent}},
	{"write result, done", "a document was created", &WriteResult{Version: 1, Time: 114967706271645697, CreatedAt: 114967706271645697, Created: true}},
	{"write reply", "one done as an earlier attempt, with its document; one refused", &WriteReply{Results: []WriteResult{
		{Version: 2, Time: 114967706271645698, CreatedAt: 114967706271645697, Duplicate: true, Doc: berlin()},
		{Error: &Error{Code: CodeNotAttempted, Message: "not attempted, an earlier item failed"}},
	}, Now: 114967706271645699, Cost: aCost}},
	{"get", "two documents, latest", &GetRequest{Collection: "cities", Epoch: 1, Direct: true, IDs: []string{"DE/1", "DE/2"}}},
	{"get at a version", "", &GetRequest{Collection: "cities", IDs: []string{"DE/1"}, AtVersion: 3}},
	{"get with a bound", "a megabyte of documents", &GetRequest{Collection: "cities", IDs: []string{"DE/1", "DE/2"}, MaxBytes: 1 << 20}},
	{"get at a time", "existence only", &GetRequest{Collection: "cities", IDs: []string{"DE/1"}, AtTime: 114967706271645696, NoBody: true}},
	{"document", "", &Document{ID: "DE/1", Version: 2, CreatedAt: 114967706271645697, UpdatedAt: 114967706271645698, Body: berlin()}},
	{"get result", "not there", &GetResult{Error: &Error{Code: CodeNotFound, Message: "cities/DE/2 does not exist"}}},
	{"get reply", "one found, one not", &GetReply{Results: []GetResult{
		{Doc: Document{ID: "DE/1", Version: 2, CreatedAt: 1, UpdatedAt: 2, Body: berlin()}},
		{Error: &Error{Code: CodeNotFound, Message: "cities/DE/2 does not exist"}},
	}, Now: 3, Cost: aCost}},
	{"scan", "Germany backwards, at most 100 in this answer", &ScanRequest{Collection: "cities", Prefix: "DE/", Limit: 100, MaxBytes: 1 << 20, Reverse: true}},
	{"scan, next", "the cursor of the answer before", &ScanRequest{Collection: "cities", Cursor: []byte{1, 2, 3, 255}}},
	{"scan page", "there is more", &ScanPage{Docs: []Document{{ID: "DE/1", Version: 1, CreatedAt: 1, UpdatedAt: 1, Body: berlin()}}, Cursor: []byte{1, 2, 3, 255}, Time: 9, Cost: Cost{Groups: 8, Keys: 10, Docs: 1, Bytes: 31, WaitMicros: 3, ReadVersion: 9}}},
	{"scan page, last", "no cursor: the scan is complete", &ScanPage{Time: 9}},
	{"count", "", &CountRequest{Collection: "cities", Prefix: "DE/"}},
	{"count reply", "", &CountReply{Count: 171075, Bytes: 1 << 40, Cost: Cost{Groups: 8}}},
	{"history", "versions below 9, ten at most", &HistoryRequest{Collection: "cities", Epoch: 1, Direct: true, ID: "DE/1", Before: 9, Limit: 10, NoBody: true}},
	{"history reply", "deleted at version 3; older ones are left", &HistoryReply{Versions: []Document{
		{ID: "DE/1", Version: 3, CreatedAt: 1, UpdatedAt: 3, Deleted: true},
		{ID: "DE/1", Version: 2, CreatedAt: 1, UpdatedAt: 2, Body: berlin()},
	}, More: true, Cost: aCost}},
	{"cost", "", &Cost{Groups: 8, Keys: 1 << 33, Docs: 5, Bytes: 6, WaitMicros: 7, ReadVersion: 1<<64 - 1}},
	{"collection options", "history for ever", &CollectionOptions{Separator: "/", RetentionSeconds: RetainForever, RetentionVersions: 2}},
	{"collection options", "unique fields", &CollectionOptions{Unique: []Unique{{Fields: []string{"email"}}, {Fields: []string{"address.country", "code"}}}}},
	{"collection info", "", &CollectionInfo{ID: 7, Name: "cities", Options: CollectionOptions{Separator: "/"}, CreatedAt: 114967706271645696, Dropping: true}},
	{"collection", "what is the name now?", &CollectionRequest{Name: "cities"}},
	{"create collection", "", &CreateCollectionRequest{Name: "cities", Options: CollectionOptions{Separator: "/", RetentionSeconds: 3600}, RequestID: RequestID{1, random16}}},
	{"create collection by writing", "any collection of that name will do", &CreateCollectionRequest{Name: "cities", RequestID: RequestID{1, random16}, Implicit: true}},
	{"drop collection", "", &DropCollectionRequest{Name: "cities", RequestID: RequestID{2, random16}}},
	{"change settings", "", &SettingsRequest{Settings: Settings{ExplicitCollections: true, RetentionSeconds: 7200}, RequestID: RequestID{3, random16}}},
	{"settings", "", &Settings{ExplicitCollections: true, RetentionSeconds: 7200}},
	{"change leaders", "all on as few nodes as possible", &LeadersRequest{Leaders: LeadersTogether, RequestID: RequestID{3, random16}}},
	{"topology request", "held for up to 30 s until something is newer", &TopologyRequest{HaveEpoch: 1, HaveCatalog: 4, WaitMillis: 30000}},
	{"fresh topology request", "the answer has all that was changed before", &TopologyRequest{Fresh: true}},
	{"topology", "three nodes, two groups, seven partitions", &Topology{ClusterID: "5f0c9a", Epoch: 1, Catalog: 4, Owners: []uint32{1, 2, 1, 2, 1, 2, 1},
		Groups: []GroupInfo{{1, []string{"n1", "n2", "n3"}, "n1", 2, "n1"}, {2, []string{"n1", "n2", "n3"}, "", 0, "n1"}},
		Nodes: []NodeInfo{{"n1", "127.0.0.1:7001", "127.0.0.1:7101", "127.0.0.1:7201", "eu", "a", "x1"},
			{"n2", "127.0.0.1:7002", "127.0.0.1:7102", "127.0.0.1:7202", "eu", "b", "x2"},
			{"n3", "127.0.0.1:7003", "127.0.0.1:7103", "127.0.0.1:7203", "eu", "c", "x3"}},
		Collections: []CollectionInfo{{ID: 7, Name: "cities", Options: CollectionOptions{Separator: "/"}, CreatedAt: 5}},
		Settings:    Settings{RetentionSeconds: 3600}, Leaders: LeadersTogether}},
	{"topology, unchanged", "epoch and catalog are those of the request", &Topology{Epoch: 1, Catalog: 4}},
	{"group info", "", &GroupInfo{ID: 1, Replicas: []string{"n1"}, Leader: "n1", Term: 3}},
	{"node info", "", &NodeInfo{ID: "n1", ClientAddr: "10.0.0.1:7001", Region: "eu", Zone: "a"}},
	{"cluster init", "", &ClusterInitRequest{Nodes: []string{"127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"}, Shards: 8, Replicas: 3, Partitions: 271}},
	{"cluster init, leaders together", "", &ClusterInitRequest{Nodes: []string{"127.0.0.1:7001"}, Shards: 8, Replicas: 1, Partitions: 271, Leaders: LeadersTogether}},
	{"cluster init reply", "", &ClusterInitReply{ClusterID: "5f0c9a", Topology: Topology{ClusterID: "5f0c9a", Epoch: 1}, Resumed: true}},
	{"group status", "", &GroupStatus{ID: 1, State: "leader", Leader: "n1", Term: 2, Commit: 100, Applied: 99, LastIndex: 101, Flushed: 50, Partitions: 34, Documents: 21384, Bytes: 1 << 21, Clock: 9, Digest: 1<<64 - 2, Error: ""}},
	{"node status", "", &NodeStatus{Node: NodeInfo{ID: "n1"}, ClusterID: "5f0c9a", Version: "0.1.0", UptimeSeconds: 60, Ready: true, Epoch: 1, Now: 9, Groups: []GroupStatus{{ID: 0, State: "follower", Leader: "n2"}}, DiskFreeBytes: 1 << 40, DiskUsedBytes: 1 << 30, MemoryBytes: 1 << 28, DiskFull: false}},
	{"cluster status", "one node answered, one did not", &ClusterStatus{Topology: Topology{ClusterID: "5f0c9a"}, Nodes: []NodeAnswer{{ID: "n1", Status: NodeStatus{Ready: true}}, {ID: "n2", Error: "no answer within 1s"}}}},
	{"node answer", "", &NodeAnswer{ID: "n2", Error: "connection refused"}},
	{"check", "what belongs to no partition, and partitions 0 to 99, at 8 MiB a second", &CheckRequest{Group: 2, State: true, To: 100, RateKiB: 8192}},
	{"check reply", "one replica differs in one document, one was not asked", &CheckReply{Group: 2, Index: 1204, Replicas: []CheckReplica{{Node: "n1"}, {Node: "n2"}, {Node: "n3", Error: "no answer within 10s"}},
		Findings: []CheckFinding{{Kind: "difference", Partition: 41, Collection: "cities", ID: "DE/1", Nodes: []string{"n2"}, Text: "version 9 differs"}}, Found: 1,
		Documents: 21384, Versions: 30000, Bytes: 1 << 21, Requests: 512, Owned: []uint32{1, 41}}},
	{"check replica", "", &CheckReplica{Node: "n1"}},
	{"check finding", "a warning of no partition", &CheckFinding{Kind: "horizon", Warning: true, Partition: NoPartition, Text: "the horizon of request IDs is ahead"}},
	{"commit", "reads one document and the absence of another, a range, and writes two", &CommitRequest{ID: RequestID{1, random16}, Born: 5, Attempt: 2, TimeoutMillis: 5000, Locked: true, Collections: []TxnCollection{
		{Name: "cities", Number: 7, Reads: []TxnRead{{ID: "DE/1", At: 7}, {ID: "DE/2"}}, Ranges: []TxnRange{{Prefix: "DE/", From: "DE/1", To: "DE/9", At: 9}}, Writes: []WriteItem{{Op: OpPut, ID: "DE/1", Body: berlin()}, {Op: OpUpdate, ID: "DE/3", Body: grow()}}},
	}}},
	{"commit reply", "", &CommitReply{Time: 114967706271645697, Duplicate: true, Now: 114967706271645699, Cost: aCost}},
	{"lock", "the first of its transaction", &LockRequest{ID: RequestID{1, random16}, Born: 5, TTLMillis: 1000, Collection: "cities", Document: "DE/1", Direct: true, First: true}},
	{"lock reply", "", &LockReply{Result: GetResult{Doc: Document{ID: "DE/1", Version: 2, UpdatedAt: 114967706271645697, Body: berlin()}}, AsOf: 114967706271645699, Now: 114967706271645700, Cost: aCost}},
	{"unlock", "", &UnlockRequest{ID: RequestID{1, random16}, Collections: []TxnCollection{{Name: "cities", Reads: []TxnRead{{ID: "DE/1"}}}}}},
	{"evaluate", "what an update makes of a document", &EvaluateRequest{Collection: "cities", Document: Document{ID: "DE/1", Version: 2, Body: berlin()}, Items: []WriteItem{{Op: OpUpdate, ID: "DE/1", Body: grow()}}}},
	{"evaluate reply", "", &EvaluateReply{Body: berlin(), Now: 3}},
	{"list all transactions", "", &TxnListRequest{}},
	{"list one transaction", "by the beginning of its ID", &TxnListRequest{Time: 1, Random: random16[:6]}},
	{"transactions", "one that is prepared in g1 and g2, a single write that waits for it, and a group that did not answer", &TxnList{
		Txns: []TxnInfo{{ID: RequestID{1, random16}, State: TxnPrepared, Home: 3, Time: 7, Deadline: 9, Born: 5, Participants: 2, Parts: []TxnPart{
			{Group: 1, Partition: 4, State: TxnPrepared, Time: 6, Reads: 1, Writes: 1},
			{Group: 2, Partition: 5, State: TxnPrepared, Time: 7, Writes: 1},
		}, Reads: 1, Writes: 2, HomeGroup: 2}},
		Waits:   []TxnWait{{For: RequestID{1, random16}, Micros: 300, What: WaitWrite, Group: 1, Partition: 4, Collection: "cities", Document: "DE/1"}},
		LeftOut: 1, Missing: []TxnMissing{{Group: 3, Error: "g3 has no leader"}}, Now: 8,
	}},
	{"transaction's collection", "", &TxnCollection{Name: "cities", Reads: []TxnRead{{ID: "DE/1", At: 7}}}},
	{"transaction's read", "there was none", &TxnRead{ID: "DE/2"}},
	{"transaction's range", "all of a collection", &TxnRange{At: 9}},
	{"transaction", "committed, not resolved everywhere", &TxnInfo{ID: RequestID{1, random16}, State: TxnCommitted, Home: 3, Time: 7, Participants: 1, Parts: []TxnPart{{Group: 1, Partition: 3, State: TxnCommitted, Time: 7}}}},
	{"transaction's part", "of a transaction that was asked for", &TxnPart{Group: 1, Partition: 4, State: TxnPrepared, Time: 6, Reads: 1, Writes: 1, Locks: 1, Documents: []TxnDocument{{How: HoldWrite, Collection: "cities", ID: "DE/1"}}}},
	{"held document", "locked up front, for 900 ms yet", &TxnDocument{How: HoldFront, Collection: "cities", ID: "DE/1", Expires: 900}},
	{"held range", "the IDs from DE/1 to DE/9", &TxnDocument{How: HoldRange, Collection: "cities", ID: "DE/", From: "DE/1", To: "DE/9"}},
	{"wait", "a transaction that prepares waits for another", &TxnWait{ID: RequestID{1, random16}, For: RequestID{2, random16}, Micros: 300, What: WaitPrepare, Group: 2, Partition: 5, Collection: "cities", Document: "DE/2"}},
	{"group that did not answer", "", &TxnMissing{Group: 3, Error: "g3 has no leader"}},
	{"abort a transaction", "", &TxnAbortRequest{Time: 1, Random: random16[:]}},
	{"abort reply", "aborted now; two partitions were resolved, and g3 was not reached", &TxnAbortReply{ID: RequestID{1, random16}, State: TxnAborted, Home: 3, Resolved: 2, Unlocked: 1, Missing: []TxnMissing{{Group: 3, Error: "g3 has no leader"}}, Now: 8}},
}

var frameTable = []struct {
	name, meaning string
	f             Frame
}{
	{"hello", "opens the connection", Frame{Kind: KindHello, Request: 1, Body: (&Hello{Magic: Magic, MinVersion: 1, MaxVersion: 1, Client: "example 1.0"}).AppendTo(nil)}},
	{"hello, accepted", "", Frame{Kind: KindHello, Flags: FlagResponse, Request: 1, Body: (&HelloReply{Version: 1, Server: "idb 0.1.0", NodeID: "n1"}).AppendTo(nil)}},
	{"ping", "no body", Frame{Kind: KindPing, Request: 2}},
	{"ping, answered", "", Frame{Kind: KindPing, Flags: FlagResponse, Request: 2}},
	{"count, five seconds", "a timeout of 5000 ms", Frame{Kind: KindCount, Timeout: 5000, Request: 3, Body: (&CountRequest{Collection: "cities"}).AppendTo(nil)}},
	{"count, refused", "the body is an Error", Frame{Kind: KindCount, Flags: FlagResponse | FlagError, Request: 3, Body: (&Error{Code: CodeCollectionNotFound, Message: "collection citis does not exist (did you mean cities?)"}).AppendTo(nil)}},
	{"scan", "", Frame{Kind: KindScan, Request: 1<<64 - 1, Body: (&ScanRequest{Collection: "cities"}).AppendTo(nil)}},
	{"scan, first part", "more frames follow", Frame{Kind: KindScan, Flags: FlagResponse | FlagMore, Request: 1<<64 - 1, Body: (&ScanPage{Time: 9}).AppendTo(nil)}},
	{"scan, last part", "", Frame{Kind: KindScan, Flags: FlagResponse, Request: 1<<64 - 1, Body: (&ScanPage{Time: 9}).AppendTo(nil)}},
	{"cancel", "of request 3; has no answer of its own", Frame{Kind: KindCancel, Request: 3}},
	{"connection refused", "request 0 stands for the connection", Frame{Flags: FlagResponse | FlagError, Body: (&Error{Code: CodeTooManyConns, Message: "this node serves 4096 connections already"}).AppendTo(nil)}},
}

var refusedTable = []refusedVector{
	{"no body", "GetRequest", uint16(CodeBadRequest), "", "", 0},
	{"nil", "GetRequest", uint16(CodeBadRequest), "c0", "", 0},
	{"a map", "Hello", uint16(CodeBadRequest), "80", "", 0},
	{"a byte that msgpack does not use", "GetRequest", uint16(CodeBadRequest), "91c1", "", 0},
	{"bytes after the value", "CountRequest", uint16(CodeBadRequest), "9000", "", 0},
	{"an array cut", "CountRequest", uint16(CodeBadRequest), "92a163", "", 0},
	{"a string cut", "CountRequest", uint16(CodeBadRequest), "91a563", "", 0},
	{"an array of 4 Gi values", "Topology", uint16(CodeBadRequest), "ddffffffff", "", 0},
	{"a map of 4 Gi pairs", "WriteRequest", uint16(CodeBadRequest), "95a16300c2c2dfffffffff", "", 0},
	{"bytes of 4 GiB", "ScanRequest", uint16(CodeBadRequest), "93a163a0c6ffffffff", "", 0},
	{"arrays 16 Mi deep", "GetRequest", uint16(CodeTooDeep), "", "91", 16 << 20},
	{"maps 8 Mi deep", "WriteRequest", uint16(CodeTooDeep), "", "81a161", 8 << 20},
	{"more values than allowed", "GetRequest", uint16(CodeTooManyItems), "dd00400001", "c0", 4<<20 + 1},
	{"more items than allowed", "WriteRequest", uint16(CodeTooManyItems), "95a16300c2c2dc2711", "90", 10_001},
	{"more IDs than allowed", "GetRequest", uint16(CodeTooManyItems), "94a16300c2dc2711", "a161", 10_001},
	{"a number where a string should be", "GetRequest", uint16(CodeBadRequest), "9101", "", 0},
	{"a negative number", "TopologyRequest", uint16(CodeBadRequest), "91ff", "", 0},
	{"a request ID of 15 bytes", "RequestID", uint16(CodeBadRequest), "9201c40f000000000000000000000000000000", "", 0},
}

var partitionTable = []partitionVector{
	{Collection: "cities", ID: "DE/1", Partitions: 271},
	{Collection: "cities", ID: "DE/2", Partitions: 271},
	{Collection: "cities", Separator: "/", ID: "DE/1", Partitions: 271},
	{Collection: "cities", Separator: "/", ID: "DE/2", Partitions: 271},
	{Collection: "cities", Separator: "/", ID: "DE", Partitions: 271},
	{Collection: "cities", Separator: "/", ID: "/1", Partitions: 271},
	{Collection: "cities", Separator: "::", ID: "acme::order:1", Partitions: 271},
	{Collection: "users", ID: "u17", Partitions: 7},
	{Collection: "users", ID: "u17", Partitions: 1},
	{Collection: "users", ID: "u17", Partitions: 4093},
	{Collection: "a", ID: "b", Partitions: 271},
	{Collection: "ab", ID: "", Partitions: 271},
	{Collection: "Straße", ID: "日本/東京", Partitions: 271},
	{Collection: "Straße", Separator: "/", ID: "日本/東京", Partitions: 271},
}

func TestVectors(t *testing.T) {
	want := vectors{About: "Vectors of the protocol, see docs/protocol.md. Bytes are hex; numbers above 2^53 are strings; Body and Doc are msgpack values, null is msgpack's nil."}
	for _, e := range frameTable {
		want.Frames = append(want.Frames, frameVector{e.name, e.meaning, uint8(e.f.Kind), e.f.Flags, e.f.Timeout, e.f.Request,
			hex.EncodeToString(e.f.Body), hex.EncodeToString(AppendFrame(nil, &e.f))})
	}
	for _, e := range messageTable {
		want.Messages = append(want.Messages, messageVector{e.name, nameOf(e.m), e.meaning, hex.EncodeToString(Append(nil, e.m)), valueJSON(reflect.ValueOf(e.m).Elem(), "")})
	}
	want.Refused = refusedTable
	for _, p := range partitionTable {
		p.Key = PlacementKey(p.Separator, p.ID)
		p.Partition = Partition(p.Collection, p.Separator, p.ID, p.Partitions)
		want.Partitions = append(want.Partitions, p)
	}
	var kept vectors
	golden(t, "vectors.json", want, &kept)

	for i, v := range kept.Frames {
		f, err := ReadFrame(bytes.NewReader(unhex(t, v.Hex)), MaxFrameBytes)
		if err != nil || !reflect.DeepEqual(*f, frameTable[i].f) {
			t.Errorf("frame %q is %+v, %v", v.Name, f, err)
		}
	}
	covered := map[string]bool{}
	for i, v := range kept.Messages {
		covered[v.Message] = true
		m := messageNamed(t, v.Message)
		if err := Decode(unhex(t, v.Hex), m); err != nil || !reflect.DeepEqual(m, messageTable[i].m) {
			t.Errorf("message %q is %+v, %v", v.Name, m, err)
		}
	}
	for _, m := range everyMessage() {
		if !covered[nameOf(m)] {
			t.Errorf("no vector of %s", nameOf(m))
		}
	}
	for _, v := range kept.Refused {
		body := append(unhex(t, v.Hex), bytes.Repeat(unhex(t, v.Repeat), v.Times)...)
		if err := Decode(body, messageNamed(t, v.Message)); CodeOf(err) != Code(v.Code) {
			t.Errorf("%q: %v (code %v), want code %v", v.Name, err, CodeOf(err), Code(v.Code))
		}
	}
	for _, p := range kept.Partitions {
		if got := Partition(p.Collection, p.Separator, p.ID, p.Partitions); got != p.Partition {
			t.Errorf("%+v: partition %d", p, got)
		}
	}
}

func messageNamed(t *testing.T, name string) Message {
	t.Helper()
	for _, m := range everyMessage() {
		if nameOf(m) == name {
			return m
		}
	}
	t.Fatalf("no message %q", name)
	return nil
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// valueJSON is a message as readers in other languages see it: fields by name
// and in order, bytes as hex.
func valueJSON(v reflect.Value, name string) json.RawMessage {
	switch v.Kind() {
	case reflect.Struct:
		b := []byte{'{'}
		for i := range v.NumField() {
			if i > 0 {
				b = append(b, ',')
			}
			field := v.Type().Field(i).Name
			b = strconv.AppendQuote(b, field)
			b = append(b, ':')
			b = append(b, valueJSON(v.Field(i), field)...)
		}
		return append(b, '}')
	case reflect.Pointer:
		if v.IsNil() {
			return json.RawMessage("null")
		}
		return valueJSON(v.Elem(), name)
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			if v.Kind() == reflect.Slice && v.IsNil() && (name == "Body" || name == "Doc") {
				return json.RawMessage("null")
			}
			b := make([]byte, v.Len())
			reflect.Copy(reflect.ValueOf(b), v)
			return json.RawMessage(strconv.Quote(hex.EncodeToString(b)))
		}
		b := []byte{'['}
		for i := range v.Len() {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, valueJSON(v.Index(i), name)...)
		}
		return append(b, ']')
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if v.Uint() > 1<<53 {
			return json.RawMessage(strconv.Quote(strconv.FormatUint(v.Uint(), 10)))
		}
		return json.RawMessage(strconv.FormatUint(v.Uint(), 10))
	case reflect.Bool:
		return json.RawMessage(strconv.FormatBool(v.Bool()))
	case reflect.String:
		b, err := json.Marshal(v.String())
		if err != nil {
			panic(err)
		}
		return b
	}
	panic(fmt.Sprintf("a %s", v.Kind()))
}

// golden compares value with a file of testdata/wire, or writes it, and reads
// the file into kept.
func golden(t *testing.T, file string, value, kept any) {
	t.Helper()
	path := filepath.Join("..", "..", "testdata", "wire", file)
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(value); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("IDB_TEST_GOLDEN") == "write" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, out.Bytes()) {
		t.Errorf("%s does not fit the code (make golden writes it anew; a change in it is a change of the protocol)", path)
	}
	if err := json.Unmarshal(have, kept); err != nil {
		t.Fatal(err)
	}
}

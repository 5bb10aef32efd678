package wire

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/tinylib/msgp/msgp"
	"github.com/vmihailenco/msgpack/v5"
)

// everyMessage makes one empty message of each kind there is.
func everyMessage() []Message {
	return []Message{
		new(Error), new(RequestID), new(WriteItem), new(WriteRequest), new(WriteResult), new(WriteReply),
		new(GetRequest), new(Document), new(GetResult), new(GetReply), new(ScanRequest), new(ScanPage),
		new(CountRequest), new(CountReply), new(HistoryRequest), new(HistoryReply), new(Cost),
		new(Hello), new(HelloReply), new(CollectionOptions), new(CollectionInfo), new(CreateCollectionRequest),
		new(DropCollectionRequest), new(CollectionRequest), new(SettingsRequest), new(Settings), new(LeadersRequest), new(TopologyRequest), new(Topology), new(GroupInfo),
		new(NodeInfo), new(ClusterInitRequest), new(ClusterInitReply), new(NodeStatus), new(GroupStatus),
		new(ClusterStatus), new(NodeAnswer),
		new(CheckRequest), new(CheckReply), new(CheckReplica), new(CheckFinding),
		new(CommitRequest), new(TxnCollection), new(TxnRead), new(TxnRange), new(CommitReply), new(LockRequest), new(LockReply),
		new(UnlockRequest), new(EvaluateRequest), new(EvaluateReply),
		new(TxnListRequest), new(TxnList), new(TxnInfo), new(TxnPart), new(TxnDocument), new(TxnWait), new(TxnMissing), new(TxnAbortRequest), new(TxnAbortReply),
	}
}

// fill puts random values into v. Fields named Body and Doc are documents.
func fill(r *rand.Rand, v reflect.Value, name string) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(r, v.Field(i), v.Type().Field(i).Name)
		}
	case reflect.Pointer:
		if r.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(r, v.Elem(), name)
		}
	case reflect.Array:
		for i := range v.Len() {
			v.Index(i).SetUint(uint64(r.IntN(256)))
		}
	case reflect.Slice:
		n := []int{0, 1, 3, 20}[r.IntN(4)]
		if n == 0 {
			return
		}
		if v.Type().Elem().Kind() == reflect.Uint8 {
			if name == "Body" || name == "Doc" {
				v.SetBytes(randomDocument(r))
				return
			}
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(r.IntN(256))
			}
			v.SetBytes(b)
			return
		}
		s := reflect.MakeSlice(v.Type(), n, n)
		for i := range n {
			fill(r, s.Index(i), name)
		}
		v.Set(s)
	case reflect.String:
		v.SetString(strings.Repeat("é", []int{0, 1, 7, 20, 200}[r.IntN(5)]))
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(r.Uint64() >> r.IntN(65) & (1<<v.Type().Bits() - 1))
	default:
		panic("a field of kind " + v.Kind().String())
	}
}

func randomDocument(r *rand.Rand) []byte {
	b := msgp.AppendMapHeader(nil, 3)
	b = msgp.AppendString(b, "a")
	b = msgp.AppendInt64(b, -r.Int64())
	b = msgp.AppendString(b, "b")
	b = msgp.AppendBytes(b, make([]byte, r.IntN(300)))
	b = msgp.AppendString(b, "c")
	b = msgp.AppendArrayHeader(b, 2)
	b = msgp.AppendFloat64(b, r.Float64())
	return msgp.AppendNil(b)
}

func TestMessagesComeBackAsTheyWere(t *testing.T) {
	const seed = 1
	r := rand.New(rand.NewPCG(seed, seed))
	for _, m := range everyMessage() {
		for range 50 {
			fill(r, reflect.ValueOf(m).Elem(), "")
			body := Append(nil, m)
			back := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
			fill(r, reflect.ValueOf(back).Elem(), "") // what was there before must not shine through
			if err := Decode(body, back); err != nil {
				t.Fatalf("seed %d, %s: %v\n% x", seed, nameOf(m), err, body)
			}
			if !reflect.DeepEqual(m, back) {
				t.Fatalf("seed %d, %s:\nwas %+v\nis  %+v", seed, nameOf(m), m, back)
			}
			prefixed := Append([]byte("x"), m)
			if !bytes.Equal(prefixed[1:], body) || prefixed[0] != 'x' {
				t.Fatalf("%s: appended behind something it is another encoding", nameOf(m))
			}
			reflect.ValueOf(m).Elem().SetZero()
		}
	}
}

// The number of values in a message's array is the number of its fields: a
// field that a coder forgets cannot hide.
func TestEveryFieldIsCoded(t *testing.T) {
	for _, m := range everyMessage() {
		n, _, err := msgp.ReadArrayHeaderBytes(Append(nil, m))
		if err != nil || int(n) != reflect.TypeOf(m).Elem().NumField() {
			t.Errorf("%s: %d values coded (%v), it has %d fields", nameOf(m), n, err, reflect.TypeOf(m).Elem().NumField())
		}
	}
}

// Both ways of coding write the shortest form of everything: what another
// msgpack library decodes and encodes compactly is the same bytes.
func TestEncodingIsTheShortest(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for _, m := range everyMessage() {
		for range 20 {
			reflect.ValueOf(m).Elem().SetZero()
			fill(r, reflect.ValueOf(m).Elem(), "")
			body := Append(nil, m)
			dec := msgpack.NewDecoder(bytes.NewReader(body))
			value, err := dec.DecodeInterface()
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			enc := msgpack.NewEncoder(&out)
			enc.UseCompactInts(true)
			enc.SetSortMapKeys(true)
			if err := enc.Encode(value); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.Bytes(), body) {
				t.Fatalf("%s:\nours     % x\nshortest % x", nameOf(m), body, out.Bytes())
			}
		}
	}
}

func TestMessagesInsideMsgpack(t *testing.T) {
	in := struct {
		Topology Topology
		Group    *GroupStatus
	}{Topology{ClusterID: "c", Owners: []uint32{1, 2, 1}}, &GroupStatus{ID: 3, State: "leader"}}
	b, err := msgpack.Marshal(&in)
	if err != nil {
		t.Fatal(err)
	}
	out := in
	out.Topology, out.Group = Topology{}, nil
	if err := msgpack.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(in, out) {
		t.Fatalf("was %+v\nis  %+v", in, out)
	}
	if !bytes.Contains(b, in.Topology.AppendTo(nil)) {
		t.Error("inside another value a message is coded differently")
	}
}

// An older peer sends fewer fields, a newer one more; both are understood.
func TestFieldsMayBeMissingOrMore(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for _, m := range everyMessage() {
		fill(r, reflect.ValueOf(m).Elem(), "")
		whole := Append(nil, m)
		n, rest, _ := msgp.ReadArrayHeaderBytes(whole)
		var fields [][]byte
		for range n {
			size := skip(rest)
			fields = append(fields, rest[:size])
			rest = rest[size:]
		}
		for keep := range int(n) + 1 {
			body := msgp.AppendArrayHeader(nil, uint32(keep))
			body = append(body, bytes.Join(fields[:keep], nil)...)
			want := reflect.New(reflect.TypeOf(m).Elem())
			for i := range keep {
				want.Elem().Field(i).Set(reflect.ValueOf(m).Elem().Field(i))
			}
			got := reflect.New(reflect.TypeOf(m).Elem())
			fill(r, got.Elem(), "")
			if err := Decode(body, got.Interface().(Message)); err != nil {
				t.Errorf("%s with %d fields: %v", nameOf(m), keep, err)
			} else if !reflect.DeepEqual(want.Interface(), got.Interface()) {
				t.Errorf("%s with %d fields:\nwant %+v\ngot  %+v", nameOf(m), keep, want, got)
			}
		}
		body := msgp.AppendArrayHeader(nil, n+2)
		body = append(body, bytes.Join(fields, nil)...)
		body = append(body, 0x92, 0xc0, 0x81, 0xa1, 'k', 0x93, 1, 2, 3) // [nil, {"k": [1, 2, 3]}]
		body = append(body, 0xc7, 2, 1, 0, 0)                           // an extension
		got := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
		if err := Decode(body, got); err != nil || !reflect.DeepEqual(m, got) {
			t.Errorf("%s with two fields more: %v\nwant %+v\ngot  %+v", nameOf(m), err, m, got)
		}
	}
}

// hex-free writing of bodies in tables.
func array(values ...any) []byte {
	b := msgp.AppendArrayHeader(nil, uint32(len(values)))
	for _, v := range values {
		switch v := v.(type) {
		case nil:
			b = msgp.AppendNil(b)
		case int:
			b = msgp.AppendInt64(b, int64(v))
		case uint64:
			b = msgp.AppendUint64(b, v)
		case string:
			b = msgp.AppendString(b, v)
		case bool:
			b = msgp.AppendBool(b, v)
		case float64:
			b = msgp.AppendFloat64(b, v)
		case []byte:
			b = append(b, v...)
		default:
			panic(fmt.Sprintf("%T", v))
		}
	}
	return b
}

func TestFieldsHaveTheirTypes(t *testing.T) {
	bin := func(n int) []byte { return msgp.AppendBytes(nil, make([]byte, n)) }
	for _, tc := range []struct {
		name string
		m    Message
		body []byte
		code Code
		text string
	}{
		{"nil for a message", new(GetRequest), []byte{0xc0}, CodeBadRequest, "GetRequest"},
		{"map for a message", new(GetRequest), []byte{0x80}, CodeBadRequest, "GetRequest"},
		{"nil for a control message", new(Hello), []byte{0xc0}, CodeBadRequest, "nil where an array"},
		{"map for a control message", new(Hello), []byte{0x80}, CodeBadRequest, "Hello"},
		{"number for a string", new(GetRequest), array(1), CodeBadRequest, "GetRequest"},
		{"nil for a string", new(GetRequest), array(nil), CodeBadRequest, "GetRequest"},
		{"bytes for a string", new(GetRequest), array(bin(3)), CodeBadRequest, "GetRequest"},
		{"number for a control string", new(Hello), array(1), CodeBadRequest, "where a string"},
		{"nil for a control string", new(Hello), array(nil), CodeBadRequest, "where a string"},
		{"bytes for a control string", new(Hello), array(bin(3)), CodeBadRequest, "where a string"},
		{"a negative number", new(GetRequest), array("c", -1), CodeBadRequest, "GetRequest"},
		{"a negative control number", new(TopologyRequest), array(-1), CodeBadRequest, "below zero"},
		{"a large negative control number", new(TopologyRequest), array(-1 << 40), CodeBadRequest, "below zero"},
		{"a float", new(GetRequest), array("c", 1.0), CodeBadRequest, "GetRequest"},
		{"a control float", new(TopologyRequest), array(1.0), CodeBadRequest, "where a number"},
		{"string for a bool", new(GetRequest), array("c", 1, "yes"), CodeBadRequest, "GetRequest"},
		{"number for a control bool", new(Settings), array(1), CodeBadRequest, "where a bool"},
		{"more than 32 bits", new(ScanRequest), array("c", "", bin(0), 1<<32), CodeBadRequest, "32 bits"},
		{"more than 32 control bits", new(TopologyRequest), array(0, 0, 1<<32), CodeBadRequest, "32 bits"},
		{"more than 8 bits", new(WriteItem), array(array(0, bin(16)), 256), CodeBadRequest, "8 bits"},
		{"a code beyond 16 bits", new(Error), array(1 << 16), CodeBadRequest, "no code"},
		{"a request ID of 15 bytes", new(RequestID), array(1, bin(15)), CodeBadRequest, "16 random bytes"},
		{"a request ID of 17 bytes", new(RequestID), array(1, bin(17)), CodeBadRequest, "16 random bytes"},
		{"too many items", new(WriteRequest), array("c", 0, false, false, many(MaxItems+1, 0x90)), CodeTooManyItems, "items"},
		{"too many IDs", new(GetRequest), array("c", 0, false, many(MaxItems+1, 0xa0)), CodeTooManyItems, "IDs"},
		{"too many nodes", new(ClusterInitRequest), array(many(maxListed+1, 0xa0)), CodeTooManyItems, "nodes"},
		{"an item that is no array", new(WriteRequest), array("c", 0, false, false, many(2, 0x01)), CodeBadRequest, "WriteRequest"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := Decode(tc.body, tc.m)
			var refusal *Error
			if !errors.As(err, &refusal) || refusal.Code != tc.code || !strings.Contains(refusal.Message, tc.text) {
				t.Errorf("%v (code %v), want %q (code %v)", err, CodeOf(err), tc.text, tc.code)
			}
		})
	}
	// The other integer forms are the same numbers.
	for _, form := range [][]byte{{5}, {0xcc, 5}, {0xcd, 0, 5}, {0xce, 0, 0, 0, 5}, {0xcf, 0, 0, 0, 0, 0, 0, 0, 5}, {0xd0, 5}, {0xd1, 0, 5}, {0xd2, 0, 0, 0, 5}, {0xd3, 0, 0, 0, 0, 0, 0, 0, 5}} {
		var hot Cost
		var control TopologyRequest
		if err := Decode(array(0, form), &hot); err != nil || hot.Keys != 5 {
			t.Errorf("% x: %d, %v", form, hot.Keys, err)
		}
		if err := Decode(array(form), &control); err != nil || control.HaveEpoch != 5 {
			t.Errorf("% x in a control message: %d, %v", form, control.HaveEpoch, err)
		}
	}
	if err := Decode(array("c", 0, false, many(MaxItems, 0xa0)), new(GetRequest)); err != nil {
		t.Errorf("%d IDs: %v", MaxItems, err)
	}
}

func many(n int, value byte) []byte {
	return append(msgp.AppendArrayHeader(nil, uint32(n)), bytes.Repeat([]byte{value}, n)...)
}

// A decoded document is cut out of the body, not copied, and cannot grow into
// what is behind it.
func TestDocumentsAreSharedNotCopied(t *testing.T) {
	m := WriteRequest{Collection: "c", Items: []WriteItem{{ID: "a", Body: []byte{0x81, 0xa1, 'x', 1}}}}
	body := Append(nil, &m)
	var back WriteRequest
	if err := Decode(body, &back); err != nil {
		t.Fatal(err)
	}
	item := back.Items[0].Body
	at := bytes.Index(body, item)
	if &item[0] != &body[at] {
		t.Error("the document was copied")
	}
	if _ = append(item, 0xff); body[at+len(item)] == 0xff {
		t.Error("appending to the document writes over the next field")
	}
}

func TestDecodeAllocatesLittle(t *testing.T) {
	m := WriteRequest{Collection: "users", Items: []WriteItem{{ID: "u1", Op: OpPut, Body: randomDocument(rand.New(rand.NewPCG(1, 1)))}}}
	body := Append(nil, &m)
	var back WriteRequest
	if err := Decode(body, &back); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _ = Decode(body, &back) }); n != 0 {
		t.Errorf("decoding a write again allocates %v times", n)
	}
	buf := make([]byte, 0, 2*len(body))
	if n := testing.AllocsPerRun(100, func() { buf = Append(buf[:0], &m) }); n != 0 {
		t.Errorf("encoding a write allocates %v times", n)
	}
}

func BenchmarkWriteRequest(b *testing.B) {
	doc := msgp.AppendMapHeader(nil, 10)
	for i := range 10 {
		doc = msgp.AppendString(doc, fmt.Sprintf("field%d", i))
		doc = msgp.AppendString(doc, strings.Repeat("v", 90))
	}
	m := WriteRequest{Collection: "users", Epoch: 3, Direct: true, Items: []WriteItem{{
		RequestID: RequestID{Time: 1 << 60}, Op: OpPut, ID: "user-000017", Body: doc}}}
	body := Append(nil, &m)
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			buf = Append(buf[:0], &m)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var back WriteRequest
			if err := Decode(body, &back); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("validate", func(b *testing.B) {
		for b.Loop() {
			if err := Validate(body); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkTopology(b *testing.B) {
	m := Topology{ClusterID: "c", Epoch: 4, Owners: make([]uint32, 271), Groups: make([]GroupInfo, 8), Nodes: make([]NodeInfo, 3)}
	for i := range m.Groups {
		m.Groups[i] = GroupInfo{ID: uint32(i), Replicas: []string{"n1", "n2", "n3"}, Leader: "n1"}
	}
	body := Append(nil, &m)
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			buf = Append(buf[:0], &m)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var back Topology
			if err := Decode(body, &back); err != nil {
				b.Fatal(err)
			}
		}
	})
}

package placement

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/impossibledb/idb/client/wire"
)

// golden says that transcripts are to be written anew instead of compared.
var golden = os.Getenv("IDB_TEST_GOLDEN") == "write"

// A transcript is a list of
//
//	# comment
//	command
//	----
//	what it answered
//
// blocks, each run on one machine, in order.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("../testdata/placement/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			input, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runTranscript(t, input)
			if golden {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if !bytes.Equal(got, input) {
				t.Errorf("transcript %s differs; it is now\n%s", file, got)
			}
		})
	}
}

func runTranscript(t *testing.T, input []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	m := NewMachine()
	index := uint64(0)
	lines := bufio.NewScanner(bytes.NewReader(input))
	answering := false
	for lines.Scan() {
		line := lines.Text()
		switch {
		case line == "":
			if !answering { // a blank line in front, or after an answer
				out.WriteString("\n")
			}
			answering = false
		case strings.HasPrefix(line, "#"):
			fmt.Fprintln(&out, line)
		case line == "----":
		case answering: // the old answer
		default:
			fmt.Fprintln(&out, line)
			fmt.Fprintln(&out, "----")
			index++
			fmt.Fprintln(&out, step(t, m, index, line))
			out.WriteString("\n")
			answering = true
		}
	}
	return append(bytes.TrimRight(out.Bytes(), "\n"), '\n')
}

// step runs one command line.
func step(t *testing.T, m *Machine, index uint64, line string) string {
	t.Helper()
	words := strings.Fields(line)
	opts := map[string]string{}
	var args []string
	for _, w := range words[1:] {
		if k, v, ok := strings.Cut(w, "="); ok {
			opts[k] = v
		} else {
			args = append(args, strings.Trim(w, `"`))
		}
	}
	place := func(s string) wire.Leaders {
		l, err := wire.ParseLeaders(s)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return l
	}
	number := func(k string) int {
		n, err := strconv.Atoi(opts[k])
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return n
	}
	// Every request has an ID of its own, unless the line gives one.
	request := wire.RequestID{Time: 1000 + index}
	if opts["id"] != "" {
		request.Time = uint64(number("id"))
	}
	var c Command
	switch words[0] {
	case "state":
		return describe(m.View())
	case "restore":
		b, err := m.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		other := NewMachine()
		if err := other.Restore(b); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(other.View().State, m.View().State) {
			t.Errorf("restored state differs:\n%+v\n%+v", other.View().State, m.View().State)
		}
		again, _ := other.Snapshot()
		if !bytes.Equal(again, b) {
			t.Error("the snapshot of an equal state has other bytes")
		}
		return fmt.Sprintf("%d bytes", len(b))
	case "raw":
		data, err := hex.DecodeString(strings.Join(args, ""))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Apply(index, data); err != nil {
			return "halt: " + err.Error()
		}
		return "nothing"
	case "init":
		var nodes []Node
		for id := range strings.SplitSeq(opts["nodes"], ",") {
			nodes = append(nodes, Node{ID: NodeID(id), PeerAddr: id + ":1", Incarnation: "i-" + id})
		}
		leaders := wire.LeadersSpread
		if opts["leaders"] != "" {
			leaders = place(opts["leaders"])
		}
		groups, err := PlanGroups(nodes, number("shards"), number("replicas"), leaders)
		if err != nil {
			return err.Error()
		}
		var ids []GroupID
		for _, g := range groups {
			ids = append(ids, g.ID)
		}
		owners, err := ComputeMap(ids, uint32(number("partitions")), nil)
		if err != nil {
			return err.Error()
		}
		c.InitCluster = &InitCluster{ClusterID: args[0], Members: PlanMembers(nodes), Nodes: nodes, Groups: groups, Owners: owners, Leaders: leaders}
	case "finish-init":
		c.FinishInit = &FinishInit{ClusterID: args[0]}
	case "node":
		c.UpsertNode = &UpsertNode{Node: Node{ID: NodeID(args[0]), PeerAddr: opts["peer"], Incarnation: opts["inc"]}}
	case "create", "touch":
		o := wire.CollectionOptions{Separator: opts["sep"]}
		switch opts["retention"] {
		case "":
		case "forever":
			o.RetentionSeconds = wire.RetainForever
		default:
			o.RetentionSeconds = uint64(number("retention"))
		}
		if opts["versions"] != "" {
			o.RetentionVersions = uint32(number("versions"))
		}
		for list := range strings.SplitSeq(opts["unique"], ";") {
			if list != "" {
				o.Unique = append(o.Unique, wire.Unique{Fields: strings.Split(list, ",")})
			}
		}
		c.CreateCollection = &CreateCollection{Request: request, Name: args[0], Options: o, Time: index << 16, Implicit: words[0] == "touch"}
	case "drop":
		c.DropCollection = &DropCollection{Request: request, Name: args[0]}
	case "finish-drop":
		id, err := strconv.Atoi(args[0])
		if err != nil {
			t.Fatal(err)
		}
		g, err := strconv.Atoi(strings.TrimPrefix(args[1], "g"))
		if err != nil {
			t.Fatal(err)
		}
		c.FinishDrop = &FinishDrop{Collection: CollectionID(id), Group: GroupID(g)}
	case "set":
		s := m.View().Settings
		if v, ok := opts["explicit"]; ok {
			s.ExplicitCollections = v == "true"
		}
		if _, ok := opts["retention"]; ok {
			s.RetentionSeconds = uint64(number("retention"))
		}
		c.SetSettings = &SetSettings{Request: request, Settings: s}
	case "leaders": // planned for the groups as they are, or as the line says
		c.SetLeaders = &SetLeaders{Request: request, Leaders: place(args[0]), Preferred: PlanLeaders(m.View().Groups, place(args[0]))}
		if opts["to"] != "" {
			c.SetLeaders.Preferred = nil
			for id := range strings.SplitSeq(opts["to"], ",") {
				c.SetLeaders.Preferred = append(c.SetLeaders.Preferred, NodeID(id))
			}
		}
	default:
		t.Fatalf("unknown command %q", line)
	}
	data := c.Encode()
	back, err := DecodeCommand(data)
	if err != nil || !reflect.DeepEqual(back, c) {
		t.Errorf("%s: decoded to %+v, %v", line, back, err)
	}
	before := m.View().State
	frozen := encodeState(before)
	r, err := m.Apply(index, data)
	if err != nil {
		return "halt: " + err.Error()
	}
	if !bytes.Equal(encodeState(before), frozen) {
		t.Errorf("%s: changed a published state", line)
	}
	if again, err := DecodeResult(r.Encode()); err != nil || !reflect.DeepEqual(again, r) {
		t.Errorf("%s: result decoded to %+v, %v", line, again, err)
	}
	text := fmt.Sprintf("epoch %d catalog %d: ", r.Epoch, r.Catalog)
	switch {
	case r.Code != wire.CodeOK:
		return text + fmt.Sprintf("refused %d: %s", r.Code, r.Message)
	case r.Collection.ID != 0:
		return text + fmt.Sprintf("collection %d %s", r.Collection.ID, r.Collection.Name)
	}
	return text + "done"
}

func describe(v *View) string {
	var b strings.Builder
	fmt.Fprintf(&b, "applied %d cluster %s ready %v members %v epoch %d catalog %d\n", v.Applied, v.ClusterID, v.Ready, v.Members, v.Epoch, v.Catalog)
	for _, g := range v.Groups {
		fmt.Fprintf(&b, "%s: replicas %v, preferred %s, partitions %v\n", g.ID, g.Replicas, g.Preferred, v.PartitionsOf(g.ID))
	}
	for _, n := range v.Nodes {
		fmt.Fprintf(&b, "node %s at %s, incarnation %s\n", n.ID, n.PeerAddr, n.Incarnation)
	}
	for _, c := range v.Collections {
		fmt.Fprintf(&b, "collection %d %s, created at %d, %s", c.ID, c.Name, c.CreatedAt, describeOptions(c.Options))
		if c.Dropping() {
			fmt.Fprintf(&b, ", dropping, waits for %v", c.Pending)
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintf(&b, "settings %+v", v.Settings)
	if v.Leaders != wire.LeadersSpread {
		fmt.Fprintf(&b, "\nleaders %s", v.Leaders)
	}
	return b.String()
}

// Everything that Apply published stays as it was, and the view's indexes
// agree with its state, through a random history.
func TestViewIndexes(t *testing.T) {
	m := NewMachine()
	apply := func(i int, c Command) *Result {
		r, err := m.Apply(uint64(i), c.Encode())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	apply(1, Command{InitCluster: &InitCluster{
		ClusterID: "c", Nodes: []Node{{ID: "n1", Incarnation: "i"}}, Members: []NodeID{"n1"},
		Groups: []Group{{ID: 1, Replicas: []NodeID{"n1"}}}, Owners: []GroupID{1, 1},
	}})
	live := map[string]CollectionID{}
	for i := 2; i < 600; i++ {
		name := "c" + strconv.Itoa(i*7919%23)
		switch i * 104729 % 3 {
		case 0, 1:
			if r := apply(i, Command{CreateCollection: &CreateCollection{Request: wire.RequestID{Time: uint64(i)}, Name: name}}); r.Code == wire.CodeOK {
				if id, ok := live[name]; ok && id != CollectionID(r.Collection.ID) {
					t.Fatalf("%s was %d and is created again as %d", name, id, r.Collection.ID)
				}
				live[name] = CollectionID(r.Collection.ID)
			}
		case 2:
			if r := apply(i, Command{DropCollection: &DropCollection{Request: wire.RequestID{Time: uint64(i)}, Name: name}}); r.Code == wire.CodeOK {
				delete(live, name)
				if i%2 == 0 {
					apply(i, Command{FinishDrop: &FinishDrop{Collection: CollectionID(r.Collection.ID), Group: 1}})
				}
			}
		}
		v := m.View()
		for n, id := range live {
			if c, ok := v.Collection(n); !ok || c.ID != id {
				t.Fatalf("step %d: %s should be %d, is %+v", i, n, id, c)
			}
		}
		for _, c := range v.Collections {
			if got, ok := v.CollectionByID(c.ID); !ok || !reflect.DeepEqual(got, c) {
				t.Fatalf("step %d: collection %d not found by its number", i, c.ID)
			}
			if _, isLive := live[c.Name]; !isLive {
				if d, ok := v.Dropped(c.Name); !ok || d.ID != c.ID {
					t.Fatalf("step %d: %s is not found among the dropped", i, c.Name)
				}
			}
		}
	}
	if len(live) == 0 {
		t.Fatal("the history left nothing to look at")
	}
}

// What is remembered is bounded: the oldest goes, and an ID as old as it is
// refused from then on, not run again.
func TestAnswersAreBounded(t *testing.T) {
	m := NewMachine()
	index := uint64(0)
	apply := func(c Command) *Result {
		t.Helper()
		index++
		r, err := m.Apply(index, c.Encode())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	apply(sampleCommands()[0])
	drop := func(time uint64, random byte) *Result {
		return apply(Command{DropCollection: &DropCollection{Request: wire.RequestID{Time: time, Random: [16]byte{random}}, Name: "x"}})
	}
	for i := range uint64(MaxAnswers) {
		if r := drop(10+i, 1); r.Code != wire.CodeCollectionNotFound {
			t.Fatalf("request %d: %+v", i, r)
		}
	}
	if r := drop(9, 1); r.Code != wire.CodeCollectionNotFound { // is run, and forgotten at once
		t.Errorf("the oldest while nothing was forgotten: %+v", r)
	}
	if r := drop(9, 1); r.Code != wire.CodeOutcomeExpired {
		t.Errorf("again: %+v", r)
	}
	if r := drop(10, 1); r.Code != wire.CodeCollectionNotFound {
		t.Errorf("the oldest that is remembered: %+v", r)
	}
	if r := drop(1<<40, 1); r.Code != wire.CodeCollectionNotFound {
		t.Errorf("a new one: %+v", r)
	}
	for i, c := range []struct {
		time uint64
		want wire.Code
	}{{10, wire.CodeOutcomeExpired}, {11, wire.CodeCollectionNotFound}, {1 << 40, wire.CodeCollectionNotFound}} {
		if r := drop(c.time, 1); r.Code != c.want {
			t.Errorf("%d: request of time %d: %+v", i, c.time, r)
		}
	}
	if len(m.answers.list) != MaxAnswers {
		t.Errorf("%d answers are remembered", len(m.answers.list))
	}
	b, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if other := NewMachine(); other.Restore(b) != nil || !reflect.DeepEqual(other.answers, m.answers) {
		t.Error("the answers are not in the snapshot")
	}
	long := make([]answered, MaxAnswers+1)
	for i := range long {
		long[i].id.Time = uint64(i)
	}
	if err := NewMachine().Restore(encodeSnapshot(m.View().State, &answers{list: long})); !errors.Is(err, ErrDamaged) {
		t.Errorf("too many answers: %v", err)
	}
	long = []answered{{id: wire.RequestID{Time: 2}}, {id: wire.RequestID{Time: 1}}}
	if err := NewMachine().Restore(encodeSnapshot(m.View().State, &answers{list: long})); !errors.Is(err, ErrDamaged) {
		t.Errorf("answers out of order: %v", err)
	}
}

// A snapshot or entry that was cut or changed is refused or decodes, and never
// panics; what decodes encodes to the same state.
func FuzzDecode(f *testing.F) {
	m := NewMachine()
	for i, c := range sampleCommands() {
		f.Add(c.Encode())
		_, _ = m.Apply(uint64(i+1), c.Encode())
	}
	snapshot, _ := m.Snapshot()
	f.Add(snapshot)
	f.Add((&Result{Code: 1, Message: "m"}).Encode())
	f.Add(question{have: 3, wait: 5e9, fresh: true}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := DecodeCommand(b); err == nil {
			again, err := DecodeCommand(c.Encode())
			if err != nil || !reflect.DeepEqual(c, again) {
				t.Fatalf("command %+v came back as %+v, %v", c, again, err)
			}
			machine := NewMachine()
			_ = machine.Restore(snapshot)
			if _, err := machine.Apply(1000, b); err != nil {
				t.Fatalf("a command that decodes was not applied: %v", err)
			}
		} else if !errors.Is(err, ErrNewer) && !errors.Is(err, ErrDamaged) {
			t.Fatalf("neither newer nor damaged: %v", err)
		}
		if s, err := decodeState(b); err == nil {
			again, err := decodeState(encodeState(s))
			if err != nil || !reflect.DeepEqual(s, again) {
				t.Fatalf("state %+v came back as %+v, %v", s, again, err)
			}
			_ = NewView(s).Topology()
		}
		if s, a, err := decodeSnapshot(b); err == nil {
			s2, a2, err := decodeSnapshot(encodeSnapshot(s, &a))
			if err != nil || !reflect.DeepEqual(s, s2) || !reflect.DeepEqual(a, a2) {
				t.Fatalf("snapshot %+v %+v came back as %+v %+v, %v", s, a, s2, a2, err)
			}
		}
		_, _ = DecodeResult(b)
		_, _ = decodeQuestion(b)
	})
}

var sampleRequest = wire.RequestID{Time: 8, Random: [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}}

func sampleCommands() []Command {
	return []Command{
		{InitCluster: &InitCluster{
			ClusterID: "c1", Members: []NodeID{"n1"}, Nodes: []Node{{ID: "n1", ClientAddr: "a", PeerAddr: "b", HTTPAddr: "c", Region: "r", Zone: "z", Incarnation: "i"}},
			Groups: []Group{{ID: 1, Replicas: []NodeID{"n1"}, Preferred: "n1"}}, Owners: []GroupID{1, 1, 1},
		}},
		{FinishInit: &FinishInit{ClusterID: "c1"}},
		{UpsertNode: &UpsertNode{Node: Node{ID: "n2", Incarnation: "j"}}},
		{CreateCollection: &CreateCollection{Request: sampleRequest, Name: "users", Options: wire.CollectionOptions{Separator: "/", RetentionSeconds: wire.RetainForever, RetentionVersions: 3}, Time: 77, Implicit: true}},
		{CreateCollection: &CreateCollection{Request: wire.RequestID{Time: 8}, Name: "accounts", Options: wire.CollectionOptions{Unique: []wire.Unique{{Fields: []string{"email"}}, {Fields: []string{"country", "code"}}}}, Time: 78}},
		{DropCollection: &DropCollection{Request: wire.RequestID{Time: 9}, Name: "users"}},
		{FinishDrop: &FinishDrop{Collection: 1, Group: 1}},
		{SetSettings: &SetSettings{Request: wire.RequestID{Time: 10}, Settings: wire.Settings{ExplicitCollections: true, RetentionSeconds: 5}}},
		{SetLeaders: &SetLeaders{Request: wire.RequestID{Time: 11}, Leaders: wire.LeadersTogether, Preferred: []NodeID{"n1"}}},
		{InitCluster: &InitCluster{
			ClusterID: "c2", Nodes: []Node{{ID: "n1", Incarnation: "i"}}, Members: []NodeID{"n1"},
			Groups: []Group{{ID: 1, Replicas: []NodeID{"n1"}, Preferred: "n1"}}, Owners: []GroupID{1}, Leaders: wire.LeadersTogether,
		}},
	}
}

// The bytes of commands are in logs: they must be read for ever.
func TestGoldenBytes(t *testing.T) {
	var b strings.Builder
	for _, c := range sampleCommands() {
		fmt.Fprintln(&b, hex.EncodeToString(c.Encode()))
	}
	m := NewMachine()
	for i, c := range sampleCommands()[:5] {
		if _, err := m.Apply(uint64(i+1), c.Encode()); err != nil {
			t.Fatal(err)
		}
		if i >= 3 { // without unique constraints, and with
			snapshot, _ := m.Snapshot()
			fmt.Fprintln(&b, hex.EncodeToString(snapshot))
		}
	}
	together := sampleCommands()[8]
	if r, err := m.Apply(9, together.Encode()); err != nil || r.Err() != nil {
		t.Fatal(err, r.Err())
	}
	snapshot, _ := m.Snapshot()
	fmt.Fprintln(&b, hex.EncodeToString(snapshot))
	const file = "../testdata/placement/records.hex"
	if golden {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the bytes of commands or snapshots changed:\n%s", b.String())
	}
	for line := range strings.Lines(string(want)) {
		data, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeCommand(data); err != nil {
			if _, _, err := decodeSnapshot(data); err != nil {
				t.Errorf("%s: %v", line, err)
			}
		}
	}
}

// What older nodes can read is written as they know it, and what they cannot is
// refused by them as newer, not as damaged.
func TestLeadersVersion(t *testing.T) {
	m := NewMachine()
	for i, c := range sampleCommands() {
		b := c.Encode()
		want := byte(uniqueVersion)
		if c.InitCluster != nil && c.InitCluster.Leaders != wire.LeadersSpread {
			want = leadersVersion
		}
		if b[0] != want {
			t.Errorf("command %d has version %d, want %d", i, b[0], want)
		}
		if _, err := m.Apply(uint64(i+1), b); err != nil {
			t.Fatal(err)
		}
	}
	s := *m.View().State
	for _, c := range []struct {
		leaders wire.Leaders
		version byte
	}{{wire.LeadersSpread, uniqueVersion}, {wire.LeadersTogether, leadersVersion}} {
		s.Leaders = c.leaders
		b := encodeState(&s)
		if b[0] != c.version {
			t.Errorf("a state with leaders %s has version %d, want %d", c.leaders, b[0], c.version)
		}
		if back, err := decodeState(b); err != nil || back.Leaders != c.leaders {
			t.Errorf("leaders %s came back as %+v, %v", c.leaders, back, err)
		}
	}
	s.Leaders = 9
	if _, err := decodeState(encodeState(&s)); !errors.Is(err, ErrNewer) {
		t.Errorf("a place that is not known here: %v", err)
	}
	if _, err := DecodeCommand(Command{SetLeaders: &SetLeaders{Leaders: 9}}.Encode()); !errors.Is(err, ErrNewer) {
		t.Errorf("a command with a place that is not known here: %v", err)
	}
	s.Leaders = wire.LeadersSpread
	b := append(encodeState(&s), 0)
	b[0] = leadersVersion
	if _, err := decodeState(b); !errors.Is(err, ErrDamaged) {
		t.Errorf("two forms of one state: %v", err)
	}
}

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "A9", "users", "a.b-c_d", "0", strings.Repeat("x", 64)} {
		if err := CheckCollectionName(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "_a", ".a", "-a", "a/b", "a b", "é", "a\x00", strings.Repeat("x", 65)} {
		if CheckCollectionName(bad) == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"users", "orders", "cities", "events", "Logs"}
	for _, c := range []struct{ given, want string }{
		{"user", "users"}, {"usres", "users"}, {"Users", "users"}, {"ordrs", "orders"}, {"CITIES", "cities"},
		{"logs", "Logs"}, {"zebras", ""}, {"x", ""}, {"", ""}, {"city", ""}, {"eventz", "events"},
	} {
		if got := nearest(c.given, slices.Values(names)); got != c.want {
			t.Errorf("%q: got %q, want %q", c.given, got, c.want)
		}
	}
}

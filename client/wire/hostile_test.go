package wire

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// hostileFrames are what a server must survive. They are kept in
// testdata/wire/hostile.json for tests of a whole node.
type hostileFrames struct {
	About string
	Cases []hostile
}

type hostile struct {
	Name   string
	Hello  bool   // the peer says a proper hello first (request 1)
	Hex    string // then sends this
	Repeat string `json:",omitempty"` // and this
	Times  int    `json:",omitempty"` // so many times
	// Then says what the server does: "refused", an error frame and the end of
	// the connection; "answered", an error frame, and the connection goes on;
	// "ignored", nothing, and the connection goes on; "dropped", the
	// connection ends without a word after a timeout.
	Then string
	Code uint16 `json:",omitempty"` // of the error frame
}

func frameHex(f Frame) string { return hex.EncodeToString(AppendFrame(nil, &f)) }

// headHex is a frame without its body, which has n bytes.
func headHex(kind Kind, n int) string {
	f := AppendFrame(nil, &Frame{Kind: kind, Request: 2})
	size := headBytes + n
	f[0], f[1], f[2], f[3] = byte(size>>24), byte(size>>16), byte(size>>8), byte(size)
	return hex.EncodeToString(f)
}

func hostileTable() []hostile {
	bad, deep, many, large, unsupported := uint16(CodeBadRequest), uint16(CodeTooDeep), uint16(CodeTooManyItems), uint16(CodeFrameTooLarge), uint16(CodeUnsupported)
	get := Frame{Kind: KindGet, Request: 2}
	return []hostile{
		{"zeros", false, "", "00", 1000, "refused", bad},
		{"ones", false, "", "ff", 1000, "refused", bad},
		{"a web browser", false, hex.EncodeToString([]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")), "", 0, "refused", bad},
		{"a TLS hello", false, "16030100f8010000f40303" + hex.EncodeToString(bytes.Repeat([]byte{7}, 240)), "", 0, "refused", large},
		{"a request before the hello", false, frameHex(get), "", 0, "refused", bad},
		{"a hello with no body", false, frameHex(Frame{Kind: KindHello, Request: 1}), "", 0, "refused", bad},
		{"a hello with other magic", false, frameHex(Frame{Kind: KindHello, Request: 1, Body: array("sql", 1, 1)}), "", 0, "refused", bad},
		{"a hello of the future", false, frameHex(Frame{Kind: KindHello, Request: 1, Body: array("idb", 7, 9)}), "", 0, "refused", uint16(CodeBadVersion)},
		{"a hello of 4 Gi values", false, frameHex(Frame{Kind: KindHello, Request: 1, Body: []byte{0xdd, 0xff, 0xff, 0xff, 0xff}}), "", 0, "refused", bad},
		{"a hello of 1 MiB", false, headHex(KindHello, 1<<20), "00", 1 << 20, "refused", large},
		{"a node's hello", false, frameHex(Frame{Kind: KindPeerHello, Request: 1}), "", 0, "refused", unsupported},
		{"a second hello", true, frameHex(Frame{Kind: KindHello, Request: 2, Body: array("idb", 1, 1)}), "", 0, "refused", bad},
		{"a length of zero", true, "00000000", "00", 100, "refused", bad},
		{"a length that the head does not fit", true, "0000000f", "00", 100, "refused", bad},
		{"a length of 4 GiB", true, "ffffffff05000000000000000000000000000002", "00", 1000, "refused", large},
		{"one byte more than a frame may have", true, headHex(KindGet, MaxFrameBytes-FrameOverhead+1), "00", 1000, "refused", large},
		{"reserved bytes", true, "000000100500000100000000" + "0000000000000002", "", 0, "refused", bad},
		{"unknown flags", true, frameHex(Frame{Kind: KindGet, Flags: 0x80, Request: 2}), "", 0, "refused", bad},
		{"an answer", true, frameHex(Frame{Kind: KindGet, Flags: FlagResponse, Request: 2}), "", 0, "refused", bad},
		{"request 0", true, frameHex(Frame{Kind: KindGet}), "", 0, "refused", bad},
		{"kind 0", true, frameHex(Frame{Kind: 0, Request: 2}), "", 0, "answered", unsupported},
		{"a kind that is not there yet", true, frameHex(Frame{Kind: 40, Request: 2}), "", 0, "answered", unsupported},
		{"a kind above all", true, frameHex(Frame{Kind: 255, Request: 2}), "", 0, "answered", unsupported},
		{"a node's request", true, frameHex(Frame{Kind: KindRaftAppend, Request: 2, Body: []byte("entries")}), "", 0, "answered", unsupported},
		{"cancel of nothing", true, frameHex(Frame{Kind: KindCancel, Request: 77}), "", 0, "ignored", 0},
		{"a million cancels of nothing", true, "", frameHex(Frame{Kind: KindCancel, Request: 77}), 1_000_000, "ignored", 0},
		{"an empty body", true, frameHex(get), "", 0, "answered", bad},
		{"a body that is no msgpack", true, frameHex(Frame{Kind: KindGet, Request: 2, Body: []byte{0xc1}}), "", 0, "answered", bad},
		{"an array of 4 Gi values", true, frameHex(Frame{Kind: KindGet, Request: 2, Body: []byte{0xdd, 0xff, 0xff, 0xff, 0xff}}), "", 0, "answered", bad},
		{"a map of 4 Gi pairs", true, frameHex(Frame{Kind: KindGet, Request: 2, Body: []byte{0xdf, 0xff, 0xff, 0xff, 0xff}}), "", 0, "answered", bad},
		{"IDs of 4 GiB", true, frameHex(Frame{Kind: KindGet, Request: 2, Body: []byte{0x94, 0xa1, 'c', 0, 0xc2, 0x91, 0xdb, 0xff, 0xff, 0xff, 0xff}}), "", 0, "answered", bad},
		{"arrays 16 Mi deep", true, headHex(KindGet, 16<<20), "91", 16 << 20, "answered", deep},
		{"maps 4 Mi deep", true, headHex(KindGet, 12<<20), "81a161", 4 << 20, "answered", deep},
		{"array headers of 65535 nested", true, headHex(KindGet, 3<<20), "dcffff", 1 << 20, "answered", bad},
		{"16 Mi values", true, headHex(KindGet, 16<<20), "dd00fffffb" + "c0c0c0c0c0c0c0c0c0c0c0", 1 << 20, "answered", many},
		{"16 Mi bytes in one string", true, headHex(KindGet, 16<<20+5) + "db01000000", "ff", 16 << 20, "answered", bad},
		{"10,001 IDs", true, headHex(KindGet, 8+20_002) + "94a16300c2dc2711", "a161", 10_001, "answered", many},
		{"half a head and silence", true, "000000", "", 0, "dropped", 0},
		{"half a body and silence", true, headHex(KindGet, 1000), "00", 500, "dropped", 0},
		{"20 MiB announced and silence", true, headHex(KindGet, MaxFrameBytes-FrameOverhead), "00", 10, "dropped", 0},
		{"silence", false, "", "", 0, "dropped", 0},
		{"half a hello and silence", false, frameHex(Frame{Kind: KindHello, Request: 1, Body: array("idb", 1, 1)})[:30], "", 0, "dropped", 0},
	}
}

// getOne stands for a whole node: it decodes what it is asked for.
var getOne = HandlerFunc(func(_ context.Context, req *Request, resp *Responder) {
	var get GetRequest
	if err := Decode(req.Body, &get); err != nil {
		_ = resp.Fail(err.(*Error))
		return
	}
	_ = resp.ReplyMessage(&GetReply{Results: make([]GetResult, len(get.IDs))})
})

func TestHostileFrames(t *testing.T) {
	noLeaks(t)
	var kept hostileFrames
	golden(t, "hostile.json", hostileFrames{
		About: "What a server must survive, see docs/protocol.md. Bytes are hex; Hex is sent once, Repeat so many Times after it. Then: refused (an error frame, the connection ends), answered (an error frame, it goes on), ignored (no answer, it goes on), dropped (it ends after a timeout).",
		Cases: hostileTable(),
	}, &kept)
	s, addr := listen(t, ServerOptions{Handler: getOne})
	// Those that stand still meet a server that does not wait long for them.
	_, impatient := listen(t, ServerOptions{Handler: getOne, HelloTimeout: 2 * time.Second, StallTimeout: 300 * time.Millisecond})

	// Someone who behaves works all the time.
	good := dial(t, addr, ConnOptions{})
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			var reply GetReply
			if err := good.Do(context.Background(), KindGet, &GetRequest{Collection: "c", IDs: []string{"a"}}, &reply); err != nil {
				stopped <- err
				return
			}
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
		}
	}()
	t.Run("all", func(t *testing.T) {
		for _, h := range kept.Cases {
			t.Run(h.Name, func(t *testing.T) {
				if h.Then == "dropped" {
					t.Parallel()
					attack(t, impatient, h)
					return
				}
				attack(t, addr, h)
			})
		}
	})
	close(stop)
	if err := <-stopped; err != nil {
		t.Errorf("the one who behaves was disturbed: %v", err)
	}
	wait(t, "all requests to end", func() bool { return s.Stats().InFlight == 0 })
	wait(t, "all connections but one to end", func() bool { return s.Stats().Conns == 1 })
	if st := s.Stats(); st.RequestBytes != 0 || st.AnswerBytes != 0 {
		t.Errorf("left behind: %+v", st)
	}
}

func attack(t *testing.T, addr string, h hostile) {
	var nc net.Conn
	if h.Hello {
		nc = raw(t, addr)
	} else {
		var err error
		if nc, err = net.Dial("tcp", addr); err != nil {
			t.Fatal(err)
		}
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if _, err := nc.Write(unhex(t, h.Hex)); err != nil {
			return
		}
		piece, left := unhex(t, h.Repeat), h.Times
		for left > 0 {
			n := min(left, max(1, 64<<10/len(piece)))
			if _, err := nc.Write(bytes.Repeat(piece, n)); err != nil {
				return // the server has ended it
			}
			left -= n
		}
	}()
	defer func() { <-sent }()
	if h.Then == "refused" || h.Then == "answered" {
		f, err := ReadFrame(nc, MaxFrameBytes)
		if err != nil {
			t.Fatalf("no word from the server: %v", err)
		}
		var refusal Error
		if f.Flags != FlagResponse|FlagError || Decode(f.Body, &refusal) != nil || refusal.Code != Code(h.Code) || refusal.Message == "" {
			t.Fatalf("answer %+v %+v, want code %v", f, refusal, Code(h.Code))
		}
	}
	if h.Then == "answered" || h.Then == "ignored" {
		<-sent
		writeFrame(t, nc, Frame{Kind: KindPing, Request: 99})
		if f, err := ReadFrame(nc, MaxFrameBytes); err != nil || f.Request != 99 {
			t.Fatalf("the connection does not go on: %+v, %v", f, err)
		}
		return
	}
	if n, err := nc.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the connection goes on: %d, %v", n, err)
	}
}

// A hundred peers that each announce 20 MiB hold next to nothing.
func TestAnnouncedFramesHoldNoMemory(t *testing.T) {
	noLeaks(t)
	_, addr := listen(t, ServerOptions{Handler: getOne})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	head, err := hex.DecodeString(headHex(KindGet, MaxFrameBytes-FrameOverhead))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		nc := raw(t, addr)
		if _, err := nc.Write(append(head, make([]byte, 1000)...)); err != nil {
			t.Fatal(err)
		}
	}
	// One more is served, so the server has seen the others.
	c := dial(t, addr, ConnOptions{})
	if err := c.Do(context.Background(), KindGet, &GetRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if held := int64(after.HeapAlloc) - int64(before.HeapAlloc); held > 100*2*firstPiece {
		t.Errorf("%d MiB are held for 100 peers that have sent 1000 bytes", held>>20)
	}
}

// Many peers that ask for much and read nothing: what waits for them is
// bounded, and someone who behaves is served.
func TestPeersThatHoardAnswers(t *testing.T) {
	noLeaks(t)
	const most, conns, requests, size = 16 << 20, 12, 400, 1 << 20
	var building, built atomic.Int64
	large := bytes.Repeat([]byte{7}, size)
	s, addr := listen(t, ServerOptions{MaxAnswerBytes: most, Handler: HandlerFunc(func(_ context.Context, req *Request, resp *Responder) {
		if req.Kind == KindScan {
			_ = resp.Reply(nil)
			return
		}
		building.Add(1)
		defer building.Add(-1)
		built.Add(1)
		_ = resp.Reply(large)
	})})
	var asks []byte
	for i := range requests {
		asks = AppendFrame(asks, &Frame{Kind: KindGet, Request: uint64(i + 2)})
	}
	for range conns {
		nc := raw(t, addr)
		if _, err := nc.Write(asks); err != nil {
			t.Fatal(err)
		}
	}
	c := dial(t, addr, ConnOptions{})
	highest, most0 := int64(0), int64(0)
	for range 200 {
		if _, err := c.Call(context.Background(), KindScan, nil); err != nil {
			t.Fatal(err)
		}
		highest, most0 = max(highest, s.Stats().AnswerBytes), max(most0, building.Load())
	}
	wait(t, "some to be asked for", func() bool { return built.Load() > conns })
	// Above the bound each may have what is being written and queued, and a few that wait.
	if bound := int64(most + conns*4*size); highest > bound {
		t.Errorf("%d MiB of answers wait, %d MiB is the bound", highest>>20, bound>>20)
	}
	if most0 > conns*16 {
		t.Errorf("%d answers were in the making at once", most0)
	}
}

// A client that reads gets everything it asked for, however much at once.
func TestLargeAnswersToWhoReads(t *testing.T) {
	noLeaks(t)
	large := bytes.Repeat([]byte{7}, 1<<20)
	_, c := serve(t, ServerOptions{Handler: HandlerFunc(func(_ context.Context, _ *Request, resp *Responder) { _ = resp.Reply(large) })})
	var wg sync.WaitGroup
	for range 100 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if body, err := c.Call(context.Background(), KindGet, nil); err != nil || len(body) != len(large) {
				t.Errorf("%d bytes, %v", len(body), err)
			}
		}()
	}
	wg.Wait()
}

// A server at the other end of a pipe gets anything; whatever it is, the
// connection ends and nothing is left.
func FuzzSession(f *testing.F) {
	hello := helloFrame()
	greeting := AppendFrame(nil, &hello)
	for _, h := range hostileTable() {
		if b, err := hex.DecodeString(h.Hex); err == nil {
			if h.Hello {
				b = append(bytes.Clone(greeting), b...)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		s := NewServer(ServerOptions{Handler: getOne, Hello: func(*ConnInfo, *Hello) (HelloReply, *Error) { return HelloReply{}, nil }})
		near, far := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- s.ServeConn(far) }()
		answers := make(chan struct{})
		go func() {
			defer close(answers)
			for {
				f, err := ReadFrame(near, MaxFrameBytes)
				if err != nil {
					_, _ = io.Copy(io.Discard, near)
					return
				}
				if f.Flags&FlagResponse == 0 {
					t.Errorf("the server asks: %+v", f)
				}
			}
		}()
		_, _ = near.Write(input)
		_ = near.Close()
		<-answers
		if err := <-served; err != nil {
			t.Error(err)
		}
		_ = s.Close()
		if st := s.Stats(); st.InFlight != 0 || st.RequestBytes != 0 || st.Conns != 0 {
			t.Errorf("left behind: %+v", st)
		}
	})
}

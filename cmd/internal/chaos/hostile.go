package chaos

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"github.com/impossibledb/idb/client/wire"
)

// HostileCase is one row of testdata/wire/hostile.json: bytes that a node must
// survive, and what it is to do about them.
type HostileCase struct {
	Name   string
	Hello  bool   // sent after a good hello
	Hex    string // sent once
	Repeat string // hex, sent so many Times after it
	Times  int
	// Then is refused (an error frame, the connection ends), answered (an error
	// frame, it goes on), ignored (no answer, it goes on) or dropped (it ends
	// after a timeout).
	Then string
	Code wire.Code
}

// HostileCases reads the table.
func HostileCases(path string) ([]HostileCase, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var table struct{ Cases []HostileCase }
	if err := json.Unmarshal(b, &table); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(table.Cases) == 0 {
		return nil, fmt.Errorf("%s: no cases", path)
	}
	return table.Cases, nil
}

// Bytes is what the row sends.
func (c HostileCase) Bytes() ([]byte, error) {
	once, err := hex.DecodeString(c.Hex)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	repeat, err := hex.DecodeString(c.Repeat)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	var all []byte
	if c.Hello {
		all = hello()
	}
	return append(append(all, once...), bytes.Repeat(repeat, c.Times)...), nil
}

// Play sends the row to a live node and checks what the node does about it.
// patience bounds the wait for an answer, and for the end of a connection that
// is to be dropped.
func (c HostileCase) Play(ctx context.Context, addr string, patience time.Duration) error {
	data, err := c.Bytes()
	if err != nil {
		return err
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	goesOn := c.Then == "answered" || c.Then == "ignored"
	if goesOn {
		data = wire.AppendFrame(data, &wire.Frame{Kind: wire.KindPing, Request: pingRequest})
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		_, _ = nc.Write(data) // a node that refuses need not take it all
	}()
	defer wg.Wait()
	defer nc.Close()
	var code wire.Code // of the error frame
	alive := false     // the ping was answered; it may overtake
	for r := bufio.NewReader(nc); ; {
		f, err := readFrame(r)
		switch {
		case err != nil && goesOn:
			return fmt.Errorf("%s: want it %s with code %d and a live connection, got code %d and %w", c.Name, c.Then, c.Code, code, err)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("%s: the connection still stands after %v", c.Name, patience)
		case err != nil && code != c.Code:
			return fmt.Errorf("%s: want the connection to end with code %d, it ended with %d (%v)", c.Name, c.Code, code, err)
		case err != nil:
			return nil
		}
		if f.Flags&wire.FlagError != 0 {
			var refusal wire.Error
			if err := wire.Decode(f.Body, &refusal); err != nil {
				return fmt.Errorf("%s: %w", c.Name, err)
			}
			code = refusal.Code
		}
		if alive = alive || f.Request == pingRequest; goesOn && alive && code == c.Code {
			return nil
		}
	}
}

// pingRequest is the request ID of the ping that shows that a connection goes on.
const pingRequest = 1 << 60

// readFrame reads one answer.
func readFrame(r io.Reader) (wire.Frame, error) {
	var head [wire.FrameOverhead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return wire.Frame{}, err
	}
	f := wire.Frame{Kind: wire.Kind(head[4]), Flags: head[5], Request: binary.BigEndian.Uint64(head[12:])}
	length := int(binary.BigEndian.Uint32(head[:])) - (wire.FrameOverhead - 4)
	if length < 0 || length > wire.MaxFrameBytes {
		return f, fmt.Errorf("an answer of %d bytes", length)
	}
	f.Body = make([]byte, length)
	_, err := io.ReadFull(r, f.Body)
	return f, err
}

// hello is the frame that opens a connection well.
func hello() []byte {
	return wire.AppendFrame(nil, &wire.Frame{Kind: wire.KindHello, Request: 1, Body: wire.Append(nil, &wire.Hello{
		Magic: wire.Magic, MinVersion: wire.ProtocolVersion, MaxVersion: wire.ProtocolVersion, Client: "hostile",
	})})
}

// Send sends bytes to a node, reads what it answers until it closes the
// connection or has said nothing for quiet, and closes. That the node closes
// in the middle is its right.
func Send(ctx context.Context, addr string, data []byte, quiet time.Duration) error {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err // a live node accepts connections, whatever others send
	}
	defer nc.Close()
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		_ = nc.SetWriteDeadline(time.Now().Add(5 * time.Second))
		_, _ = nc.Write(data)
	}()
	buf := make([]byte, 64<<10)
	for {
		_ = nc.SetReadDeadline(time.Now().Add(quiet))
		if _, err := nc.Read(buf); err != nil {
			break
		}
	}
	_ = nc.SetDeadline(time.Now())
	wg.Wait()
	return nil
}

// Fuzz sends random and damaged frames from several connections until ctx
// ends; frames are what is damaged.
func Fuzz(ctx context.Context, addr string, frames [][]byte, seed uint64, connections int) (sent int, err error) {
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		failed error
	)
	for i := range connections {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				data := damaged(rng, frames)
				err := Send(ctx, addr, data, 20*time.Millisecond)
				mu.Lock()
				sent++
				// A dial that the end of the time has cut off is no failure.
				if deadline, ok := ctx.Deadline(); ok && time.Now().After(deadline) {
					err = nil
				}
				if err != nil && ctx.Err() == nil && failed == nil {
					failed = fmt.Errorf("the node does not accept connections while it is sent %x…: %w", data[:min(64, len(data))], err)
				}
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	return sent, failed
}

// damaged is a connection's worth of bytes: mostly a good hello and then valid
// frames with a few bytes changed, cut off, doubled, or plain noise.
func damaged(rng *rand.Rand, frames [][]byte) []byte {
	var data []byte
	if rng.IntN(5) > 0 {
		data = append(data, hello()...)
	}
	from := len(data)
	for range 1 + rng.IntN(6) {
		f := append([]byte(nil), frames[rng.IntN(len(frames))]...)
		if rng.IntN(8) == 0 {
			f = make([]byte, rng.IntN(2000))
			for i := range f {
				f[i] = byte(rng.Uint32())
			}
		}
		for range rng.IntN(6) {
			if len(f) > 0 {
				f[rng.IntN(len(f))] = byte(rng.Uint32())
			}
		}
		if rng.IntN(4) == 0 && len(f) > 1 {
			f = f[:rng.IntN(len(f))]
		}
		data = append(data, f...)
	}
	if rng.IntN(10) == 0 {
		rng.Shuffle(len(data)-from, func(i, j int) { data[from+i], data[from+j] = data[from+j], data[from+i] })
	}
	return data
}

// Promise opens connections that each announce a frame of the largest size,
// send its first bytes and stop. The connections stay open until release.
func Promise(ctx context.Context, addr string, connections int) (release func(), err error) {
	head := wire.AppendFrame(nil, &wire.Frame{Kind: wire.KindWrite, Request: 2})
	size := uint32(wire.MaxFrameBytes - 4)
	head[0], head[1], head[2], head[3] = byte(size>>24), byte(size>>16), byte(size>>8), byte(size)
	head = append(head, 0xdd, 0xff, 0xff, 0xff, 0xff) // an array of 4 billion
	return hold(ctx, addr, connections, append(hello(), head...))
}

// NeverRead opens connections that ask for a document again and again and read
// none of the answers. The connections stay open until release.
func NeverRead(ctx context.Context, addr, collection, id string, connections, requests int) (release func(), err error) {
	data := hello()
	body := wire.Append(nil, &wire.GetRequest{Collection: collection, IDs: []string{id}})
	for i := range requests {
		data = wire.AppendFrame(data, &wire.Frame{Kind: wire.KindGet, Request: uint64(i + 2), Body: body})
	}
	return hold(ctx, addr, connections, data)
}

// hold opens connections and sends data on each, as far as the node takes it.
func hold(ctx context.Context, addr string, connections int, data []byte) (func(), error) {
	var open []net.Conn
	var wg sync.WaitGroup
	release := func() {
		for _, nc := range open {
			nc.Close()
		}
		wg.Wait()
	}
	var d net.Dialer
	for range connections {
		nc, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			release()
			return nil, err
		}
		open = append(open, nc)
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, _ = nc.Write(data) // ends when all is taken, or at release
		}()
	}
	return release, nil
}

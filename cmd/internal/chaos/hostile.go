package chaos

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"github.com/impossibledb/idb/client/wire"
)

// HostileFrame is one row of testdata/wire/hostile.json: bytes that a node
// must survive.
type HostileFrame struct {
	Name   string `json:"name"`
	Hex    string `json:"hex"`
	Repeat int    `json:"repeat"` // how often the bytes are sent; 0: once
}

// HostileFrames reads the table.
func HostileFrames(path string) ([]HostileFrame, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []HostileFrame
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return all, nil
}

// Bytes is what the row sends.
func (f HostileFrame) Bytes() ([]byte, error) {
	b, err := hex.DecodeString(f.Hex)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	var all []byte
	for range max(1, f.Repeat) {
		all = append(all, b...)
	}
	return all, nil
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

package wire

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/vmihailenco/msgpack/v5"
	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// The messages that set things up and describe them. Each one's fields method
// lists its fields once, in the order of message.go, for both directions.
// They also are msgpack custom coders, so that they can stand inside what
// other packages encode with that library.

// fields visits a message's fields: it writes them, or fills them in.
//
// Reading is strict where the library is lenient: a field has its type or the
// message is refused (the library takes nil for anything, and a negative
// number for a large one).
type fields struct {
	enc *msgpack.Encoder // if not nil, fields are written
	dec *msgpack.Decoder // otherwise read
	// left is how many fields the open array still has; read only.
	left int
	err  error

	// What the library works on, kept together so that all of it is reused.
	out    bytesOut
	in     bytes.Reader
	ownEnc *msgpack.Encoder
	ownDec *msgpack.Decoder
}

// bytesOut appends what an encoder writes.
type bytesOut struct{ b []byte }

func (o *bytesOut) Write(p []byte) (int, error) { o.b = append(o.b, p...); return len(p), nil }

func (o *bytesOut) WriteByte(c byte) error { o.b = append(o.b, c); return nil }

var fieldsPool = sync.Pool{New: func() any {
	return &fields{ownEnc: msgpack.NewEncoder(nil), ownDec: msgpack.NewDecoder(nil)}
}}

// described is a message that lists its fields.
type described interface{ fields(*fields) }

func appendDescribed(dst []byte, m described) []byte {
	f := fieldsPool.Get().(*fields)
	f.out.b = dst
	f.ownEnc.Reset(&f.out)
	f.enc = f.ownEnc
	m.fields(f) // writing to memory does not fail
	dst = f.out.b
	f.out.b, f.enc = nil, nil
	fieldsPool.Put(f)
	return dst
}

func decodeDescribed(body []byte, m described) error {
	f := fieldsPool.Get().(*fields)
	f.in.Reset(body)
	f.ownDec.Reset(&f.in)
	f.dec, f.left, f.err = f.ownDec, 1, nil
	m.fields(f)
	err := f.err
	f.in.Reset(nil)
	f.dec = nil
	fieldsPool.Put(f)
	return err
}

func encodeDescribed(enc *msgpack.Encoder, m described) error {
	f := fields{enc: enc}
	m.fields(&f)
	return f.err
}

func decodeDescribedFrom(dec *msgpack.Decoder, m described) error {
	f := fields{dec: dec, left: 1}
	m.fields(&f)
	return f.err
}

func (f *fields) fail(err error) {
	if f.err == nil && err != nil {
		f.err = err
	}
	if f.err != nil {
		f.left = 0
	}
}

// has says that there is a field to read and counts it.
func (f *fields) has() bool {
	if f.left == 0 {
		return false
	}
	f.left--
	return true
}

// array stands around the fields of a message. Reading, a shorter array leaves
// the fields it lacks at zero and of a longer one the rest is skipped.
func (f *fields) array(n int, inside func()) {
	if f.enc != nil {
		f.fail(f.enc.EncodeArrayLen(n))
		inside()
		return
	}
	count, ok := f.open()
	if !ok {
		inside() // nothing left: every field becomes zero
		return
	}
	outer := f.left
	f.left = count
	inside()
	for ; f.left > 0; f.left-- {
		f.fail(f.dec.Skip())
	}
	if f.err == nil {
		f.left = outer
	}
}

func (f *fields) open() (n int, ok bool) {
	if !f.has() {
		return 0, false
	}
	c, err := f.dec.PeekCode()
	if err == nil && c == msgpcode.Nil {
		err = errors.New("nil where an array should be")
	}
	if err == nil {
		n, err = f.dec.DecodeArrayLen()
	}
	f.fail(err)
	return n, err == nil
}

// list visits a slice of anything.
func list[T any](f *fields, what string, s *[]T, visit func(*T)) {
	if f.enc != nil {
		f.fail(f.enc.EncodeArrayLen(len(*s)))
		for i := range *s {
			visit(&(*s)[i])
		}
		return
	}
	*s = nil
	n, ok := f.open()
	if !ok || n == 0 {
		return
	}
	if n > maxListed {
		f.fail(Refuse(CodeTooManyItems, "message: %d %s, at most %d", n, what, maxListed))
		return
	}
	outer := f.left
	f.left = n
	all := make([]T, n)
	for i := range all {
		visit(&all[i])
	}
	if f.err == nil {
		*s, f.left = all, outer
	}
}

// maxListed bounds the nodes, groups, partitions or collections of a message.
const maxListed = 1 << 16

func (f *fields) string(s *string) {
	if f.enc != nil {
		f.fail(f.enc.EncodeString(*s))
		return
	}
	*s = ""
	if !f.has() {
		return
	}
	c, err := f.dec.PeekCode()
	if err == nil && !msgpcode.IsString(c) {
		err = fmt.Errorf("0x%02x where a string should be", c)
	}
	if err == nil {
		*s, err = f.dec.DecodeString()
	}
	f.fail(err)
}

func (f *fields) bool(b *bool) {
	if f.enc != nil {
		f.fail(f.enc.EncodeBool(*b))
		return
	}
	*b = false
	if !f.has() {
		return
	}
	c, err := f.dec.PeekCode()
	if err == nil && c != msgpcode.True && c != msgpcode.False {
		err = fmt.Errorf("0x%02x where a bool should be", c)
	}
	if err == nil {
		*b, err = f.dec.DecodeBool()
	}
	f.fail(err)
}

func (f *fields) uint64(v *uint64) {
	if f.enc != nil {
		f.fail(f.enc.EncodeUint(*v))
		return
	}
	*v = 0
	if !f.has() {
		return
	}
	c, err := f.dec.PeekCode()
	if err != nil {
		f.fail(err)
		return
	}
	switch {
	case c < 0x80, c >= msgpcode.Uint8 && c <= msgpcode.Uint64:
		*v, err = f.dec.DecodeUint64()
	case c >= msgpcode.Int8 && c <= msgpcode.Int64, c >= 0xe0:
		var i int64
		i, err = f.dec.DecodeInt64()
		if err == nil && i < 0 {
			err = fmt.Errorf("%d is below zero", i)
		} else {
			*v = uint64(i)
		}
	default:
		err = fmt.Errorf("0x%02x where a number should be", c)
	}
	f.fail(err)
}

func (f *fields) uint32(v *uint32) {
	wide := uint64(*v)
	f.uint64(&wide)
	if wide > 1<<32-1 {
		f.fail(fmt.Errorf("%d does not fit 32 bits", wide))
		wide = 0
	}
	*v = uint32(wide)
}

// requestID visits a request ID as RequestID.AppendTo writes it.
func (f *fields) requestID(id *RequestID) {
	f.array(2, func() {
		f.uint64(&id.Time)
		if f.enc != nil {
			f.fail(f.enc.EncodeBytes(id.Random[:]))
			return
		}
		id.Random = [16]byte{}
		if !f.has() {
			return
		}
		c, err := f.dec.PeekCode()
		if err == nil && !msgpcode.IsBin(c) {
			err = fmt.Errorf("0x%02x where bytes should be", c)
		}
		var n int
		if err == nil {
			n, err = f.dec.DecodeBytesLen()
		}
		if err == nil && n != len(id.Random) {
			err = fmt.Errorf("a request ID has %d random bytes, this one has %d", len(id.Random), n)
		}
		if err == nil {
			err = f.dec.ReadFull(id.Random[:])
		}
		f.fail(err)
	})
}

func (m *Hello) fields(f *fields) {
	f.array(5, func() {
		f.string(&m.Magic)
		f.uint32(&m.MinVersion)
		f.uint32(&m.MaxVersion)
		f.string(&m.Client)
		f.string(&m.ClusterID)
	})
}

func (m *HelloReply) fields(f *fields) {
	f.array(9, func() {
		f.uint32(&m.Version)
		f.string(&m.Server)
		f.string(&m.NodeID)
		f.string(&m.ClusterID)
		f.uint64(&m.Now)
		f.uint32(&m.MaxFrame)
		f.uint32(&m.MaxDocument)
		f.uint32(&m.MaxInFlight)
		f.uint64(&m.TopologyEpoch)
	})
}

func (m *CollectionOptions) fields(f *fields) {
	f.array(4, func() {
		f.string(&m.Separator)
		f.uint64(&m.RetentionSeconds)
		f.uint32(&m.RetentionVersions)
		list(f, "unique constraints", &m.Unique, func(u *Unique) { u.fields(f) })
	})
}

func (m *Unique) fields(f *fields) {
	f.array(1, func() { list(f, "fields", &m.Fields, f.string) })
}

func (m *CollectionInfo) fields(f *fields) {
	f.array(5, func() {
		f.uint32(&m.ID)
		f.string(&m.Name)
		m.Options.fields(f)
		f.uint64(&m.CreatedAt)
		f.bool(&m.Dropping)
	})
}

func (m *CollectionRequest) fields(f *fields) {
	f.array(1, func() { f.string(&m.Name) })
}

func (m *CreateCollectionRequest) fields(f *fields) {
	f.array(4, func() {
		f.string(&m.Name)
		m.Options.fields(f)
		f.requestID(&m.RequestID)
		f.bool(&m.Implicit)
	})
}

func (m *DropCollectionRequest) fields(f *fields) {
	f.array(2, func() {
		f.string(&m.Name)
		f.requestID(&m.RequestID)
	})
}

func (m *SettingsRequest) fields(f *fields) {
	f.array(2, func() {
		m.Settings.fields(f)
		f.requestID(&m.RequestID)
	})
}

func (m *Settings) fields(f *fields) {
	f.array(2, func() {
		f.bool(&m.ExplicitCollections)
		f.uint64(&m.RetentionSeconds)
	})
}

func (m *LeadersRequest) fields(f *fields) {
	f.array(2, func() {
		f.uint32((*uint32)(&m.Leaders))
		f.requestID(&m.RequestID)
	})
}

func (m *TopologyRequest) fields(f *fields) {
	f.array(4, func() {
		f.uint64(&m.HaveEpoch)
		f.uint64(&m.HaveCatalog)
		f.uint32(&m.WaitMillis)
		f.bool(&m.Fresh)
	})
}

func (m *Topology) fields(f *fields) {
	f.array(9, func() {
		f.string(&m.ClusterID)
		f.uint64(&m.Epoch)
		f.uint64(&m.Catalog)
		list(f, "partitions", &m.Owners, f.uint32)
		list(f, "groups", &m.Groups, func(g *GroupInfo) { g.fields(f) })
		list(f, "nodes", &m.Nodes, func(n *NodeInfo) { n.fields(f) })
		list(f, "collections", &m.Collections, func(c *CollectionInfo) { c.fields(f) })
		m.Settings.fields(f)
		f.uint32((*uint32)(&m.Leaders))
	})
}

func (m *GroupInfo) fields(f *fields) {
	f.array(5, func() {
		f.uint32(&m.ID)
		list(f, "replicas", &m.Replicas, f.string)
		f.string(&m.Leader)
		f.uint64(&m.Term)
		f.string(&m.Preferred)
	})
}

func (m *NodeInfo) fields(f *fields) {
	f.array(7, func() {
		f.string(&m.ID)
		f.string(&m.ClientAddr)
		f.string(&m.PeerAddr)
		f.string(&m.HTTPAddr)
		f.string(&m.Region)
		f.string(&m.Zone)
		f.string(&m.Incarnation)
	})
}

func (m *ClusterInitRequest) fields(f *fields) {
	f.array(5, func() {
		list(f, "nodes", &m.Nodes, f.string)
		f.uint32(&m.Shards)
		f.uint32(&m.Replicas)
		f.uint32(&m.Partitions)
		f.uint32((*uint32)(&m.Leaders))
	})
}

func (m *ClusterInitReply) fields(f *fields) {
	f.array(3, func() {
		f.string(&m.ClusterID)
		m.Topology.fields(f)
		f.bool(&m.Resumed)
	})
}

func (m *NodeStatus) fields(f *fields) {
	f.array(13, func() {
		m.Node.fields(f)
		f.string(&m.ClusterID)
		f.string(&m.Version)
		f.uint64(&m.UptimeSeconds)
		f.bool(&m.Ready)
		f.string(&m.Reason)
		f.uint64(&m.Epoch)
		f.uint64(&m.Now)
		list(f, "groups", &m.Groups, func(g *GroupStatus) { g.fields(f) })
		f.uint64(&m.DiskFreeBytes)
		f.uint64(&m.DiskUsedBytes)
		f.uint64(&m.MemoryBytes)
		f.bool(&m.DiskFull)
	})
}

func (m *GroupStatus) fields(f *fields) {
	f.array(14, func() {
		f.uint32(&m.ID)
		f.string(&m.State)
		f.string(&m.Leader)
		f.uint64(&m.Term)
		f.uint64(&m.Commit)
		f.uint64(&m.Applied)
		f.uint64(&m.LastIndex)
		f.uint64(&m.Flushed)
		f.uint32(&m.Partitions)
		f.uint64(&m.Documents)
		f.uint64(&m.Bytes)
		f.uint64(&m.Clock)
		f.uint64(&m.Digest)
		f.string(&m.Error)
	})
}

func (m *ClusterStatus) fields(f *fields) {
	f.array(2, func() {
		m.Topology.fields(f)
		list(f, "nodes", &m.Nodes, func(n *NodeAnswer) { n.fields(f) })
	})
}

func (m *NodeAnswer) fields(f *fields) {
	f.array(3, func() {
		f.string(&m.ID)
		f.string(&m.Error)
		m.Status.fields(f)
	})
}

func (m *CheckRequest) fields(f *fields) {
	f.array(5, func() {
		f.uint32(&m.Group)
		f.bool(&m.State)
		f.uint32(&m.From)
		f.uint32(&m.To)
		f.uint32(&m.RateKiB)
	})
}

func (m *CheckReply) fields(f *fields) {
	f.array(10, func() {
		f.uint32(&m.Group)
		f.uint64(&m.Index)
		list(f, "replicas", &m.Replicas, func(r *CheckReplica) { r.fields(f) })
		list(f, "findings", &m.Findings, func(x *CheckFinding) { x.fields(f) })
		f.uint64(&m.Found)
		f.uint64(&m.Documents)
		f.uint64(&m.Versions)
		f.uint64(&m.Bytes)
		f.uint64(&m.Requests)
		list(f, "partitions", &m.Owned, f.uint32)
	})
}

func (m *CheckReplica) fields(f *fields) {
	f.array(2, func() {
		f.string(&m.Node)
		f.string(&m.Error)
	})
}

func (m *CheckFinding) fields(f *fields) {
	f.array(7, func() {
		f.string(&m.Kind)
		f.bool(&m.Warning)
		f.uint32(&m.Partition)
		f.string(&m.Collection)
		f.string(&m.ID)
		list(f, "nodes", &m.Nodes, f.string)
		f.string(&m.Text)
	})
}

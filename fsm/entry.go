package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/placement"
	"github.com/impossibledb/idb/txn/hlc"
)

// An entry of the log:
//
//	| format u8 = 1 | commands uvarint | command ... |
//
// and a command:
//
//	| kind u8 | time u64 | fields by kind |
//
//	write    partition, epoch, collection, max bytes uvarint | op u8 | flags u8 |
//	         if-version, restore-version uvarint | request time u64 | random 16 |
//	         id length uvarint, id | body length uvarint, body
//	own      epoch uvarint | n uvarint | partition uvarint ...
//	ceiling  to u64
//	promise  to u64 | epoch uvarint | n uvarint | partition uvarint ...
//	horizon  request IDs u64 | n uvarint | (collection uvarint, at u64) ...
//	collect  n uvarint | (length uvarint, key) ...
//	drop     collection uvarint
//	digest   at uvarint | value u64
//	mark     id 16 | flags u8 | from, to, bucket, rate uvarint
//
// and those of transactions, which all begin with ID 24 | partition, epoch uvarint:
//
//	prepare  home uvarint | deadline, born u64 | part (package txn)
//	decide   largest prepare timestamp u64 | n uvarint | participant uvarint ... | part
//	resolve  committed u8 | C u64
//	settle   abort u8 | raise u64
//	commit   n uvarint | (partition uvarint, part) ...
//	forget   nothing
//	stage    as prepare, and before it: participants uvarint, partition uvarint ...
//	confirm  at u64
//	reject   nothing
//	poll     deny u8 | raise u64
//
// and, with a request (Request) before their fields, decide write and commit write.
//
// Fixed numbers are big endian. A change to any of this is a new format or a
// new kind: entries outlive the program that wrote them.
const entryFormat = 1

// MaxCommands is how many commands one entry can hold.
const MaxCommands = 1024

// commandKind is on disk and never changes meaning.
type commandKind uint8

const (
	kindWrite   commandKind = 1
	kindOwn     commandKind = 2
	kindCeiling commandKind = 3
	kindHorizon commandKind = 4
	kindCollect commandKind = 5
	kindDrop    commandKind = 6
	kindDigest  commandKind = 7
	kindMark    commandKind = 8
	kindPromise commandKind = 9

	kindPrepare commandKind = 16
	kindDecide  commandKind = 17
	kindResolve commandKind = 18
	kindSettle  commandKind = 19
	kindCommit  commandKind = 20
	kindForget  commandKind = 21
	kindStage   commandKind = 22
	kindConfirm commandKind = 23

	kindCommitWrite commandKind = 32
	kindDecideWrite commandKind = 33

	kindReject commandKind = 40
	kindPoll   commandKind = 41

	// 24 to 31 are reserved for partition moves, 34 to 39 for indexes and schemas.
)

const (
	flagAbsent    = wire.CondAbsent
	flagPresent   = wire.CondPresent
	flagReturnDoc = 1 << 7
	condFlags     = flagAbsent | flagPresent

	flagMarkState = 1 << 0
)

const (
	commandHead  = 1 + 8
	minWrite     = commandHead + 4 + 2 + 2 + 8 + 16 + 2
	maxKeyLength = 4 << 10 // a document's key with every byte of its ID escaped is below
)

// AppendEntry appends an entry's bytes. It fails for what could not be read
// back: no command, too many, or one without exactly one pointer set.
func AppendEntry(dst []byte, commands []Command) ([]byte, error) {
	if len(commands) == 0 || len(commands) > MaxCommands {
		return dst, fmt.Errorf("fsm: an entry holds 1 to %d commands, not %d", MaxCommands, len(commands))
	}
	begin := len(dst)
	dst = append(dst, entryFormat)
	dst = binary.AppendUvarint(dst, uint64(len(commands)))
	for i := range commands {
		var err error
		if dst, err = appendCommand(dst, &commands[i]); err != nil {
			return dst[:begin], fmt.Errorf("fsm: command %d of an entry: %w", i, err)
		}
	}
	return dst, nil
}

// Check says whether AppendEntry takes the command, so that a bad one can be
// refused before it is packed with others.
func (c *Command) Check() error {
	set := 0
	for _, s := range [...]bool{c.Write != nil, c.Own != nil, c.Ceiling != nil, c.Horizon != nil, c.Collect != nil, c.Drop != nil, c.Digest != nil, c.Mark != nil, c.Promise != nil, c.Txn != nil} {
		if s {
			set++
		}
	}
	if set != 1 {
		return fmt.Errorf("it says %d things instead of one", set)
	}
	switch {
	case c.Write != nil && c.Write.Item.Cond&^condFlags != 0:
		return fmt.Errorf("unknown conditions %#x", c.Write.Item.Cond)
	case c.Write != nil && len(c.Write.Item.Body) > wire.MaxFrameBytes:
		return fmt.Errorf("body of %d bytes", len(c.Write.Item.Body))
	case c.Txn != nil:
		return c.Txn.check()
	case c.Write != nil && len(c.Write.Item.ID) > wire.MaxIDBytes:
		return fmt.Errorf("ID of %d bytes", len(c.Write.Item.ID))
	}
	return nil
}

// EncodedLen is about what the command adds to an entry: never less.
func (c *Command) EncodedLen() int {
	const varints = 10
	switch {
	case c.Write != nil:
		return minWrite + 8*varints + len(c.Write.Item.ID) + len(c.Write.Item.Body)
	case c.Own != nil:
		return commandHead + 2*varints + 5*len(c.Own.Partitions)
	case c.Promise != nil:
		return commandHead + 8 + 2*varints + 5*len(c.Promise.Partitions)
	case c.Horizon != nil:
		return commandHead + 8 + varints + 13*len(c.Horizon.History)
	case c.Collect != nil:
		n := commandHead + varints
		for _, k := range c.Collect.Keys {
			n += varints + len(k)
		}
		return n
	case c.Txn != nil:
		return commandHead + c.Txn.encodedLen()
	case c.Mark != nil:
		return commandHead + 16 + 1 + 4*varints
	default:
		return commandHead + 2*varints
	}
}

func appendCommand(dst []byte, c *Command) ([]byte, error) {
	if err := c.Check(); err != nil {
		return dst, err
	}
	head := func(k commandKind) {
		dst = append(dst, byte(k))
		dst = binary.BigEndian.AppendUint64(dst, uint64(c.Time))
	}
	switch {
	case c.Write != nil:
		head(kindWrite)
		w := c.Write
		flags := w.Item.Cond
		if w.Item.ReturnDoc {
			flags |= flagReturnDoc
		}
		dst = binary.AppendUvarint(dst, uint64(w.Partition))
		dst = binary.AppendUvarint(dst, uint64(w.Epoch))
		dst = binary.AppendUvarint(dst, uint64(w.Collection))
		dst = binary.AppendUvarint(dst, uint64(w.MaxBytes))
		dst = append(dst, byte(w.Item.Op), flags)
		dst = binary.AppendUvarint(dst, w.Item.IfVersion)
		dst = binary.AppendUvarint(dst, w.Item.RestoreVersion)
		dst = binary.BigEndian.AppendUint64(dst, w.Item.RequestID.Time)
		dst = append(dst, w.Item.RequestID.Random[:]...)
		dst = binary.AppendUvarint(dst, uint64(len(w.Item.ID)))
		dst = append(dst, w.Item.ID...)
		dst = binary.AppendUvarint(dst, uint64(len(w.Item.Body)))
		dst = append(dst, w.Item.Body...)
	case c.Own != nil:
		head(kindOwn)
		dst = binary.AppendUvarint(dst, uint64(c.Own.Epoch))
		dst = binary.AppendUvarint(dst, uint64(len(c.Own.Partitions)))
		for _, p := range c.Own.Partitions {
			dst = binary.AppendUvarint(dst, uint64(p))
		}
	case c.Ceiling != nil:
		head(kindCeiling)
		dst = binary.BigEndian.AppendUint64(dst, uint64(c.Ceiling.To))
	case c.Promise != nil:
		head(kindPromise)
		dst = binary.BigEndian.AppendUint64(dst, uint64(c.Promise.To))
		dst = binary.AppendUvarint(dst, uint64(c.Promise.Epoch))
		dst = binary.AppendUvarint(dst, uint64(len(c.Promise.Partitions)))
		for _, p := range c.Promise.Partitions {
			dst = binary.AppendUvarint(dst, uint64(p))
		}
	case c.Horizon != nil:
		head(kindHorizon)
		dst = binary.BigEndian.AppendUint64(dst, uint64(c.Horizon.RequestIDs))
		dst = binary.AppendUvarint(dst, uint64(len(c.Horizon.History)))
		for _, h := range c.Horizon.History {
			dst = binary.AppendUvarint(dst, uint64(h.Collection))
			dst = binary.BigEndian.AppendUint64(dst, uint64(h.At))
		}
	case c.Collect != nil:
		head(kindCollect)
		dst = binary.AppendUvarint(dst, uint64(len(c.Collect.Keys)))
		for _, k := range c.Collect.Keys {
			if len(k) > maxKeyLength {
				return dst, fmt.Errorf("key of %d bytes", len(k))
			}
			dst = binary.AppendUvarint(dst, uint64(len(k)))
			dst = append(dst, k...)
		}
	case c.Drop != nil:
		head(kindDrop)
		dst = binary.AppendUvarint(dst, uint64(c.Drop.Collection))
	case c.Digest != nil:
		head(kindDigest)
		dst = binary.AppendUvarint(dst, c.Digest.At)
		dst = binary.BigEndian.AppendUint64(dst, c.Digest.Value)
	case c.Txn != nil:
		head(c.Txn.kind())
		return c.Txn.append(dst), nil
	case c.Mark != nil:
		head(kindMark)
		var flags byte
		if c.Mark.State {
			flags |= flagMarkState
		}
		dst = append(dst, c.Mark.ID[:]...)
		dst = append(dst, flags)
		dst = binary.AppendUvarint(dst, uint64(c.Mark.From))
		dst = binary.AppendUvarint(dst, uint64(c.Mark.To))
		dst = binary.AppendUvarint(dst, uint64(c.Mark.Bucket))
		dst = binary.AppendUvarint(dst, uint64(c.Mark.RateKiB))
	}
	return dst, nil
}

// DecodeEntry reads an entry. The commands' IDs, bodies and keys are parts of
// data, which must not change while they are used.
func DecodeEntry(data []byte) ([]Command, error) {
	var d entryDecoder
	return d.decode(data)
}

// entryDecoder decodes one entry after the other into the same memory.
type entryDecoder struct {
	b        []byte
	bad      error
	commands []Command
	writes   []Write
	txns     []txnRoom
}

var errShort = errors.New("it ends too soon")

func (d *entryDecoder) decode(data []byte) ([]Command, error) {
	if len(data) == 0 {
		return nil, fmt.Errorf("fsm: empty entry: %w", ErrDamaged)
	}
	if data[0] > entryFormat {
		return nil, fmt.Errorf("fsm: entry of format %d: %w", data[0], ErrNewer)
	}
	if data[0] != entryFormat {
		return nil, fmt.Errorf("fsm: entry of format %d: %w", data[0], ErrDamaged)
	}
	d.b, d.bad = data[1:], nil
	n := d.count(commandHead)
	if d.bad == nil && (n == 0 || n > MaxCommands) {
		d.fail(fmt.Errorf("%d commands", n))
	}
	clear(d.commands)
	clear(d.writes)
	clear(d.txns)
	d.commands, d.writes, d.txns = d.commands[:0], d.writes[:0], d.txns[:0]
	if cap(d.commands) < n {
		d.commands = make([]Command, 0, n)
		d.writes = make([]Write, 0, n)
	}
	for range n {
		if d.bad != nil {
			break
		}
		d.command()
	}
	if d.bad == nil && len(d.b) != 0 {
		d.fail(fmt.Errorf("%d bytes after its end", len(d.b)))
	}
	if d.bad != nil {
		return nil, fmt.Errorf("fsm: entry of %d bytes: %w", len(data), d.bad)
	}
	return d.commands, nil
}

func (d *entryDecoder) command() {
	kind := commandKind(d.u8())
	c := Command{Time: hlc.Timestamp(d.u64())}
	if d.bad != nil {
		return
	}
	switch kind {
	case kindWrite:
		d.writes = append(d.writes, Write{}) // never beyond its capacity: see decode
		c.Write = &d.writes[len(d.writes)-1]
		d.write(c.Write)
	case kindOwn:
		o := &Own{Epoch: placement.Epoch(d.uvarint())}
		o.Partitions = make([]placement.PartitionID, 0, d.count(1))
		for range cap(o.Partitions) {
			o.Partitions = append(o.Partitions, placement.PartitionID(d.uvarint32()))
		}
		c.Own = o
	case kindCeiling:
		c.Ceiling = &Ceiling{To: hlc.Timestamp(d.u64())}
	case kindPromise:
		k := &Promise{To: hlc.Timestamp(d.u64()), Epoch: placement.Epoch(d.uvarint())}
		k.Partitions = make([]placement.PartitionID, 0, d.count(1))
		for range cap(k.Partitions) {
			k.Partitions = append(k.Partitions, placement.PartitionID(d.uvarint32()))
		}
		c.Promise = k
	case kindHorizon:
		h := &Horizon{RequestIDs: hlc.Timestamp(d.u64())}
		h.History = make([]HistoryHorizon, 0, d.count(9))
		for range cap(h.History) {
			h.History = append(h.History, HistoryHorizon{Collection: placement.CollectionID(d.uvarint32()), At: hlc.Timestamp(d.u64())})
		}
		c.Horizon = h
	case kindCollect:
		k := &Collect{Keys: make([][]byte, 0, d.count(1))}
		for range cap(k.Keys) {
			k.Keys = append(k.Keys, d.bytes(maxKeyLength))
		}
		c.Collect = k
	case kindDrop:
		c.Drop = &Drop{Collection: placement.CollectionID(d.uvarint32())}
	case kindDigest:
		c.Digest = &Digest{At: d.uvarint(), Value: d.u64()}
	case kindMark:
		c.Mark = d.mark()
	case kindPrepare, kindDecide, kindResolve, kindSettle, kindCommit, kindForget, kindCommitWrite, kindDecideWrite,
		kindStage, kindConfirm, kindReject, kindPoll:
		c.Txn = d.txn(kind)
	default:
		d.bad = fmt.Errorf("command of kind %d: %w", kind, ErrNewer)
		return
	}
	d.commands = append(d.commands, c)
}

func (d *entryDecoder) write(w *Write) {
	w.Partition = placement.PartitionID(d.uvarint32())
	w.Epoch = placement.Epoch(d.uvarint())
	w.Collection = placement.CollectionID(d.uvarint32())
	w.MaxBytes = d.uvarint32()
	op, flags := d.u8(), d.u8()
	if d.bad == nil && (wire.WriteOp(op) > wire.OpRestore || flags&^(condFlags|flagReturnDoc) != 0) {
		d.bad = fmt.Errorf("write with operation %d and flags %#x: %w", op, flags, ErrNewer)
		return
	}
	w.Item.Op, w.Item.Cond, w.Item.ReturnDoc = wire.WriteOp(op), flags&condFlags, flags&flagReturnDoc != 0
	w.Item.IfVersion = d.uvarint()
	w.Item.RestoreVersion = d.uvarint()
	w.Item.RequestID.Time = d.u64()
	if len(d.b) < len(w.Item.RequestID.Random) {
		d.fail(errShort)
		return
	}
	d.b = d.b[copy(w.Item.RequestID.Random[:], d.b):]
	id := d.bytes(wire.MaxIDBytes)
	w.Item.ID = unsafe.String(unsafe.SliceData(id), len(id)) // data outlives it and does not change
	if body := d.bytes(wire.MaxFrameBytes); len(body) > 0 {
		w.Item.Body = body
	}
}

func (d *entryDecoder) mark() *Mark {
	k := &Mark{}
	if len(d.b) < len(k.ID) {
		d.fail(errShort)
		return k
	}
	d.b = d.b[copy(k.ID[:], d.b):]
	flags := d.u8()
	if d.bad == nil && flags&^flagMarkState != 0 {
		d.bad = fmt.Errorf("mark with flags %#x: %w", flags, ErrNewer)
		return k
	}
	k.State = flags&flagMarkState != 0
	k.From = placement.PartitionID(d.uvarint32())
	k.To = placement.PartitionID(d.uvarint32())
	k.Bucket = d.uvarint32()
	k.RateKiB = d.uvarint32()
	return k
}

func (d *entryDecoder) fail(err error) {
	if d.bad == nil {
		d.bad = fmt.Errorf("%w: %w", err, ErrDamaged)
	}
	d.b = nil
}

func (d *entryDecoder) u8() byte {
	if len(d.b) < 1 {
		d.fail(errShort)
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *entryDecoder) u64() uint64 {
	if len(d.b) < 8 {
		d.fail(errShort)
		return 0
	}
	v := binary.BigEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

// uvarint takes the shortest form only, so that an entry has one encoding.
func (d *entryDecoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 {
		d.fail(errors.New("bad number"))
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *entryDecoder) uvarint32() uint32 {
	v := d.uvarint()
	if v > 1<<32-1 {
		d.fail(errors.New("number too large"))
		return 0
	}
	return uint32(v)
}

// count reads how many things of at least min bytes follow.
func (d *entryDecoder) count(min int) int {
	v := d.uvarint()
	if v > uint64(len(d.b)/min) {
		d.fail(errShort)
		return 0
	}
	return int(v)
}

func (d *entryDecoder) bytes(limit int) []byte {
	n := d.uvarint()
	if n > uint64(limit) || n > uint64(len(d.b)) {
		d.fail(errShort)
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

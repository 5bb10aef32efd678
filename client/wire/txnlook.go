package wire

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/tinylib/msgp/msgp"
)

// The messages of those who look at transactions. They are rare, and their
// strings are in memory of their own.

// String names a transaction, or a write: short enough for a sentence and long
// enough to be one of a kind.
func (m RequestID) String() string {
	return strconv.FormatUint(m.Time, 16) + "-" + hex.EncodeToString(m.Random[:MinIDPrefix])
}

// ParseIDPrefix reads what String wrote, or more of an ID in the same form.
func ParseIDPrefix(s string) (time uint64, random []byte, err error) {
	left, right, ok := strings.Cut(s, "-")
	if ok {
		time, err = strconv.ParseUint(left, 16, 64)
	}
	if ok && err == nil {
		random, err = hex.DecodeString(right)
	}
	if !ok || err != nil || time == 0 || len(random) < MinIDPrefix || len(random) > len(RequestID{}.Random) {
		return 0, nil, fmt.Errorf("%q is no transaction's ID (it is hexadecimal, for example %s)", s, RequestID{Time: 0x19a3c0de1230000, Random: [16]byte{0x5f, 0x0c, 0x9a, 0x1b, 0x2c, 0x3d}})
	}
	return time, random, nil
}

// CheckIDPrefix refuses what names no transaction: time is not 0, and random as
// long as it must be.
func CheckIDPrefix(time uint64, random []byte) error {
	if time == 0 || len(random) < MinIDPrefix || len(random) > len(RequestID{}.Random) {
		return Refuse(CodeBadRequest, "a transaction is named by its time and %d to %d bytes of its random part, not by %d", MinIDPrefix, len(RequestID{}.Random), len(random))
	}
	return nil
}

var txnStateNames = [...]string{"unknown", "open", "prepared", "committed", "aborted", "resolved", "expired"}

// String is the state's name.
func (s TxnState) String() string {
	if int(s) < len(txnStateNames) {
		return txnStateNames[s]
	}
	return "state " + strconv.Itoa(int(s))
}

// AppendTo appends the encoding.
func (m *TxnListRequest) AppendTo(dst []byte) []byte {
	dst = msgp.AppendUint64(appendArray(dst, 2), m.Time)
	return msgp.AppendBytes(dst, m.Random)
}

func (m *TxnListRequest) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *TxnListRequest) decode(r *reader) {
	*m = TxnListRequest{}
	if outer, ok := r.open(); ok {
		m.Time, m.Random = r.uint64(), r.bytes()
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *TxnList) AppendTo(dst []byte) []byte {
	dst = appendArray(appendArray(dst, 5), len(m.Txns))
	for i := range m.Txns {
		dst = m.Txns[i].AppendTo(dst)
	}
	dst = appendArray(dst, len(m.Waits))
	for i := range m.Waits {
		dst = m.Waits[i].AppendTo(dst)
	}
	dst = msgp.AppendUint64(dst, uint64(m.LeftOut))
	dst = appendMissing(dst, m.Missing)
	return msgp.AppendUint64(dst, m.Now)
}

func (m *TxnList) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *TxnList) decode(r *reader) {
	*m = TxnList{}
	if outer, ok := r.open(); ok {
		m.Txns = eachOf(r, "transactions", (*TxnInfo).decode)
		m.Waits = eachOf(r, "waits", (*TxnWait).decode)
		m.LeftOut = r.uint32()
		m.Missing = eachOf(r, "groups", (*TxnMissing).decode)
		m.Now = r.uint64()
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *TxnInfo) AppendTo(dst []byte) []byte {
	dst = m.ID.AppendTo(appendArray(dst, 12))
	for _, v := range [...]uint64{uint64(m.State), uint64(m.Home), m.Time, m.Deadline, m.Born, uint64(m.Participants)} {
		dst = msgp.AppendUint64(dst, v)
	}
	dst = appendArray(dst, len(m.Parts))
	for i := range m.Parts {
		dst = m.Parts[i].AppendTo(dst)
	}
	for _, v := range [...]uint32{m.Reads, m.Writes, m.Locks, m.HomeGroup} {
		dst = msgp.AppendUint64(dst, uint64(v))
	}
	return dst
}

func (m *TxnInfo) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *TxnInfo) decode(r *reader) {
	*m = TxnInfo{}
	if outer, ok := r.open(); ok {
		m.ID.decode(r)
		m.State, m.Home = TxnState(r.uint8()), r.uint32()
		m.Time, m.Deadline, m.Born, m.Participants = r.uint64(), r.uint64(), r.uint64(), r.uint32()
		m.Parts = eachOf(r, "parts", (*TxnPart).decode)
		m.Reads, m.Writes, m.Locks, m.HomeGroup = r.uint32(), r.uint32(), r.uint32(), r.uint32()
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *TxnPart) AppendTo(dst []byte) []byte {
	dst = appendArray(dst, 8)
	for _, v := range [...]uint64{uint64(m.Group), uint64(m.Partition), uint64(m.State), m.Time, uint64(m.Reads), uint64(m.Writes), uint64(m.Locks)} {
		dst = msgp.AppendUint64(dst, v)
	}
	dst = appendArray(dst, len(m.Documents))
	for i := range m.Documents {
		dst = m.Documents[i].AppendTo(dst)
	}
	return dst
}

func (m *TxnPart) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *TxnPart) decode(r *reader) {
	*m = TxnPart{}
	if outer, ok := r.open(); ok {
		m.Group, m.Partition, m.State, m.Time = r.uint32(), r.uint32(), TxnState(r.uint8()), r.uint64()
		m.Reads, m.Writes, m.Locks = r.uint32(), r.uint32(), r.uint32()
		m.Documents = eachOf(r, "documents", (*TxnDocument).decode)
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *TxnDocument) AppendTo(dst []byte) []byte {
	dst = msgp.AppendUint64(appendArray(dst, 6), uint64(m.How))
	for _, s := range [...]string{m.Collection, m.ID, m.From, m.To} {
		dst = msgp.AppendString(dst, s)
	}
	return msgp.AppendUint64(dst, m.Expires)
}

func (m *TxnDocument) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *TxnDocument) decode(r *reader) {
	*m = TxnDocument{}
	if outer, ok := r.open(); ok {
		m.How = r.uint8()
		m.Collection, m.ID, m.From, m.To = r.string(), r.string(), r.string(), r.string()
		m.Expires = r.uint64()
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *TxnWait) AppendTo(dst []byte) []byte {
	dst = m.For.AppendTo(m.ID.AppendTo(appendArray(dst, 8)))
	for _, v := range [...]uint64{m.Micros, uint64(m.What), uint64(m.Group), uint64(m.Partition)} {
		dst = msgp.AppendUint64(dst, v)
	}
	return msgp.AppendString(msgp.AppendString(dst, m.Collection), m.Document)
}

func (m *TxnWait) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *TxnWait) decode(r *reader) {
	*m = TxnWait{}
	if outer, ok := r.open(); ok {
		m.ID.decode(r)
		m.For.decode(r)
		m.Micros, m.What, m.Group, m.Partition = r.uint64(), r.uint8(), r.uint32(), r.uint32()
		m.Collection, m.Document = r.string(), r.string()
		r.close(outer)
	}
}

func appendMissing(dst []byte, all []TxnMissing) []byte {
	dst = appendArray(dst, len(all))
	for i := range all {
		dst = all[i].AppendTo(dst)
	}
	return dst
}

// AppendTo appends the encoding.
func (m *TxnMissing) AppendTo(dst []byte) []byte {
	return msgp.AppendString(msgp.AppendUint64(appendArray(dst, 2), uint64(m.Group)), m.Error)
}

func (m *TxnMissing) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *TxnMissing) decode(r *reader) {
	*m = TxnMissing{}
	if outer, ok := r.open(); ok {
		m.Group, m.Error = r.uint32(), r.string()
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *TxnAbortRequest) AppendTo(dst []byte) []byte {
	dst = msgp.AppendUint64(appendArray(dst, 2), m.Time)
	return msgp.AppendBytes(dst, m.Random)
}

func (m *TxnAbortRequest) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *TxnAbortRequest) decode(r *reader) {
	*m = TxnAbortRequest{}
	if outer, ok := r.open(); ok {
		m.Time, m.Random = r.uint64(), r.bytes()
		r.close(outer)
	}
}

// AppendTo appends the encoding.
func (m *TxnAbortReply) AppendTo(dst []byte) []byte {
	dst = m.ID.AppendTo(appendArray(dst, 9))
	dst = msgp.AppendUint64(dst, uint64(m.State))
	dst = msgp.AppendBool(dst, m.Already)
	for _, v := range [...]uint64{m.Time, uint64(m.Home), uint64(m.Resolved), uint64(m.Unlocked)} {
		dst = msgp.AppendUint64(dst, v)
	}
	return msgp.AppendUint64(appendMissing(dst, m.Missing), m.Now)
}

func (m *TxnAbortReply) decodeFrom(body []byte) error { return decodeBody(body, m.decode) }

func (m *TxnAbortReply) decode(r *reader) {
	*m = TxnAbortReply{}
	if outer, ok := r.open(); ok {
		m.ID.decode(r)
		m.State, m.Already = TxnState(r.uint8()), r.bool()
		m.Time, m.Home, m.Resolved, m.Unlocked = r.uint64(), r.uint32(), r.uint32(), r.uint32()
		m.Missing = eachOf(r, "groups", (*TxnMissing).decode)
		m.Now = r.uint64()
		r.close(outer)
	}
}

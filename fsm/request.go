package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/txn"
	"github.com/impossibledb/idb/txn/hlc"
)

// Request is the write of one document that a transaction carries out, because
// more belongs to it than the document: the first write of home's part, and
// home is the document's partition. Its answer is kept there under the request's
// ID, as that of any write, so that of all transactions that are tried for one
// request one has an effect, and the others are told its answer.
//
//	| time u64 | random 16 | flags u8 | if refused: code, version uvarint, detail length uvarint, detail |
type Request struct {
	ID      wire.RequestID
	KeepDoc bool // the answer has the document
	// Refused is why the write is refused, if what the transaction read is still
	// the newest. It writes nothing then.
	Refused *Refused
}

// Refused is why a write is refused for good.
type Refused struct {
	Code    wire.Code
	Version uint64 // that the document has, where that matters
	Detail  string // at most 255 bytes are kept
}

const (
	requestKeepDoc = 1 << 0
	requestRefused = 1 << 1
)

func (q *Request) encodedLen() int {
	n := 8 + 16 + 1
	if q.Refused != nil {
		n += 3 + 10 + 2 + len(q.Refused.Detail)
	}
	return n
}

func (q *Request) append(dst []byte) []byte {
	dst = txn.AppendID(dst, txn.ID(q.ID))
	var flags byte
	if q.KeepDoc {
		flags |= requestKeepDoc
	}
	if q.Refused == nil {
		return append(dst, flags)
	}
	dst = append(dst, flags|requestRefused)
	dst = binary.AppendUvarint(dst, uint64(q.Refused.Code))
	dst = binary.AppendUvarint(dst, q.Refused.Version)
	dst = binary.AppendUvarint(dst, uint64(len(q.Refused.Detail)))
	return append(dst, q.Refused.Detail...)
}

func readRequest(r *txn.Reader) *Request {
	q := &Request{ID: wire.RequestID(r.ID())}
	flags := r.U8()
	if flags&^(requestKeepDoc|requestRefused) != 0 {
		r.Fail(fmt.Errorf("a request with flags %#x", flags))
	}
	q.KeepDoc = flags&requestKeepDoc != 0
	if flags&requestRefused != 0 {
		code := r.Uvarint()
		if code == 0 || code > 1<<16-1 {
			r.Fail(fmt.Errorf("a refusal with code %d", code))
		}
		q.Refused = &Refused{Code: wire.Code(code), Version: r.Uvarint(), Detail: r.Text(maxAnswerDetail)}
	}
	return q
}

// checkRequest refuses a request that its transaction does not fit.
func (t *Txn) checkRequest() error {
	q := t.Request
	if q == nil {
		return nil
	}
	var home *txn.Part
	writes := 0
	switch {
	case t.Decide != nil:
		home, writes = &t.Decide.Part, 1
	case t.Commit != nil:
		if i := slices.IndexFunc(t.Commit.Parts, t.atHome); i >= 0 {
			home = &t.Commit.Parts[i].Part
		}
		for i := range t.Commit.Parts {
			writes += len(t.Commit.Parts[i].Part.Writes)
		}
	}
	switch {
	case home == nil:
		return errors.New("a request without a home")
	case q.Refused != nil && writes > 0:
		return errors.New("a refusal that writes")
	case q.Refused != nil && (q.Refused.Code == wire.CodeOK || len(q.Refused.Detail) > maxAnswerDetail):
		return fmt.Errorf("a refusal with code %d and %d bytes of detail", q.Refused.Code, len(q.Refused.Detail))
	case q.Refused == nil && len(home.Writes) == 0:
		return errors.New("a request that writes no document")
	}
	return nil
}

func (t *Txn) atHome(p PartitionPart) bool { return p.Partition == t.Partition }

// knownRequest is the answer that is kept for a transaction's request; nil: none.
func (a *applier) knownRequest(t *Txn) ([]byte, error) {
	if t.Request == nil {
		return nil, nil
	}
	answer, found, err := a.firstAnswer(t.Partition, &t.Request.ID, ofRequest)
	if err != nil || !found {
		return nil, err
	}
	return bytes.Clone(answer), nil
}

// expiredRequest says that what became of the request is not known any more.
func (a *applier) expiredRequest(t *Txn) bool {
	return t.Request != nil && a.expired(txn.ID(t.Request.ID))
}

// recordWrite keeps what a request has done, and is its answer.
func (a *applier) recordWrite(t *Txn, n *txn.Intent, c hlc.Timestamp) ([]byte, error) {
	r := Result{Wire: wire.WriteResult{Version: n.Version, Time: uint64(c), CreatedAt: uint64(n.Created), Created: n.Created == 0 && !n.Deleted}}
	if n.Created == 0 {
		r.Wire.CreatedAt = uint64(c)
	}
	if !n.Deleted {
		r.Wire.Doc = n.Body
	}
	return a.recordAnswer(t, &r)
}

// recordRefusal keeps why a request was refused.
func (a *applier) recordRefusal(t *Txn) ([]byte, error) {
	no := t.Request.Refused
	return a.recordAnswer(t, &Result{Wire: wire.WriteResult{Error: &wire.Error{Code: no.Code, Version: no.Version}}, Detail: strings.Clone(no.Detail)})
}

func (a *applier) recordAnswer(t *Txn, r *Result) ([]byte, error) {
	return appendAnswer(nil, r, t.Request.KeepDoc), a.remember(&t.Request.ID, t.Partition, r, t.Request.KeepDoc)
}

// RequestAnswer is what a transaction has answered to its request
// (txn.Answer.Write). Whether an earlier attempt did it is the answer's to say.
func RequestAnswer(a *txn.Answer) (Result, error) {
	var r Result
	if err := decodeAnswer(a.Write, &r); err != nil {
		return r, err
	}
	r.Wire.Duplicate = a.Duplicate
	return r, nil
}

// Evaluate is what a write makes of a document of this version and body, if it
// is live: its new body (nil: it is deleted), or why it is refused. A restore
// is a put of what it restores.
func Evaluate(w *wire.WriteItem, live bool, version uint64, body []byte, now hlc.Timestamp, limit int) ([]byte, *Refused) {
	if no := conditions(w, live, version); no != nil {
		return nil, no.exported()
	}
	switch w.Op {
	case wire.OpDelete:
		return nil, nil
	case wire.OpUpdate, wire.OpUpsert:
		if !live {
			body = nil
		}
		changed, no := evaluate(body, w.Body, now, limit)
		if no != nil {
			return nil, no.exported()
		}
		body = changed
	default:
		body = w.Body
	}
	if no := oversize(body, limit); no != nil {
		return nil, no.exported()
	}
	return body, nil
}

func (no *refusal) exported() *Refused {
	detail := no.detail
	if len(detail) > maxAnswerDetail {
		detail = strings.ToValidUTF8(detail[:maxAnswerDetail], "")
	}
	return &Refused{Code: no.code, Version: no.version, Detail: detail}
}

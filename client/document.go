package client

import (
	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
)

// Document is one version of one document. Its body is decoded only when asked.
type Document struct {
	ID        string
	Version   uint64
	CreatedAt Timestamp
	UpdatedAt Timestamp
	// Deleted: this version removed the document (history only).
	Deleted bool

	body Raw
}

func documentOf(d *wire.Document) *Document {
	read := documentAs(d)
	return &read
}

func documentAs(d *wire.Document) Document {
	return Document{
		ID: d.ID, Version: d.Version, Deleted: d.Deleted, body: d.Body,
		CreatedAt: Timestamp(d.CreatedAt), UpdatedAt: Timestamp(d.UpdatedAt),
	}
}

// Decode reads the document into a pointer to a struct, a map or a Raw. Fields
// take the names of their `idb` tags, else of their `json` tags, else their
// own. _id, _version, _createdAt and _updatedAt are fields like others.
func (d *Document) Decode(v any) error {
	if err := doc.DecodeDocument(d.meta(), d.body, v); err != nil {
		e := refused(wire.CodeBadDocument, "decode", "", "", "%s: %v", clip(d.ID), err)
		e.causes = []error{err}
		return e
	}
	return nil
}

// Map is the document as a map, with _id, _version, _createdAt and _updatedAt.
func (d *Document) Map() (D, error) {
	var m D
	err := d.Decode(&m)
	return m, err
}

// Body is the document's bytes as stored, without _id and the other fields that
// the database keeps. It is shared memory: do not change it.
func (d *Document) Body() Raw { return d.body }

// Get is the value at a dotted path in the body, without decoding the rest.
func (d *Document) Get(path string) (Raw, bool) { return doc.Get(d.body, path) }

// JSON is the document on one line: _id, _version, _createdAt, _updatedAt, then
// its fields. Bytes and timestamps are written as {"$bytes":…} and {"$date":…}.
func (d *Document) JSON() []byte { return d.AppendJSON(make([]byte, 0, 128+2*len(d.body))) }

// AppendJSON appends JSON to dst.
func (d *Document) AppendJSON(dst []byte) []byte {
	return doc.AppendDocumentJSON(dst, d.meta(), d.body)
}

// MarshalJSON lets encoding/json print a Document.
func (d *Document) MarshalJSON() ([]byte, error) { return d.JSON(), nil }

// String is the document as JSON.
func (d *Document) String() string { return string(d.JSON()) }

func (d *Document) meta() doc.Meta {
	return doc.Meta{ID: d.ID, Version: d.Version, Created: d.CreatedAt, Updated: d.UpdatedAt}
}

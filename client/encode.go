package client

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
)

// encode is v as one canonical value. Raw is taken as it is, JSON is
// translated, everything else goes through doc.Marshal.
func encode(v any) (Raw, error) {
	switch v := v.(type) {
	case Raw:
		return v, nil
	case json.RawMessage:
		return doc.FromJSON(v)
	case *Document:
		return v.body, nil
	case []byte:
		return nil, fmt.Errorf("bytes can be JSON or canonical: say which, as json.RawMessage or client.Raw")
	}
	return doc.Marshal(v)
}

// body is a document's canonical bytes without the fields that the database
// keeps, and the ID to store it under: id, or the document's own _id if id is
// empty. Both must agree if both are there.
func body(v any, op, collection, id string) (Raw, string, *Error) {
	raw, err := encode(v)
	if err != nil {
		return nil, id, badDocument(err, op, collection, id)
	}
	own, rest, err := doc.SplitMeta(raw)
	if err != nil {
		return nil, id, badDocument(err, op, collection, id)
	}
	switch {
	case id == "":
		id = own
	case own != "" && own != id:
		return nil, id, refused(wire.CodeBadID, op, collection, id, "the document's _id is %q (leave it out, or write to that ID)", clip(own))
	}
	return rest, id, checkID(op, collection, id)
}

// operators is an update's canonical bytes.
func operators(v any, op, collection, id string) (Raw, *Error) {
	raw, err := encode(v)
	if err != nil {
		e := badDocument(err, op, collection, id)
		if e.Code == wire.CodeBadDocument {
			e.Code = wire.CodeBadUpdate
		}
		return nil, e
	}
	if raw.Kind() != doc.KindMap {
		return nil, refused(wire.CodeBadUpdate, op, collection, id, `an update is a map of operators, such as {"$set": {"name": "Ada"}}`)
	}
	return raw, checkID(op, collection, id)
}

// checkID spares a request that every server would refuse.
func checkID(op, collection, id string) *Error {
	switch {
	case collection == "":
		return refused(wire.CodeBadCollection, op, "", "", "the collection has no name")
	case id == "":
		return refused(wire.CodeBadID, op, collection, "", "the document has no ID (give one, or a string in its _id)")
	case len(id) > wire.MaxIDBytes:
		return refused(wire.CodeBadID, op, collection, id, "the ID has %d bytes, the limit is %d", len(id), wire.MaxIDBytes)
	case !utf8.ValidString(id):
		return refused(wire.CodeBadID, op, collection, "", "the ID %q is not UTF-8", clip(id))
	}
	return nil
}

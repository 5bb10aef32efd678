package doc

import (
	"reflect"
	"strconv"
	"unicode/utf8"

	"github.com/impossibledb/idb/txn/hlc"
)

// Names that ride beside a body. No other top-level name may begin with "_".
const (
	FieldID        = "_id"
	FieldVersion   = "_version"
	FieldCreatedAt = "_createdAt"
	FieldUpdatedAt = "_updatedAt"
)

// MaxIDBytes bounds a document's ID.
const MaxIDBytes = 512

// CheckID refuses an ID that is empty, too long or not UTF-8.
func CheckID(id string) error {
	switch {
	case id == "":
		return errorf(ErrBadID, "", "the document has no ID (give it a string _id)")
	case len(id) > MaxIDBytes:
		return errorf(ErrBadID, "", "the document's ID has %d bytes, the limit is %d", len(id), MaxIDBytes)
	case !utf8.ValidString(id):
		return errorf(ErrBadID, "", "the document's ID is not valid UTF-8")
	}
	return nil
}

// SplitMeta takes a document apart as a writer gives it: the ID (empty if
// there is none, or if it is the empty string) and the body that is stored.
// _version, _createdAt and _updatedAt are dropped, so what was read can be
// written back. Any other name that begins with "_" or "$" is refused. The
// body lies inside raw where nothing had to be cut out.
func SplitMeta(raw Raw) (id string, body Raw, err error) {
	kind, head, n := scan(raw, 0)
	if kind != KindMap {
		return "", nil, checkError(raw, Limits{}.withDefaults(), checkNotMap, 0)
	}
	const most = 4
	var cuts [most][2]int
	found := 0
	i := head
	for range n {
		start := i
		kind, head, size := scan(raw, i)
		if kind != KindString {
			return "", nil, checkError(raw, Limits{}.withDefaults(), checkKeyKind, i)
		}
		name := raw[i+head : i+head+size]
		if size > 0 && name[0] > '_' {
			break // names ascend: no more to find
		}
		value := i + head + size
		if i = skip(raw, value); i < 0 {
			return "", nil, checkError(raw, Limits{}.withDefaults(), checkShort, value)
		}
		if size == 0 || name[0] != '_' && name[0] != '$' {
			continue
		}
		switch string(name) {
		case FieldID:
			text, ok := Raw(raw[value:i]).Text()
			if !ok {
				return "", nil, errorf(ErrBadID, "", "_id must be a string, not %s", Raw(raw[value:i]).Kind().Phrase())
			}
			id = string(text)
			if id != "" {
				if err := CheckID(id); err != nil {
					return "", nil, err
				}
			}
		case FieldVersion, FieldCreatedAt, FieldUpdatedAt:
		default:
			return "", nil, nameError(string(name))
		}
		if found == most {
			return "", nil, checkError(raw, Limits{}.withDefaults(), checkKeyTwice, start)
		}
		cuts[found] = [2]int{start, i}
		found++
	}
	if found == 0 {
		return "", raw, nil
	}
	body = make(Raw, 0, len(raw))
	body = AppendMapHead(body, n-found)
	at := head
	for _, c := range cuts[:found] {
		body = append(body, raw[at:c[0]]...)
		at = c[1]
	}
	return id, append(body, raw[at:]...), nil
}

// Meta is what rides beside a body.
type Meta struct {
	ID      string
	Version uint64
	Created hlc.Timestamp
	Updated hlc.Timestamp
}

// AppendDocument appends the whole document: the body with _id, _version (an
// int), _createdAt and _updatedAt (timestamps) in their places. Fields of the
// Meta that are zero are left out.
func AppendDocument(dst []byte, m Meta, body Raw) Raw {
	kind, i, n := scan(body, 0)
	if kind != KindMap {
		i, n = 0, 0
		body = nil
	}
	extra := 0
	for _, set := range [...]bool{m.ID != "", m.Version != 0, m.Created != 0, m.Updated != 0} {
		if set {
			extra++
		}
	}
	dst = AppendMapHead(dst, n+extra)
	// Names before "_" come first.
	at := i
	for ; n > 0; n-- {
		kind, head, size := scan(body, at)
		if kind != KindString || size > 0 && body[at+head] >= '_' {
			break
		}
		next := skip(body, at+head+size)
		if next < 0 {
			break
		}
		at = next
	}
	dst = append(dst, body[i:at]...)
	if m.Created != 0 {
		dst = AppendTime(AppendString(dst, FieldCreatedAt), m.Created.Time())
	}
	if m.ID != "" {
		dst = AppendString(AppendString(dst, FieldID), m.ID)
	}
	if m.Updated != 0 {
		dst = AppendTime(AppendString(dst, FieldUpdatedAt), m.Updated.Time())
	}
	if m.Version != 0 {
		dst = AppendInt(AppendString(dst, FieldVersion), int64(m.Version))
	}
	return append(dst, body[at:]...)
}

// DecodeDocument fills v, a pointer, with a body and what rides beside it. A
// struct receives the latter in fields named _id (string), _version (an
// integer), _createdAt and _updatedAt (time.Time, hlc.Timestamp, or a string
// for RFC 3339); a map under these names, times as time.Time.
func DecodeDocument(m Meta, body Raw, v any) error {
	rv := reflect.ValueOf(v)
	if rv.Kind() == reflect.Pointer && !rv.IsNil() {
		if info := infoOf(rv.Type().Elem()); info.dec == opStruct {
			if err := body.Decode(v); err != nil {
				return err
			}
			if info.meta {
				return m.fill(info, rv.Elem())
			}
			return nil
		}
	}
	whole := AppendDocument(make([]byte, 0, len(body)+len(m.ID)+80), m, body)
	return whole.Decode(v)
}

func (m Meta) fill(info *typeInfo, v reflect.Value) error {
	set := func(name string, value Raw, ts hlc.Timestamp) error {
		f := info.field(name)
		if f == nil {
			return nil
		}
		fv, err := f.reach(v)
		if err != nil {
			return under(err, name)
		}
		target := f.info
		if target.dec == opPointer && target.elem.typ == typeTimestamp {
			fv.Set(reflect.New(typeTimestamp))
			fv, target = fv.Elem(), target.elem
		}
		switch {
		case ts != 0 && target.typ == typeTimestamp:
			fv.SetUint(uint64(ts))
			return nil
		case ts != 0 && target.dec == opString:
			fv.SetString(ts.Time().Format(jsonMetaTime))
			return nil
		}
		d := decoder{b: value}
		if err := d.value(target, fv, 0); err != nil {
			return under(err, name)
		}
		return nil
	}
	stamp := func(ts hlc.Timestamp) Raw {
		if ts == 0 {
			return AppendNull(nil)
		}
		return AppendTime(nil, ts.Time())
	}
	var buf [64]byte
	if err := set(FieldID, AppendString(buf[:0], m.ID), 0); err != nil {
		return err
	}
	if err := set(FieldVersion, AppendInt(buf[:0], int64(m.Version)), 0); err != nil {
		return err
	}
	if err := set(FieldCreatedAt, stamp(m.Created), m.Created); err != nil {
		return err
	}
	return set(FieldUpdatedAt, stamp(m.Updated), m.Updated)
}

// jsonMetaTime is RFC 3339 to the millisecond.
const jsonMetaTime = "2006-01-02T15:04:05.000Z"

// AppendDocumentJSON appends a whole document as JSON: _id, _version,
// _createdAt and _updatedAt (strings of RFC 3339) first, then the fields.
// FromJSON and SplitMeta turn it into the same ID and body. Fields of the Meta
// that are zero are left out.
func AppendDocumentJSON(dst []byte, m Meta, body Raw) []byte {
	dst = append(dst, '{')
	start := len(dst)
	name := func(field string) {
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		dst = append(dst, field...)
		dst = append(dst, '"', ':')
	}
	stamp := func(field string, ts hlc.Timestamp) {
		if ts != 0 {
			name(field)
			dst = append(dst, '"')
			dst = ts.Time().AppendFormat(dst, jsonMetaTime)
			dst = append(dst, '"')
		}
	}
	if m.ID != "" {
		name(FieldID)
		dst = appendJSONString(dst, []byte(m.ID))
	}
	if m.Version != 0 {
		name(FieldVersion)
		dst = strconv.AppendUint(dst, m.Version, 10)
	}
	stamp(FieldCreatedAt, m.Created)
	stamp(FieldUpdatedAt, m.Updated)
	if body.Len() > 0 && body.Kind() == KindMap {
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = appendJSON(dst, body, true)
	}
	return append(dst, '}')
}

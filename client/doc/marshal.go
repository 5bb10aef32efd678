package doc

import (
	"encoding"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"time"
	"unicode/utf8"
)

// Marshal makes a value of a Go value:
//
//   - nil, nil pointers, maps and slices are null
//   - integers of every size are ints (above MaxInt64 refused), float32 and
//     float64 floats, also 1.0; json.Number is an int if it looks like one
//   - strings must be valid UTF-8; []byte and [N]byte are bytes
//   - time.Time is a timestamp, in UTC, to the nanosecond
//   - maps have string or integer keys, or keys with MarshalText
//   - structs are maps of their exported fields, named and omitted by the tag
//     `idb:"name,omitempty,omitzero"`, or where there is none by `json:"…"`;
//     embedded structs are flattened as in encoding/json
//   - a Marshaler makes its own value; else MarshalText makes a string; else
//     MarshalJSON is read as JSON
//   - Raw is taken as it is, and made canonical if it is not
//
// Nesting beyond DefaultMaxDepth is refused, so a cycle of pointers is too.
func Marshal(v any) (Raw, error) { return AppendMarshal(nil, v) }

// AppendMarshal is Marshal into dst, for callers that convert many.
func AppendMarshal(dst []byte, v any) (Raw, error) {
	bd := builders.Get().(*Builder)
	defer putBuilder(bd)
	if dst == nil {
		dst = make([]byte, 0, 256)
	}
	bd.Reset(dst, DefaultMaxDepth)
	m := marshaler{Builder: bd}
	m.any(v)
	return m.Finish()
}

// marshaler walks Go values. Its recursion is bounded by the depth of the
// builder, and of pointers by pointers.
type marshaler struct {
	*Builder
	pointers int // pointers and interfaces followed since the last container
}

func (m *marshaler) refuse(format string, args ...any) {
	m.fail(errorf(ErrInvalid, m.path(), format, args...))
}

func (m *marshaler) any(v any) {
	switch v := v.(type) {
	case nil:
		m.Null()
	case string:
		m.text(v)
	case bool:
		m.Bool(v)
	case int:
		m.Int(int64(v))
	case int64:
		m.Int(v)
	case int32:
		m.Int(int64(v))
	case uint64:
		m.uint(v)
	case uint32:
		m.Int(int64(v))
	case float64:
		m.Float(v)
	case time.Time:
		m.time(v)
	case Raw:
		m.raw(v)
	case []byte:
		if v == nil {
			m.Null()
			return
		}
		m.Bytes(v)
	case json.Number:
		m.number(string(v))
	case D:
		if v == nil {
			m.Null()
			return
		}
		m.BeginMap()
		for k, e := range v {
			if m.err != nil {
				return
			}
			m.key(k)
			m.any(e)
		}
		m.End()
	case []any:
		if v == nil {
			m.Null()
			return
		}
		m.BeginArray()
		for _, e := range v {
			if m.err != nil {
				return
			}
			m.any(e)
		}
		m.End()
	case []string:
		if v == nil {
			m.Null()
			return
		}
		m.BeginArray()
		for _, e := range v {
			m.text(e)
		}
		m.End()
	default:
		rv := reflect.ValueOf(v)
		m.value(infoOf(rv.Type()), rv)
	}
}

func (m *marshaler) key(k string) {
	m.KeyString(k)
	if !utf8.ValidString(k) {
		m.refuse("the field name %q is not valid UTF-8", k)
	}
}

func (m *marshaler) text(s string) {
	if !utf8.ValidString(s) {
		m.refuse("a string is not valid UTF-8 (store it as []byte)")
		return
	}
	m.String(s)
}

func (m *marshaler) uint(u uint64) {
	if u > math.MaxInt64 {
		m.refuse("the integer %d is above 9223372036854775807 (store it as a float or a string)", u)
		return
	}
	m.Int(int64(u))
}

func (m *marshaler) time(t time.Time) {
	if !timeInRange(t.Unix(), uint32(t.Nanosecond())) {
		m.refuse("a timestamp lies outside the years 1 to 9999")
		return
	}
	m.Time(t)
}

func (m *marshaler) raw(r Raw) {
	if len(r) == 0 {
		m.Null()
		return
	}
	if kind := r.Kind(); len(m.frames) >= m.depth && (kind == KindMap || kind == KindArray) {
		m.fail(errorf(ErrTooDeep, m.path(), "arrays and maps are nested deeper than %d", m.depth))
		return
	}
	r, err := Canonicalize(r, Limits{MaxBytes: maxBuild, MaxDepth: max(1, m.depth-len(m.frames))})
	if err != nil {
		m.fail(err)
		return
	}
	m.Raw(r)
}

func (m *marshaler) number(s string) {
	if v, err := strconv.ParseInt(s, 10, 64); err == nil {
		m.Int(v)
		return
	}
	if s == "" { // as encoding/json writes it
		m.Int(0)
		return
	}
	m.json([]byte(s))
}

func (m *marshaler) json(b []byte) {
	r, err := FromJSON(b)
	if err != nil {
		m.fail(err)
		return
	}
	m.raw(r)
}

func (m *marshaler) value(info *typeInfo, v reflect.Value) {
	if m.err != nil {
		return
	}
	switch info.enc {
	case opBool:
		m.Bool(v.Bool())
	case opInt:
		m.Int(v.Int())
	case opUint:
		m.uint(v.Uint())
	case opFloat:
		m.Float(v.Float())
	case opString:
		m.text(v.String())
	case opBytes:
		if v.IsNil() {
			m.Null()
			return
		}
		m.Bytes(v.Bytes())
	case opByteArray:
		if !v.CanAddr() {
			c := reflect.New(v.Type()).Elem()
			c.Set(v)
			v = c
		}
		m.Bytes(v.Bytes())
	case opTime:
		m.time(v.Interface().(time.Time))
	case opRaw:
		m.raw(v.Bytes())
	case opNumber:
		m.number(v.String())
	case opMessage:
		if v.Len() == 0 {
			m.Null()
			return
		}
		m.json(v.Bytes())
	case opCustom, opText, opJSON:
		m.method(info, v)
	case opPointer, opInterface:
		if v.IsNil() {
			m.Null()
			return
		}
		const most = 1000
		if m.pointers++; m.pointers > most {
			m.fail(errorf(ErrTooDeep, m.path(), "a pointer leads to itself"))
			return
		}
		if info.enc == opPointer {
			m.value(info.elem, v.Elem())
		} else {
			m.value(infoOf(v.Elem().Type()), v.Elem())
		}
		m.pointers--
	case opStruct:
		m.structure(info, v)
	case opMap:
		m.mapping(info, v)
	case opSlice, opArray:
		if info.enc == opSlice && v.IsNil() {
			m.Null()
			return
		}
		m.BeginArray()
		for i := range v.Len() {
			if m.err != nil {
				return
			}
			m.value(info.elem, v.Index(i))
		}
		m.End()
	default:
		m.refuse("a Go value of type %s cannot be stored", v.Type())
	}
}

func (m *marshaler) structure(info *typeInfo, v reflect.Value) {
	m.BeginMap()
	for _, f := range info.fields {
		if m.err != nil {
			return
		}
		fv, ok := f.get(v)
		if !ok || f.omitEmpty && isEmpty(fv) {
			continue
		}
		if f.omitZero {
			if f.isZero != nil && f.isZero(fv) || f.isZero == nil && fv.IsZero() {
				continue
			}
		}
		start := len(m.dst)
		m.dst = append(m.dst, f.key...)
		m.keyWritten(start, len(m.dst)-len(f.name))
		m.value(f.info, fv)
	}
	m.End()
}

// isEmpty is encoding/json's notion of empty.
func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
		return v.Len() == 0
	case reflect.Struct:
		return false
	}
	return v.IsZero()
}

func (m *marshaler) mapping(info *typeInfo, v reflect.Value) {
	if v.IsNil() {
		m.Null()
		return
	}
	m.BeginMap()
	for it := v.MapRange(); m.err == nil && it.Next(); {
		name, err := mapKey(info.key, it.Key())
		if err != nil {
			m.fail(errorf(ErrInvalid, m.path(), "a map key: %v", err))
			return
		}
		m.key(name)
		m.value(info.elem, it.Value())
	}
	m.End()
}

func mapKey(info *typeInfo, k reflect.Value) (string, error) {
	if k.Kind() == reflect.String {
		return k.String(), nil
	}
	if t, ok := k.Interface().(encoding.TextMarshaler); ok {
		b, err := t.MarshalText()
		return string(b), err
	}
	switch info.enc {
	case opInt:
		return strconv.FormatInt(k.Int(), 10), nil
	case opUint:
		return strconv.FormatUint(k.Uint(), 10), nil
	}
	return "", fmt.Errorf("%s cannot name a field", k.Type())
}

// method lets the value make itself.
func (m *marshaler) method(info *typeInfo, v reflect.Value) {
	if (v.Kind() == reflect.Map || v.Kind() == reflect.Slice) && v.IsNil() && !info.encPointer && info.enc != opCustom {
		m.Null()
		return
	}
	if info.encPointer {
		if !v.CanAddr() {
			c := reflect.New(v.Type()).Elem()
			c.Set(v)
			v = c
		}
		v = v.Addr()
	}
	switch i := v.Interface(); info.enc {
	case opCustom:
		r, err := i.(Marshaler).MarshalDoc()
		if err != nil {
			m.refuse("MarshalDoc of %s: %v", info.typ, err)
			return
		}
		m.raw(r)
	case opText:
		b, err := i.(encoding.TextMarshaler).MarshalText()
		if err != nil {
			m.refuse("MarshalText of %s: %v", info.typ, err)
			return
		}
		m.text(string(b))
	default:
		b, err := i.(json.Marshaler).MarshalJSON()
		if err != nil {
			m.refuse("MarshalJSON of %s: %v", info.typ, err)
			return
		}
		m.json(b)
	}
}

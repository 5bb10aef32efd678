package doc

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"time"
)

// maxDecodeDepth bounds the recursion of Decode on bytes nobody checked.
const maxDecodeDepth = 1000

// Decode fills the value that v points to, the reverse of Marshal:
//
//   - into an empty interface: nil, bool, int64, float64, string, []byte,
//     time.Time (UTC), []any, map[string]any
//   - null makes anything its zero value
//   - an int fits a float that holds it exactly, a float without a fraction
//     fits an integer; what would overflow or round is an error
//   - a string fits a time.Time if it is RFC 3339, and anything with UnmarshalText
//   - fields of a map that a struct does not have are skipped; fields of the
//     struct that the map does not have stay as they are
//
// Nothing decoded shares memory with r. Errors are *Error of kind ErrType, or
// ErrInvalid for bytes that are not a value.
func (r Raw) Decode(v any) error {
	// A walk first: from here on no declared length is a lie, so that what is
	// allocated for it is paid for by bytes.
	if skip(r, 0) != len(r) {
		return errorf(ErrInvalid, "", "these %d bytes are not one value", len(r))
	}
	d := decoder{b: r}
	switch v := v.(type) {
	case *D:
		if *v == nil && r.Kind() == KindMap {
			m, err := d.any(0)
			if err != nil {
				return err
			}
			*v, _ = m.(D)
			return nil
		}
	case *any:
		x, err := d.any(0)
		if err != nil {
			return err
		}
		*v = x
		return nil
	}
	rv := reflect.ValueOf(v)
	if rv.Kind() != reflect.Pointer || rv.IsNil() {
		return errorf(ErrType, "", "Decode wants a pointer to fill, not %T", v)
	}
	rv = rv.Elem()
	return d.value(infoOf(rv.Type()), rv, 0)
}

// decoder reads b from i on.
type decoder struct {
	b []byte
	i int
}

func (d *decoder) broken() error {
	return errorf(ErrInvalid, "", "the stored bytes are damaged at byte %d of %d", d.i, len(d.b))
}

// skip moves behind the value here.
func (d *decoder) skip() ([]byte, error) {
	next := skip(d.b, d.i)
	if next < 0 {
		return nil, d.broken()
	}
	p := d.b[d.i:next:next]
	d.i = next
	return p, nil
}

// name reads a field's name; it lies in d.b.
func (d *decoder) name() ([]byte, error) {
	kind, head, n := scan(d.b, d.i)
	if kind != KindString {
		return nil, d.broken()
	}
	p := d.b[d.i+head : d.i+head+n]
	d.i += head + n
	return p, nil
}

// any decodes into the natural Go value.
func (d *decoder) any(depth int) (any, error) {
	kind, head, n := scan(d.b, d.i)
	start := d.i
	payload := d.b[min(start+head, len(d.b)):]
	switch kind {
	case KindMap, KindArray:
		if depth >= maxDecodeDepth {
			return nil, errorf(ErrTooDeep, "", "arrays and maps are nested deeper than %d", maxDecodeDepth)
		}
		d.i += head
		if kind == KindArray {
			list := make([]any, n)
			for i := range list {
				var err error
				if list[i], err = d.any(depth + 1); err != nil {
					return nil, err
				}
			}
			return list, nil
		}
		m := make(D, n)
		for range n {
			name, err := d.name()
			if err != nil {
				return nil, err
			}
			x, err := d.any(depth + 1)
			if err != nil {
				return nil, err
			}
			m[string(name)] = x
		}
		return m, nil
	case KindInvalid, kindExt:
		return nil, d.broken()
	}
	d.i += head + n
	switch kind {
	case KindInt:
		v, _ := intAt(d.b, start)
		return v, nil
	case KindFloat:
		return floatAt(d.b, start), nil
	case KindString:
		return string(payload[:n]), nil
	case KindBytes:
		return bytes.Clone(payload[:n:n]), nil
	case KindBool:
		return d.b[start] == tagTrue, nil
	case KindTime:
		sec, nsec := timeAt(payload[:n])
		return time.Unix(sec, int64(nsec)).UTC(), nil
	}
	return nil, nil
}

func (d *decoder) value(info *typeInfo, v reflect.Value, depth int) error {
	kind, head, n := scan(d.b, d.i)
	if kind == KindInvalid || kind == kindExt {
		return d.broken()
	}
	if depth > maxDecodeDepth {
		return errorf(ErrTooDeep, "", "arrays, maps and pointers are nested deeper than %d", maxDecodeDepth)
	}
	if kind == KindNull && info.dec != opRaw && info.dec != opCustom && info.dec != opMessage {
		d.i++
		v.SetZero()
		return nil
	}
	start := d.i
	payload := d.b[start+head:]
	misfit := func() error {
		return errorf(ErrType, "", "%s does not fit the Go type %s", kind.Phrase(), info.typ)
	}
	switch info.dec {
	case opPointer:
		if v.IsNil() {
			v.Set(reflect.New(info.elem.typ))
		}
		return d.value(info.elem, v.Elem(), depth+1)
	case opInterface:
		if info.typ.NumMethod() > 0 {
			return misfit()
		}
		x, err := d.any(depth)
		if err != nil {
			return err
		}
		if x == nil {
			v.SetZero()
		} else {
			v.Set(reflect.ValueOf(x))
		}
		return nil
	case opRaw:
		p, err := d.skip()
		if err != nil {
			return err
		}
		v.SetBytes(bytes.Clone(p))
		return nil
	case opMessage:
		p, err := d.skip()
		if err != nil {
			return err
		}
		v.SetBytes(AppendJSON(nil, p))
		return nil
	case opCustom, opJSON:
		p, err := d.skip()
		if err != nil {
			return err
		}
		i := v.Addr().Interface()
		if info.dec == opCustom {
			err = i.(Unmarshaler).UnmarshalDoc(p)
		} else {
			err = i.(json.Unmarshaler).UnmarshalJSON(AppendJSON(nil, p))
		}
		if err != nil {
			return errorf(ErrType, "", "%s: %v", info.typ, err)
		}
		return nil
	case opText:
		if kind != KindString {
			return misfit()
		}
		d.i += head + n
		if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText(payload[:n]); err != nil {
			return errorf(ErrType, "", "%s: %v", info.typ, err)
		}
		return nil
	case opStruct:
		if kind != KindMap {
			return misfit()
		}
		d.i += head
		return d.structure(info, v, n, depth)
	case opMap:
		if kind != KindMap {
			return misfit()
		}
		d.i += head
		return d.mapping(info, v, n, depth)
	case opSlice, opArray:
		if kind != KindArray {
			return misfit()
		}
		d.i += head
		if info.dec == opArray {
			if n > v.Len() {
				return errorf(ErrType, "", "an array of %d does not fit the Go type %s", n, info.typ)
			}
			v.SetZero()
		} else {
			v.Set(reflect.MakeSlice(info.typ, n, n))
		}
		for i := range n {
			if err := d.value(info.elem, v.Index(i), depth+1); err != nil {
				return under(err, strconv.Itoa(i))
			}
		}
		return nil
	}

	// A scalar.
	d.i += head + n
	switch info.dec {
	case opBool:
		if kind != KindBool {
			return misfit()
		}
		v.SetBool(d.b[start] == tagTrue)
	case opInt, opUint:
		var x int64
		switch kind {
		case KindInt:
			x, _ = intAt(d.b, start)
		case KindFloat:
			f := floatAt(d.b, start)
			if f != math.Trunc(f) || f < -1<<63 || f >= 1<<63 {
				return errorf(ErrType, "", "the float %v does not fit the Go type %s", f, info.typ)
			}
			x = int64(f)
		default:
			return misfit()
		}
		if info.dec == opInt && !v.OverflowInt(x) {
			v.SetInt(x)
		} else if info.dec == opUint && x >= 0 && !v.OverflowUint(uint64(x)) {
			v.SetUint(uint64(x))
		} else {
			return errorf(ErrType, "", "the integer %d does not fit the Go type %s", x, info.typ)
		}
	case opFloat:
		switch kind {
		case KindFloat:
			f := floatAt(d.b, start)
			if v.OverflowFloat(f) {
				return errorf(ErrType, "", "the float %v does not fit the Go type %s", f, info.typ)
			}
			v.SetFloat(f)
		case KindInt:
			x, _ := intAt(d.b, start)
			f := float64(x)
			if info.typ.Kind() == reflect.Float32 {
				f = float64(float32(x))
			}
			if compareIntFloat(x, f) != 0 {
				return errorf(ErrType, "", "the integer %d has no exact %s", x, info.typ)
			}
			v.SetFloat(f)
		default:
			return misfit()
		}
	case opString:
		if kind != KindString {
			return misfit()
		}
		v.SetString(string(payload[:n]))
	case opNumber:
		switch kind {
		case KindInt, KindFloat:
			text := AppendJSON(nil, d.b[start:d.i])
			if text[0] == '{' {
				return misfit() // NaN or infinite
			}
			v.SetString(string(text))
		default:
			return misfit()
		}
	case opBytes:
		if kind != KindBytes {
			return misfit()
		}
		v.SetBytes(bytes.Clone(payload[:n:n]))
	case opByteArray:
		if kind != KindBytes || n != v.Len() {
			return misfit()
		}
		reflect.Copy(v, reflect.ValueOf(payload[:n]))
	case opTime:
		switch kind {
		case KindTime:
			sec, nsec := timeAt(payload[:n])
			v.Set(reflect.ValueOf(time.Unix(sec, int64(nsec)).UTC()))
		case KindString:
			t, err := time.Parse(time.RFC3339Nano, string(payload[:n]))
			if err != nil {
				return errorf(ErrType, "", "a string that is not an RFC 3339 time does not fit the Go type %s", info.typ)
			}
			v.Set(reflect.ValueOf(t))
		default:
			return misfit()
		}
	default:
		return misfit()
	}
	return nil
}

// structure fills a struct from n fields. Both are in order of names, so one
// walk over both finds them all.
func (d *decoder) structure(info *typeInfo, v reflect.Value, n, depth int) error {
	fields := info.fields
	for range n {
		name, err := d.name()
		if err != nil {
			return err
		}
		for len(fields) > 0 && fields[0].name < string(name) {
			fields = fields[1:]
		}
		if len(fields) == 0 || fields[0].name != string(name) {
			if _, err := d.skip(); err != nil {
				return err
			}
			continue
		}
		f := fields[0]
		fv, err := f.reach(v)
		if err == nil {
			err = d.value(f.info, fv, depth+1)
		}
		if err != nil {
			return under(err, f.name)
		}
	}
	return nil
}

// mapping adds n fields to a map.
func (d *decoder) mapping(info *typeInfo, v reflect.Value, n, depth int) error {
	if v.IsNil() {
		v.Set(reflect.MakeMapWithSize(info.typ, n))
	}
	elem := reflect.New(info.elem.typ).Elem()
	for range n {
		name, err := d.name()
		if err != nil {
			return err
		}
		key, err := decodeMapKey(info.key, string(name))
		if err != nil {
			return under(errorf(ErrType, "", "%v", err), string(name))
		}
		elem.SetZero()
		if err := d.value(info.elem, elem, depth+1); err != nil {
			return under(err, string(name))
		}
		v.SetMapIndex(key, elem)
	}
	return nil
}

func decodeMapKey(info *typeInfo, name string) (reflect.Value, error) {
	k := reflect.New(info.typ).Elem()
	if info.typ.Kind() == reflect.String {
		k.SetString(name)
		return k, nil
	}
	if t, ok := k.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return k, t.UnmarshalText([]byte(name))
	}
	switch info.dec {
	case opInt:
		x, err := strconv.ParseInt(name, 10, 64)
		if err != nil || k.OverflowInt(x) {
			return k, fmt.Errorf("the field name does not fit the Go type %s", info.typ)
		}
		k.SetInt(x)
	case opUint:
		x, err := strconv.ParseUint(name, 10, 64)
		if err != nil || k.OverflowUint(x) {
			return k, fmt.Errorf("the field name does not fit the Go type %s", info.typ)
		}
		k.SetUint(x)
	default:
		return k, fmt.Errorf("%s cannot be a map's key", info.typ)
	}
	return k, nil
}

// under puts a name in front of an error's path.
func under(err error, name string) error {
	e, ok := err.(*Error)
	if !ok {
		return errorf(ErrType, name, "%v", err)
	}
	if e.Path == "" {
		e.Path = name
	} else {
		e.Path = name + "." + e.Path
	}
	return e
}

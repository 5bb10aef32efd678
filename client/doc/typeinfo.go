package doc

import (
	"cmp"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/impossibledb/idb/txn/hlc"
)

// Marshaler is a type that makes its own value. The answer need not be
// canonical.
type Marshaler interface{ MarshalDoc() (Raw, error) }

// Unmarshaler is a type that reads its own value, which it must copy to keep.
type Unmarshaler interface{ UnmarshalDoc(Raw) error }

// op is how a Go type maps to values.
type op uint8

const (
	opNone op = iota // cannot be stored
	opBool
	opInt
	opUint
	opFloat
	opString
	opBytes     // []byte
	opByteArray // [N]byte
	opTime
	opRaw
	opNumber  // json.Number
	opMessage // json.RawMessage
	opCustom  // Marshaler or Unmarshaler
	opText    // encoding.TextMarshaler or TextUnmarshaler
	opJSON    // json.Marshaler or Unmarshaler
	opPointer
	opInterface
	opStruct
	opMap
	opSlice
	opArray
)

// typeInfo is what Marshal and Decode know of a Go type. It is made once.
type typeInfo struct {
	typ      reflect.Type
	enc, dec op
	// The methods of enc have a pointer receiver.
	encPointer bool

	elem   *typeInfo    // pointer, map, slice, array
	key    *typeInfo    // map
	fields []*fieldInfo // struct, in order of names
	meta   bool         // some field is one of the names that begin with "_"
}

// fieldInfo is one field of a struct as stored.
type fieldInfo struct {
	name      string
	key       []byte // name, encoded
	index     []int
	info      *typeInfo
	omitEmpty bool
	omitZero  bool
	isZero    func(reflect.Value) bool // omitZero; nil: reflect's
}

var (
	typeCache sync.Map // reflect.Type → *typeInfo, complete
	typeMu    sync.Mutex

	typeRaw         = reflect.TypeFor[Raw]()
	typeTime        = reflect.TypeFor[time.Time]()
	typeNumber      = reflect.TypeFor[json.Number]()
	typeMessage     = reflect.TypeFor[json.RawMessage]()
	typeTimestamp   = reflect.TypeFor[hlc.Timestamp]()
	typeMarshaler   = reflect.TypeFor[Marshaler]()
	typeUnmarshaler = reflect.TypeFor[Unmarshaler]()
	typeTextMar     = reflect.TypeFor[encoding.TextMarshaler]()
	typeTextUnmar   = reflect.TypeFor[encoding.TextUnmarshaler]()
	typeJSONMar     = reflect.TypeFor[json.Marshaler]()
	typeJSONUnmar   = reflect.TypeFor[json.Unmarshaler]()
)

func infoOf(t reflect.Type) *typeInfo {
	if v, ok := typeCache.Load(t); ok {
		return v.(*typeInfo)
	}
	typeMu.Lock()
	defer typeMu.Unlock()
	// Types that refer to each other are published together, when all are complete.
	pending := map[reflect.Type]*typeInfo{}
	info := buildInfo(t, pending)
	for t, info := range pending {
		typeCache.Store(t, info)
	}
	return info
}

func buildInfo(t reflect.Type, pending map[reflect.Type]*typeInfo) *typeInfo {
	if v, ok := typeCache.Load(t); ok {
		return v.(*typeInfo)
	}
	if info, ok := pending[t]; ok {
		return info
	}
	info := &typeInfo{typ: t}
	pending[t] = info

	kind := opNone
	switch t {
	case typeRaw:
		kind = opRaw
	case typeTime:
		kind = opTime
	case typeNumber:
		kind = opNumber
	case typeMessage:
		kind = opMessage
	}
	if kind != opNone {
		info.enc, info.dec = kind, kind
		return info
	}

	switch t.Kind() {
	case reflect.Bool:
		kind = opBool
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		kind = opInt
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		kind = opUint
	case reflect.Float32, reflect.Float64:
		kind = opFloat
	case reflect.String:
		kind = opString
	case reflect.Interface:
		kind = opInterface
	case reflect.Pointer:
		kind = opPointer
		info.elem = buildInfo(t.Elem(), pending)
	case reflect.Slice:
		kind = opSlice
		if t.Elem().Kind() == reflect.Uint8 {
			kind = opBytes
		} else {
			info.elem = buildInfo(t.Elem(), pending)
		}
	case reflect.Array:
		kind = opArray
		if t.Elem().Kind() == reflect.Uint8 {
			kind = opByteArray
		} else {
			info.elem = buildInfo(t.Elem(), pending)
		}
	case reflect.Map:
		info.key = buildInfo(t.Key(), pending)
		info.elem = buildInfo(t.Elem(), pending)
		kind = opMap
	case reflect.Struct:
		kind = opStruct
	}
	info.enc, info.dec = kind, kind
	if kind == opPointer {
		return info // its methods are those of its element, nil apart
	}

	pointer := reflect.PointerTo(t)
	encoders := []struct {
		iface reflect.Type
		op    op
	}{{typeMarshaler, opCustom}, {typeTextMar, opText}, {typeJSONMar, opJSON}}
	for _, e := range encoders {
		if kind == opInterface {
			break // decided by what is in it
		}
		if t.Implements(e.iface) {
			info.enc = e.op
			break
		}
		if pointer.Implements(e.iface) {
			info.enc, info.encPointer = e.op, true
			break
		}
	}
	decoders := []struct {
		iface reflect.Type
		op    op
	}{{typeUnmarshaler, opCustom}, {typeTextUnmar, opText}, {typeJSONUnmar, opJSON}}
	for _, d := range decoders {
		if kind != opInterface && pointer.Implements(d.iface) {
			info.dec = d.op
			break
		}
	}
	if kind == opStruct && (info.enc == opStruct || info.dec == opStruct) {
		info.fields = structFields(t, pending)
		for _, f := range info.fields {
			info.meta = info.meta || strings.HasPrefix(f.name, "_")
		}
	}
	return info
}

// structFields lists the fields of a struct by the rules of encoding/json:
// embedded structs are flattened, the least nested field of a name wins, among
// equals the tagged one, and a tie hides them all. The tag is `idb`, else
// `json`.
func structFields(t reflect.Type, pending map[reflect.Type]*typeInfo) []*fieldInfo {
	type candidate struct {
		fieldInfo
		typ    reflect.Type
		tagged bool
	}
	type embedded struct {
		typ   reflect.Type
		index []int
	}
	var found []candidate
	seen := map[reflect.Type]bool{}
	for level := []embedded{{t, nil}}; len(level) > 0; {
		var deeper []embedded
		for _, e := range level {
			if seen[e.typ] {
				continue
			}
			seen[e.typ] = true
			for i := range e.typ.NumField() {
				sf := e.typ.Field(i)
				ft := sf.Type
				if sf.Anonymous && ft.Kind() == reflect.Pointer {
					ft = ft.Elem()
				}
				if !sf.IsExported() && (!sf.Anonymous || ft.Kind() != reflect.Struct) {
					continue
				}
				tag, ok := sf.Tag.Lookup("idb")
				if !ok {
					tag = sf.Tag.Get("json")
				}
				if tag == "-" {
					continue
				}
				name, options, _ := strings.Cut(tag, ",")
				index := append(slices.Clone(e.index), i)
				if sf.Anonymous && name == "" && ft.Kind() == reflect.Struct && ft != typeTime {
					deeper = append(deeper, embedded{ft, index})
					continue
				}
				if !sf.IsExported() {
					continue
				}
				c := candidate{typ: sf.Type, tagged: name != ""}
				c.name, c.index = name, index
				if name == "" {
					c.name = sf.Name
				}
				for option := range strings.SplitSeq(options, ",") {
					switch option {
					case "omitempty":
						c.omitEmpty = true
					case "omitzero":
						c.omitZero = true
						if sf.Type.Implements(reflect.TypeFor[interface{ IsZero() bool }]()) && sf.Type.Kind() != reflect.Pointer && sf.Type.Kind() != reflect.Interface {
							c.isZero = func(v reflect.Value) bool { return v.Interface().(interface{ IsZero() bool }).IsZero() }
						}
					}
				}
				found = append(found, c)
			}
		}
		level = deeper
	}
	slices.SortStableFunc(found, func(a, b candidate) int {
		if c := cmp.Compare(a.name, b.name); c != 0 {
			return c
		}
		if c := cmp.Compare(len(a.index), len(b.index)); c != 0 {
			return c
		}
		switch {
		case a.tagged == b.tagged:
			return 0
		case a.tagged:
			return -1
		}
		return 1
	})
	var fields []*fieldInfo
	for i := 0; i < len(found); {
		j := i + 1
		for j < len(found) && found[j].name == found[i].name {
			j++
		}
		c := found[i]
		if j == i+1 || len(found[i+1].index) > len(c.index) || found[i+1].tagged != c.tagged {
			f := c.fieldInfo
			f.key = AppendString(nil, f.name)
			f.info = buildInfo(c.typ, pending)
			fields = append(fields, &f)
		}
		i = j
	}
	return fields
}

// field finds the field of a name.
func (info *typeInfo) field(name string) *fieldInfo {
	i, ok := slices.BinarySearchFunc(info.fields, name, func(f *fieldInfo, name string) int {
		return cmp.Compare(f.name, name)
	})
	if !ok {
		return nil
	}
	return info.fields[i]
}

// reach is the field in v, which is addressable; nil embedded pointers on the
// way are set.
func (f *fieldInfo) reach(v reflect.Value) (reflect.Value, error) {
	for i, x := range f.index {
		if i > 0 && v.Kind() == reflect.Pointer {
			if v.IsNil() {
				if !v.CanSet() {
					return v, fmt.Errorf("the embedded pointer to %s is not exported and nil", v.Type().Elem())
				}
				v.Set(reflect.New(v.Type().Elem()))
			}
			v = v.Elem()
		}
		v = v.Field(x)
	}
	return v, nil
}

// get is the field in v; not ok behind a nil embedded pointer.
func (f *fieldInfo) get(v reflect.Value) (reflect.Value, bool) {
	if len(f.index) == 1 {
		return v.Field(f.index[0]), true
	}
	for i, x := range f.index {
		if i > 0 && v.Kind() == reflect.Pointer {
			if v.IsNil() {
				return v, false
			}
			v = v.Elem()
		}
		v = v.Field(x)
	}
	return v, true
}

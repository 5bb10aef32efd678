package doc

// Canonicalize turns any msgpack value that can be stored into its canonical
// form: fields sorted, numbers and lengths in their shortest form, float32 as
// float64, every form of timestamp as the one. Bytes that are canonical are
// answered as they are. It refuses what Check refuses for other reasons than
// form; the limit of bytes holds before and after. It uses no recursion, and at
// most about 20 times the input's memory.
func Canonicalize(b []byte, lim Limits) (Raw, error) {
	lim = lim.withDefaults()
	code, at := check(b, lim, false)
	switch code {
	case checkOK:
		return b, nil
	case checkForm, checkKeyOrder, checkNumber:
	default:
		return nil, checkError(b, lim, code, at)
	}
	bd := builders.Get().(*Builder)
	defer putBuilder(bd)
	bd.Reset(make([]byte, 0, len(b)+len(b)/8), lim.MaxDepth)
	if code, at := bd.transcode(b); code != checkOK {
		return nil, checkError(b, lim, code, at)
	}
	out, err := bd.Finish()
	if err != nil {
		return nil, err
	}
	if len(out) > lim.MaxBytes {
		return nil, checkError(out, lim, checkTooLarge, 0)
	}
	return out, nil
}

// transcode writes the one value in b. Errors of order and depth stick to the
// builder, the rest is answered.
func (bd *Builder) transcode(b []byte) (checkCode, int) {
	type frame struct {
		left  int
		isMap bool
	}
	var inline [16]frame
	stack := inline[:0]
	cur := frame{left: 1}
	i := 0
	for bd.err == nil {
		for cur.left == 0 {
			if len(stack) == 0 {
				if i != len(b) {
					return checkTrailing, i
				}
				return checkOK, 0
			}
			cur = stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			bd.End()
			if bd.err != nil {
				return checkOK, 0
			}
		}
		cur.left--
		if cur.isMap {
			kind, head, n := scan(b, i)
			if kind == KindInvalid {
				return checkShort, i
			}
			if kind != KindString {
				return checkKeyKind, i
			}
			key := b[i+head : i+head+n]
			if !validUTF8(key) {
				return checkUTF8, i
			}
			bd.Key(key)
			i += head + n
		}
		kind, head, n := scan(b, i)
		switch kind {
		case KindNull:
			bd.Null()
		case KindBool:
			bd.Bool(b[i] == tagTrue)
		case KindInt:
			v, ok := intAt(b, i)
			if !ok {
				return checkIntRange, i
			}
			bd.Int(v)
		case KindFloat:
			bd.Float(floatAt(b, i))
		case KindString:
			if !validUTF8(b[i+head : i+head+n]) {
				return checkUTF8, i
			}
			bd.Text(b[i+head : i+head+n])
		case KindBytes:
			bd.Bytes(b[i+head : i+head+n])
		case KindTime:
			sec, nsec := timeAt(b[i+head : i+head+n])
			if !timeInRange(sec, nsec) {
				return checkTimeRange, i
			}
			bd.element()
			bd.dst = appendTime(bd.dst, sec, nsec)
		case KindMap, KindArray:
			if kind == KindMap {
				bd.BeginMap()
			} else {
				bd.BeginArray()
			}
			i += head
			stack = append(stack, cur)
			cur = frame{left: n, isMap: kind == KindMap}
			continue
		case kindExt:
			return checkExt, i
		default:
			if i < len(b) && b[i] == 0xc1 {
				return checkUnused, i
			}
			return checkShort, i
		}
		i += head + n
	}
	return checkOK, 0
}

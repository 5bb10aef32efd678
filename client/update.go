package client

// Update is a map of update operators, built by chaining:
//
//	client.Set("name", "Ada").Inc("visits", 1).Unset("draft")
//
// Paths are dotted ("address.city", "tags.0"). docs/update-operators.md says
// what each operator does; a D with the operators as keys does the same.
type Update map[string]any

// Set starts an Update with $set.
func Set(path string, value any) Update { return Update{}.Set(path, value) }

// Unset starts an Update with $unset.
func Unset(path string) Update { return Update{}.Unset(path) }

// Inc starts an Update with $inc.
func Inc(path string, by any) Update { return Update{}.Inc(path, by) }

// Mul starts an Update with $mul.
func Mul(path string, by any) Update { return Update{}.Mul(path, by) }

// Min starts an Update with $min.
func Min(path string, value any) Update { return Update{}.Min(path, value) }

// Max starts an Update with $max.
func Max(path string, value any) Update { return Update{}.Max(path, value) }

// Rename starts an Update with $rename.
func Rename(path, to string) Update { return Update{}.Rename(path, to) }

// Push starts an Update with $push.
func Push(path string, values ...any) Update { return Update{}.Push(path, values...) }

// PushWith starts an Update with $push and its modifiers.
func PushWith(path string, p PushOptions) Update { return Update{}.PushWith(path, p) }

// Pull starts an Update with $pull.
func Pull(path string, value any) Update { return Update{}.Pull(path, value) }

// AddToSet starts an Update with $addToSet.
func AddToSet(path string, values ...any) Update { return Update{}.AddToSet(path, values...) }

// PopFirst starts an Update with $pop of the first element.
func PopFirst(path string) Update { return Update{}.PopFirst(path) }

// PopLast starts an Update with $pop of the last element.
func PopLast(path string) Update { return Update{}.PopLast(path) }

// CurrentDate starts an Update with $currentDate.
func CurrentDate(path string) Update { return Update{}.CurrentDate(path) }

// Set gives the field a value.
func (u Update) Set(path string, value any) Update { return u.with("$set", path, value) }

// Unset removes the field.
func (u Update) Unset(path string) Update { return u.with("$unset", path, true) }

// Inc adds a number; to a missing field as to 0.
func (u Update) Inc(path string, by any) Update { return u.with("$inc", path, by) }

// Mul multiplies by a number; a missing field becomes 0.
func (u Update) Mul(path string, by any) Update { return u.with("$mul", path, by) }

// Min keeps the smaller of the field and value.
func (u Update) Min(path string, value any) Update { return u.with("$min", path, value) }

// Max keeps the larger of the field and value.
func (u Update) Max(path string, value any) Update { return u.with("$max", path, value) }

// Rename moves the field.
func (u Update) Rename(path, to string) Update { return u.with("$rename", path, to) }

// Push appends values to an array.
func (u Update) Push(path string, values ...any) Update {
	if len(values) == 1 {
		return u.with("$push", path, values[0])
	}
	return u.with("$push", path, D{"$each": list(values)})
}

// PushOptions are the modifiers of $push.
type PushOptions struct {
	Each     []any
	Position *int // insert before this index; nil: at the end
	Slice    *int // keep the first n, or the last -n, elements; nil: all
	Sort     any  // 1, -1, or a map of paths to 1 or -1; nil: not sorted
}

// PushWith inserts, sorts and cuts an array.
func (u Update) PushWith(path string, p PushOptions) Update {
	m := D{"$each": list(p.Each)}
	if p.Position != nil {
		m["$position"] = *p.Position
	}
	if p.Slice != nil {
		m["$slice"] = *p.Slice
	}
	if p.Sort != nil {
		m["$sort"] = p.Sort
	}
	return u.with("$push", path, m)
}

// Pull removes all elements that equal value, or that match a condition.
func (u Update) Pull(path string, value any) Update { return u.with("$pull", path, value) }

// AddToSet appends the values that the array does not have.
func (u Update) AddToSet(path string, values ...any) Update {
	if len(values) == 1 {
		return u.with("$addToSet", path, values[0])
	}
	return u.with("$addToSet", path, D{"$each": list(values)})
}

// PopFirst removes the first element of an array.
func (u Update) PopFirst(path string) Update { return u.with("$pop", path, -1) }

// PopLast removes the last element of an array.
func (u Update) PopLast(path string) Update { return u.with("$pop", path, 1) }

// CurrentDate sets the field to the write's commit time.
func (u Update) CurrentDate(path string) Update { return u.with("$currentDate", path, true) }

// list is never nil: no values are an empty array, not null.
func list(values []any) []any {
	if values == nil {
		return []any{}
	}
	return values
}

func (u Update) with(operator, path string, value any) Update {
	fields, ok := u[operator].(D)
	if !ok {
		fields = D{}
		u[operator] = fields
	}
	fields[path] = value
	return u
}

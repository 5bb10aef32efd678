package update

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/impossibledb/idb/client/doc"
	"github.com/impossibledb/idb/client/wire"
)

// Bounds that keep one update from costing more than its size and the
// document's suggest. Past them Parse answers CodeBadUpdate, except for
// maxPadding, which depends on the document.
const (
	maxPathParts  = 128    // names in one path
	maxSortFields = 8      // in one $sort
	maxConditions = 32     // in one $pull
	maxPadding    = 10_000 // nulls between an array's end and the index that is set
)

// Error is a refusal. Its code is one of
//
//	CodeBadUpdate         the operators are wrong for any document
//	CodeUpdateFailed      they do not fit this document
//	CodeDocumentTooLarge  the result has too many bytes
//	CodeTooDeep           the result is nested too deep
type Error struct {
	Code wire.Code
	Op   string // "$inc"; empty if the error is of no single operator
	Path string // the field; empty if the error is of no single field
	Text string
}

// Error is operator, path and text: `$inc "views": the field is a string, …`.
func (e *Error) Error() string {
	var sb strings.Builder
	sb.WriteString(e.Op)
	if e.Path != "" {
		if sb.Len() > 0 {
			sb.WriteByte(' ')
		}
		sb.WriteString(quote(e.Path))
	}
	if sb.Len() > 0 {
		sb.WriteString(": ")
	}
	sb.WriteString(e.Text)
	return sb.String()
}

func quote(s string) string {
	const most = 200
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strconv.Quote(s)
}

func bad(op, path, format string, args ...any) *Error {
	return &Error{Code: wire.CodeBadUpdate, Op: op, Path: path, Text: fmt.Sprintf(format, args...)}
}

// Update is a parsed update. It is read only and safe for concurrent use; it
// refers to the bytes it was parsed from.
//
// Invariant: actions are in order of paths, component by component, and no
// path is another or lies inside another.
type Update struct {
	actions []action
	inline  [2]action // the store of short lists
}

// action is one operator on one path.
type action struct {
	path  []byte
	op    operator
	value doc.Raw // operand, if the operator has one
	depth int     // nesting of the operand
	other []byte  // $rename: the path at the other end
	push  *pushSpec
	pull  *matcher
}

// operator is what to do at a path.
type operator uint8

const (
	opSet operator = iota + 1
	opSetOnInsert
	opUnset
	opInc
	opMul
	opMin
	opMax
	opRenameFrom
	opRenameTo
	opPush
	opPull
	opAddToSet
	opPop
	opCurrentDate
)

// operators are the names that a user writes. $rename is parsed into its two ends.
var operators = map[string]operator{
	"$set":         opSet,
	"$setOnInsert": opSetOnInsert,
	"$unset":       opUnset,
	"$inc":         opInc,
	"$mul":         opMul,
	"$min":         opMin,
	"$max":         opMax,
	"$rename":      opRenameFrom,
	"$push":        opPush,
	"$pull":        opPull,
	"$addToSet":    opAddToSet,
	"$pop":         opPop,
	"$currentDate": opCurrentDate,
}

const operatorList = "$addToSet, $currentDate, $inc, $max, $min, $mul, $pop, $pull, $push, $rename, $set, $setOnInsert, $unset"

var operatorNames = [...]string{
	opSet:         "$set",
	opSetOnInsert: "$setOnInsert",
	opUnset:       "$unset",
	opInc:         "$inc",
	opMul:         "$mul",
	opMin:         "$min",
	opMax:         "$max",
	opRenameFrom:  "$rename",
	opRenameTo:    "$rename",
	opPush:        "$push",
	opPull:        "$pull",
	opAddToSet:    "$addToSet",
	opPop:         "$pop",
	opCurrentDate: "$currentDate",
}

func (o operator) String() string { return operatorNames[o] }

// UsesTime says that the result depends on the time that Apply is given.
func (u *Update) UsesTime() bool {
	return slices.ContainsFunc(u.actions, func(a action) bool { return a.op == opCurrentDate })
}

// Paths lists the paths that the update may change, in order.
func (u *Update) Paths() []string {
	paths := make([]string, len(u.actions))
	for i := range u.actions {
		paths[i] = string(u.actions[i].path)
	}
	return paths
}

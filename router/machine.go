package router

import (
	"errors"

	"github.com/impossibledb/idb/client/wire"
	"github.com/impossibledb/idb/fsm"
	"github.com/impossibledb/idb/fsm/update"
)

// machineError words what a machine refused; nil if it was not a machine.
func (r *Router) machineError(err error, s subject) *wire.Error {
	var refusal *fsm.Error
	if !errors.As(err, &refusal) {
		return nil
	}
	return r.word(&wire.Error{Code: refusal.Code, Version: refusal.Version, Epoch: uint64(refusal.Epoch)}, s, "")
}

// checkUpdate refuses operators that do not parse. They are parsed again where
// they are applied, by every replica; here it is for the answer's sake, before
// anything is logged.
func (r *Router) checkUpdate(body []byte, s subject) *wire.Error {
	// What is larger than a document, operators and paths aside, makes no
	// document that may be stored.
	if most := r.opts.Limits.MaxBytes + 64<<10; len(body) > most {
		return refuse(wire.CodeDocumentTooLarge, "%s: the update has %d bytes, at most %d are allowed", s, len(body), most)
	}
	if _, err := update.Parse(body); err != nil {
		code := wire.CodeBadUpdate
		var wrong *update.Error
		if errors.As(err, &wrong) {
			code = wrong.Code
		}
		return refuse(code, "%s: %v", s, err)
	}
	return nil
}

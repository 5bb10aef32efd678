// Package mutant breaks the product on purpose.
//
// A test suite is worth what it catches. Each Name is one mistake that
// somebody could make, as a line in the product's own code:
//
//	if mutant.On(mutant.VersionUnchecked) { ... }
//
// Without the build tag mutants, On is the constant false and the line is
// compiled away. With it, the variable IDB_TEST_MUTANT names the one mistake
// that this process makes:
//
//	go build -tags mutants -o bin/idb-mutants ./cmd/idb
//	IDB_TEST_MUTANT=read-unconfirmed bin/idb-mutants dev
//
// cmd/internal/mutants has the table of what catches which, and `make mutants`
// proves it. A new mistake is a Name here, a line at its place and a row there.
package mutant

import (
	"math/rand/v2"
	"time"
)

// Name is one mistake.
type Name string

// What clients do.
const (
	RetryUnderNewID  Name = "retry-under-new-id"  // a write is sent again under another request ID
	UnknownIsRefused Name = "unknown-is-refused"  // an unknown outcome is reported as "not done"
	CursorSkips      Name = "cursor-skips"        // a page's cursor is one document too far
	ScanTimesDiffer  Name = "scan-times-differ"   // a scan reads each group at a time of its own
	RefusalForgotten Name = "refusal-not-decided" // a node answers "not done" to what it may have done
	LockTrusted      Name = "lock-trusted"        // what a transaction has locked is taken to stay as it is
)

// What leaders do.
const (
	AckBeforeCommit     Name = "ack-before-commit"    // a write is answered when it is proposed
	NoBarrier           Name = "no-barrier"           // a new leader serves before it has applied what it inherited
	ReadUnconfirmed     Name = "read-unconfirmed"     // a read asks nobody whether this node still leads
	LearnersConfirm     Name = "learners-confirm"     // members without a vote count as voters of a read
	OldAnswersConfirm   Name = "old-answers-confirm"  // a read joins a round that began before it
	PromiseForgotten    Name = "promise-forgotten"    // a new leader does not look at the ceiling
	PromiseUnkept       Name = "promise-unkept"       // a leader assigns timestamps below what it has promised
	PromiseTooEarly     Name = "promise-too-early"    // a promise does not wait for what was assigned below it
	PromiseBesideLost   Name = "promise-beside-lost"  // a leader promises although an entry was lost
	PrepareUnawaited    Name = "prepare-unawaited"    // a promise does not wait for an intent that is on its way to what is read
	DurabilityUnawaited Name = "durability-unawaited" // a follower's answer counts before the leader's own disk has the entry
	VoidApplied         Name = "void-applied"         // an entry of another term is applied
	OfferedAgain        Name = "offered-again"        // leadership is offered again to a member that does not answer
	ResolvedElsewhere   Name = "resolved-elsewhere"   // a read goes on though another leader has resolved what it met
)

// What cuts rest on.
const (
	CutUnheld        Name = "cut-unheld"         // a hold keeps nothing back
	CutUnbroken      Name = "cut-unbroken"       // a promise is given though its hold was broken, or another leads
	CutAskedOnce     Name = "cut-asked-once"     // homes are not asked again after a commit was found
	CutRaisesNothing Name = "cut-raises-nothing" // an ask does not raise home's clock
)

// What a node does with its disk and its peers.
const (
	LogUnsynced       Name = "log-unsynced"       // the log is not synced
	LogCutTooFar      Name = "log-cut-too-far"    // the log is cut above what is on disk of the state
	MarkerUnflushed   Name = "marker-unflushed"   // a snapshot's marker is written without a flush
	InstallUnfinished Name = "install-unfinished" // an install that a crash interrupted is forgotten
	HeartbeatFastPath Name = "heartbeat-fast"     // heartbeats overtake the main loop, as the library has it
)

// What the machines do.
const (
	AppliedApart        Name = "applied-apart"         // the applied index is committed after the effect
	AppliedAgain        Name = "applied-again"         // entries below the applied index are run again
	ApplyReadsClock     Name = "apply-reads-clock"     // Apply takes the time from this node
	ApplyRandom         Name = "apply-random"          // Apply is not deterministic, and digests are not compared
	RetryRuns           Name = "retry-runs"            // a request ID that was seen is run again
	RequestsLost        Name = "requests-lost"         // a snapshot comes without the request IDs
	TailUnread          Name = "tail-unread"           // what the last entries left is not read at the start
	SealedUnread        Name = "sealed-unread"         // answers that were sealed are not looked for
	TailDeletesUnread   Name = "tail-deletes-unread"   // what the last entries deleted of transactions is there again after the start
	SealForgetsPrepared Name = "seal-forgets-prepared" // a seal leaves out what is prepared
	SealForgetsEnds     Name = "seal-forgets-ends"     // a seal leaves out how transactions have ended
	TailDroppedEarly    Name = "tail-dropped-early"    // the tail is emptied before what it was sealed into is readable
	TailUntold          Name = "tail-untold"           // readers are not told what the last entries have decided
	ExpiredRuns         Name = "expired-runs"          // a request ID below the horizon is run
	HorizonAhead        Name = "horizon-ahead"         // request IDs are forgotten up to a time that nothing was written at
	VersionUnchecked    Name = "version-unchecked"     // a write's condition on the version is ignored
	EpochUnchecked      Name = "epoch-unchecked"       // a partition that is not owned is written
	DeleteCounted       Name = "delete-counted"        // a deleted document still counts
	CollectAboveLine    Name = "collect-above-line"    // garbage collection does not look at the horizon
	HorizonUnread       Name = "horizon-unread"        // history below the horizon is answered as it is
	NewestUndated       Name = "newest-undated"        // a read at a time takes the newest version that is remembered
	NewestOutlives      Name = "newest-outlives"       // what is remembered of documents outlives an installed snapshot
	DropLeavesRows      Name = "drop-leaves-rows"      // a dropped collection's documents stay on disk
	NameReused          Name = "name-reused"           // a name is free before the drop is done everywhere
	CollectionIDAgain   Name = "collection-id-again"   // the ID of a dropped collection is given again
	CatalogRetryRuns    Name = "catalog-retry-runs"    // a request to the catalog that was answered is run again
)

// What routers do with unique values.
const (
	UniqueUntaken    Name = "unique-untaken"     // a document is written without the entry of its value
	UniqueKept       Name = "unique-kept"        // an entry is not given up with its value
	UniqueGivenEarly Name = "unique-given-early" // an entry is given up before the write is decided
)

// What transactions do. The rules are txn/DESIGN.md's.
const (
	DecidedEarly       Name = "decided-early"       // home is asked to decide with the first yes
	CommitTooLow       Name = "commit-too-low"      // the commit timestamp is not the maximum of all votes
	ResolvedEarly      Name = "resolved-early"      // participants are told "committed" before home has decided
	ForgottenEarly     Name = "forgotten-early"     // home's record is dropped with the first confirmation
	AbortedAlone       Name = "aborted-alone"       // recovery tells a participant "aborted" without asking home
	ClockUnraised      Name = "clock-unraised"      // a participant's clock is not raised to C before the locks go
	LocksUnlooked      Name = "locks-unlooked"      // what another has prepared does not keep a write away
	ReadsUnlocked      Name = "reads-unlocked"      // what was read is not locked until the decision
	ReadsUnvalidated   Name = "reads-unvalidated"   // a document that was read may have changed
	AbsenceUnvalidated Name = "absence-unvalidated" // what was not there may have come
	RangesUnvalidated  Name = "ranges-unvalidated"  // a range that was read may have changed
	AbortUnwritten     Name = "abort-unwritten"     // home says "aborted" without a tombstone
	LatePrepare        Name = "late-prepare"        // a Prepare that comes after Done prepares again
	CommitUnrecorded   Name = "commit-unrecorded"   // the request ID is not recorded with the decision
	IntentsUnread      Name = "intents-unread"      // readers pass over what is about to be written
	AskRaisesNothing   Name = "ask-raises-nothing"  // an ask does not keep the commit above the time read at
	NewestUnverified   Name = "newest-unverified"   // a read-only transaction is not verified
	StageUncounted     Name = "stage-uncounted"     // committed when all have prepared but home
	StagedAborted      Name = "staged-aborted"      // home aborts what it has staged without asking the participants
	DenyUnwritten      Name = "deny-unwritten"      // a participant that has not prepared says it never will, and may
	PollRaisesNothing  Name = "poll-raises-nothing" // a participant that is asked does not prepare above the time read at
)

// Names are all of them.
func Names() []Name {
	return []Name{
		RetryUnderNewID, UnknownIsRefused, CursorSkips, ScanTimesDiffer, RefusalForgotten, LockTrusted,
		AckBeforeCommit, NoBarrier, ReadUnconfirmed, LearnersConfirm, OldAnswersConfirm,
		PromiseForgotten, PromiseUnkept, PromiseTooEarly, PromiseBesideLost, PrepareUnawaited, VoidApplied, ResolvedElsewhere, DurabilityUnawaited, OfferedAgain,
		CutUnheld, CutUnbroken, CutAskedOnce, CutRaisesNothing,
		LogUnsynced, LogCutTooFar, MarkerUnflushed, InstallUnfinished, HeartbeatFastPath,
		AppliedApart, AppliedAgain, ApplyReadsClock, ApplyRandom, RetryRuns, RequestsLost, TailUnread, SealedUnread, TailDeletesUnread, SealForgetsPrepared, SealForgetsEnds, TailDroppedEarly, TailUntold, ExpiredRuns,
		HorizonAhead, VersionUnchecked, EpochUnchecked, DeleteCounted, CollectAboveLine, HorizonUnread, NewestUndated, NewestOutlives, DropLeavesRows,
		NameReused, CollectionIDAgain, CatalogRetryRuns,
		UniqueUntaken, UniqueKept, UniqueGivenEarly,
		DecidedEarly, CommitTooLow, ResolvedEarly, ForgottenEarly, AbortedAlone, ClockUnraised, LocksUnlooked,
		ReadsUnlocked, ReadsUnvalidated, AbsenceUnvalidated, RangesUnvalidated, AbortUnwritten, LatePrepare,
		CommitUnrecorded, IntentsUnread, AskRaisesNothing, NewestUnverified,
		StageUncounted, StagedAborted, DenyUnwritten, PollRaisesNothing,
	}
}

// Millis is the wall clock, for mistakes in packages that must not know it.
func Millis() int64 { return time.Now().UnixMilli() }

// Once is true one time in n, by chance.
func Once(n int) bool { return rand.IntN(n) == 0 }

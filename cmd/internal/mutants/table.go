package main

import "github.com/impossibledb/idb/fsm/mutant"

// row says who catches a mutant, and how soon.
type row struct {
	mutant mutant.Name
	what   string // the mistake, for people
	by     catcher
	// says is what the catcher prints, as a regular expression: a failure for
	// another reason catches nothing.
	says string
	// within is the budget: seeds of a ring that counts them, else repetitions.
	within int
}

// catcher is a test of the product, and how it is run.
type catcher struct {
	ring    string // rules, unit, crash, cluster, simulator, processes
	pkg     string // folder
	run     string // -run
	seeds   string // the flag that takes the number of seeds; empty: the test is repeated
	args    []string
	seconds int // for one run, without a mutant
}

// The catchers.
var (
	ruleShard     = catcher{ring: "rules", pkg: "cmd/internal/rules", run: "^TestShard$", seeds: "-rules.seeds", seconds: 60}
	rulePlacement = catcher{ring: "rules", pkg: "cmd/internal/rules", run: "^TestPlacement$", seeds: "-rules.seeds", seconds: 60}

	cutScripts = catcher{ring: "rules", pkg: "cmd/internal/rules", run: "^TestCutScripts$", seconds: 30}

	ruleTxns = catcher{ring: "rules", pkg: "cmd/internal/rules", run: "^TestTransactions$", seeds: "-rules.seeds", seconds: 60}

	staged       = catcher{ring: "unit", pkg: "fsm", run: "^TestStagedAborted$", seconds: 10}
	coordinator  = catcher{ring: "unit", pkg: "txn", run: "^TestCommit$", seconds: 10}
	recovery     = catcher{ring: "unit", pkg: "txn", run: "^TestRecovery$", seconds: 10}
	endsSurvive  = catcher{ring: "unit", pkg: "fsm", run: "^TestEndsSurvive$", seconds: 30}
	tailShown    = catcher{ring: "unit", pkg: "fsm", run: "^TestTailShownUntilSealed$", seconds: 10}
	survive      = catcher{ring: "unit", pkg: "fsm", run: "^TestTransactionsSurvive$", seconds: 30}
	oneBatch     = catcher{ring: "unit", pkg: "fsm", run: "^TestEffectAndIndexAreOne$", seconds: 30}
	hostCrash    = catcher{ring: "crash", pkg: "shardgroup", run: "^TestHostCrash$", args: []string{"-test.short"}, seconds: 60}
	installCrash = catcher{ring: "crash", pkg: "shardgroup", run: "^TestSnapshotInstallCrash$", seconds: 60}
	oldAnswers   = catcher{ring: "cluster", pkg: "shardgroup", run: "^TestReadIgnoresOldAnswers$", seconds: 30}
	learners     = catcher{ring: "cluster", pkg: "shardgroup", run: "^TestReadIgnoresLearners$", seconds: 30}
	heartbeat    = catcher{ring: "cluster", pkg: "shardgroup/transport", run: "^TestHeartbeatCannotDiverge$", seconds: 60}
	scanPages    = catcher{ring: "unit", pkg: "router", run: "^TestScanPages$", seconds: 30}
	scanSnapshot = catcher{ring: "unit", pkg: "router", run: "^TestScanSnapshot$", seconds: 30}
	clientFaults = catcher{ring: "unit", pkg: "client", run: "^TestExactlyOnce$", seconds: 60}
	simulator    = catcher{ring: "simulator", pkg: "cmd/internal/sim", run: "^TestSeeds$", seeds: "-seeds", seconds: 60}
	inherited    = catcher{ring: "cluster", pkg: "shardgroup", run: "^TestNewLeaderKnowsWhatItInherited$", seconds: 30}
	deposed      = catcher{ring: "processes", pkg: "cmd/internal/chaos", run: "^TestDeposedLeader$", seconds: 60}
	uniqueRules  = catcher{ring: "cluster", pkg: "cmd/internal/node", run: "^TestUnique$", seconds: 60}
	intents      = catcher{ring: "cluster", pkg: "shardgroup", run: "^TestIntentResolvedElsewhere$", seconds: 30}
	simUnique    = catcher{ring: "simulator", pkg: "cmd/internal/sim", run: "^TestSeeds$", seeds: "-seeds", args: []string{"-load", "unique"}, seconds: 60}
	writesAhead  = catcher{ring: "cluster", pkg: "shardgroup", run: "^TestLeaderWritesAhead$", seconds: 30}
	lostLocks    = catcher{ring: "cluster", pkg: "cmd/internal/node", run: "^TestLostLockShowsOneInstant$", seconds: 60}
	offers       = catcher{ring: "cluster", pkg: "shardgroup", run: "^TestTransferToNobody$", seconds: 60}
	besideWriter = catcher{ring: "unit", pkg: "fsm", run: "^TestReadersBesideWriter$", seconds: 60}
	outcomes     = catcher{ring: "unit", pkg: "shardgroup", run: "^TestProposalErrors$", seconds: 30}
)

// table is the proof. A row is one mistake; a mistake without a row fails.
var table = []row{
	{mutant.RetryUnderNewID, "a client sends a write again under another request ID", clientFaults, `acknowledged and found done are`, 3},
	{mutant.UnknownIsRefused, "a client reports an unknown outcome as not done", clientFaults, `said not to be done, but it was`, 3},
	{mutant.RefusalForgotten, "a node answers not done to what it may have done", outcomes, `it may have been done`, 3},
	{mutant.CursorSkips, "a cursor is one document too far", scanPages, `cursors led past`, 3},
	{mutant.ScanTimesDiffer, "a scan reads each group at a time of its own", scanSnapshot, `in a scan that began before`, 3},

	{mutant.PromiseForgotten, "a new leader does not look at the ceiling", ruleShard, `broken promise`, 5000},
	{mutant.PromiseUnkept, "a leader assigns timestamps below its promise", ruleShard, `broken promise`, 5000},
	{mutant.PromiseTooEarly, "a promise does not wait for what is below it", ruleShard, `broken promise`, 5000},
	{mutant.PromiseBesideLost, "a leader promises although an entry was lost", ruleShard, `broken promise`, 10000},
	{mutant.PrepareUnawaited, "a promise does not wait for an intent on its way to what is read", ruleTxns, `broken promise|no order explains`, 5000},
	{mutant.VoidApplied, "an entry of another term is applied", ruleShard, `void: proposed in another term`, 5000},

	{mutant.CutUnheld, "a hold keeps nothing back", cutScripts, `no order: .*causal reverse`, 3},
	{mutant.CutUnbroken, "a promise is given though its hold was broken", cutScripts, `no order: .*causal reverse`, 3},
	{mutant.CutAskedOnce, "homes are asked once, whatever is found committed", cutScripts, `no order: .*causal reverse`, 3},
	{mutant.CutRaisesNothing, "an ask does not raise home's clock", cutScripts, `no order: .*causal reverse`, 3},

	{mutant.AppliedAgain, "entries below the applied index run again", ruleShard, `ran again`, 1000},
	{mutant.ApplyReadsClock, "Apply takes the time from this node", ruleShard, `the model says`, 1000},
	{mutant.ApplyRandom, "Apply is random and digests are not compared", ruleShard, `the model says|different rows`, 1000},
	{mutant.RetryRuns, "a request ID that was seen runs again", ruleShard, `\(again\)|took effect`, 1000},
	{mutant.RequestsLost, "a snapshot comes without the request IDs", ruleShard, `different rows|the model says|answers are stored`, 5000},
	{mutant.TailUnread, "what the last entries left is not read at the start", ruleShard, `different rows|the model says|answers are stored|counts \d+ documents`, 5000},
	{mutant.SealedUnread, "answers that were sealed are not looked for", ruleShard, `the model says|took effect|\(again\)`, 5000},
	{mutant.TailDeletesUnread, "a record that a tail deleted is there again after the start", survive, `memory is|answered`, 3},
	{mutant.SealForgetsPrepared, "a seal leaves out what is prepared", survive, `records in rows and|memory is|answered`, 3},
	{mutant.SealForgetsEnds, "a seal leaves out how transactions have ended", endsSurvive, `is undecided at|the traces of|asked in the log`, 3},
	{mutant.TailDroppedEarly, "the tail is emptied before what it was sealed into is readable", tailShown, `when it has ended, transaction 1 is undecided`, 3},
	{mutant.TailUntold, "readers are not told what the last entries have decided", endsSurvive, `the decision of .* is undecided`, 3},
	{mutant.ExpiredRuns, "a request ID below the horizon runs", ruleShard, `the model says refused with code 601`, 5000},
	{mutant.HorizonAhead, "request IDs are forgotten up to a time that no clock has reached", ruleShard, `ahead of the clock`, 5000},
	{mutant.VersionUnchecked, "the condition on the version is ignored", ruleShard, `the model says refused with code 300`, 1000},
	{mutant.EpochUnchecked, "a partition that is not owned is written", ruleShard, `the model says refused with code 501`, 1000},
	{mutant.DeleteCounted, "a deleted document still counts", ruleShard, `counts \d+ documents`, 1000},
	{mutant.CollectAboveLine, "garbage collection does not look at the horizon", ruleShard, `lost:|stored is|broken promise|the model`, 5000},
	{mutant.HorizonUnread, "history below the horizon is answered as it is", ruleShard, `broken promise`, 5000},
	{mutant.NewestUndated, "a read at a time takes the newest version remembered", besideWriter, `written at`, 3},
	{mutant.NewestOutlives, "what is remembered outlives an installed snapshot", besideWriter, `was seen, then b of`, 3},
	{mutant.DropLeavesRows, "a dropped collection's documents stay", ruleShard, `stored`, 1000},
	{mutant.NameReused, "a name is free before its drop is done", rulePlacement, `the model says`, 1000},
	{mutant.CollectionIDAgain, "the ID of a dropped collection is given again", rulePlacement, `the model says`, 1000},
	{mutant.CatalogRetryRuns, "a request to the catalog that was answered runs again", rulePlacement, `the model says`, 1000},

	{mutant.UniqueUntaken, "a unique entry is not taken", uniqueRules, `want a duplicate value, got <nil>`, 3},
	{mutant.UniqueKept, "a unique entry is not given up", uniqueRules, `is held by|has no entry`, 3},
	{mutant.UniqueGivenEarly, "a unique entry is given up before the decision", simUnique, `duplicate value`, 20},

	{mutant.DecidedEarly, "home decides with the first yes", ruleTxns, `writes took effect|nobody lets go of`, 500},
	{mutant.CommitTooLow, "a commit timestamp is not the maximum of all votes", ruleTxns, `nobody lets go of|applies|below`, 500},
	{mutant.ResolvedEarly, "participants are resolved before home has decided", ruleTxns, `writes took effect`, 500},
	{mutant.ForgottenEarly, "home's record is dropped with the first confirmation", coordinator, `FAIL`, 3},
	{mutant.AbortedAlone, "recovery aborts a participant without asking home", recovery, `sends \[resolve .*want \[abort-if-undecided`, 3},
	{mutant.ClockUnraised, "a clock is not raised before the locks go", ruleTxns, `no order explains|time went back|applies`, 2000},
	{mutant.LocksUnlooked, "what is prepared keeps no write away", ruleTxns, `that its lock should have kept|two writes are both version`, 500},
	{mutant.ReadsUnlocked, "reads are not locked until the decision", ruleTxns, `no order explains`, 2000},
	{mutant.ReadsUnvalidated, "what was read is not validated", ruleTxns, `no order explains`, 500},
	{mutant.AbsenceUnvalidated, "absence is not validated", ruleTxns, `no order explains`, 500},
	{mutant.RangesUnvalidated, "ranges are not validated", ruleTxns, `no order explains`, 1000},
	{mutant.AbortUnwritten, "an abort without a tombstone", ruleTxns, `writes took effect|refused .* and took effect`, 1000},
	{mutant.LatePrepare, "a late Prepare is accepted after Done", ruleTxns, `nobody lets go of`, 500},
	{mutant.CommitUnrecorded, "the request ID is not recorded with the decision", ruleTxns, `was written as version|took effect`, 500},
	{mutant.IntentsUnread, "readers pass over intents", ruleTxns, `broken promise|no order explains`, 500},
	{mutant.AskRaisesNothing, "an ask does not keep the commit above the read", ruleTxns, `broken promise|no order explains`, 8000},
	{mutant.NewestUnverified, "a read-only transaction is not verified", ruleTxns, `no order explains`, 500},
	{mutant.StageUncounted, "committed when all have prepared but home", ruleTxns, `writes took effect|nobody lets go of|is lost`, 500},
	{mutant.StagedAborted, "home aborts what it has staged without asking the participants", ruleTxns, `is lost|writes took effect`, 500},
	{mutant.DenyUnwritten, "a participant's no to who asks is not written down", staged, `a late prepare: prepared`, 3},
	{mutant.PollRaisesNothing, "an ask of a participant does not keep its vote above the read", staged, `the clock was not raised`, 3},

	{mutant.AppliedApart, "the applied index is committed after the effect", oneBatch, `two batches`, 3},
	{mutant.MarkerUnflushed, "a snapshot's marker is written without a flush", hostCrash, `crash \d+: .*below its snapshot`, 3},
	{mutant.LogCutTooFar, "the log is cut above what is on disk of the state", hostCrash, `crash \d+: .*entries are missing`, 3},
	{mutant.LogUnsynced, "the log is not synced", hostCrash, `the disk lost or changed what was synced|increments were acknowledged`, 3},
	{mutant.InstallUnfinished, "an interrupted install is forgotten", installCrash, `the recorded install was not completed`, 3},
	{mutant.HeartbeatFastPath, "heartbeats overtake the main loop", heartbeat, `different entries at the same index`, 3},

	{mutant.AckBeforeCommit, "a write is answered when it is proposed", simulator, `lost write`, 5},
	{mutant.NoBarrier, "a new leader serves before it has applied what it inherited", inherited, `stale read`, 10},
	{mutant.ReadUnconfirmed, "a read asks nobody whether this node still leads", deposed, `stale`, 3},
	{mutant.LearnersConfirm, "members without a vote confirm reads", learners, `confirmed a read with learners`, 3},
	{mutant.ResolvedElsewhere, "a read goes on though another leader has resolved what it met", intents, `a deposed leader cleared a read`, 3},
	{mutant.DurabilityUnawaited, "a follower's answer counts before the leader's own disk has the entry", writesAhead, `has committed entry|was answered`, 3},
	{mutant.OfferedAgain, "leadership is offered again to a member that does not answer", offers, `gave up waiting for a leader|n1 to lead|which leads again`, 3},
	{mutant.LockTrusted, "what a transaction has locked is taken to stay as it is", lostLocks, `which has changed since`, 3},
	{mutant.OldAnswersConfirm, "a read joins a round that began before it", oldAnswers, `confirmed a read`, 3},
}

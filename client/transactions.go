package client

import (
	"context"

	"github.com/impossibledb/idb/client/wire"
)

// Transactions lists the transactions of all clients that hold something or
// wait, and who waits for whom. It is a look and not a read, and answers also
// while groups have no leader: Missing says which.
func (db *DB) Transactions(ctx context.Context) (*TransactionList, error) {
	var list TransactionList
	if err := db.control(ctx, "list transactions", wire.KindTxnList, &wire.TxnListRequest{}, &list); err != nil {
		return nil, err
	}
	return &list, nil
}

// FindTransaction is what is known of one transaction, by the ID that errors
// name (RequestID.String): what it holds and who waits for it, or what became of
// it, which is remembered for some minutes at least. The list is empty if nobody
// knows it.
func (db *DB) FindTransaction(ctx context.Context, id string) (*TransactionList, error) {
	time, random, err := wire.ParseIDPrefix(id)
	if err != nil {
		return nil, refused(wire.CodeBadRequest, "find transaction", "", "", "%v", err)
	}
	var list TransactionList
	if err := db.control(ctx, "find transaction", wire.KindTxnList, &wire.TxnListRequest{Time: time, Random: random}, &list); err != nil {
		return nil, err
	}
	return &list, nil
}

// AbortTransaction aborts a transaction that is not decided, and lets go of what
// it holds. The answer says what became of it: it may have been committed
// before. One that has not begun to commit cannot be aborted, only its locks are
// let go. It may be repeated.
func (db *DB) AbortTransaction(ctx context.Context, id string) (*AbortReply, error) {
	time, random, err := wire.ParseIDPrefix(id)
	if err != nil {
		return nil, refused(wire.CodeBadRequest, "abort transaction", "", "", "%v", err)
	}
	var reply AbortReply
	if err := db.control(ctx, "abort transaction", wire.KindTxnAbort, &wire.TxnAbortRequest{Time: time, Random: random}, &reply); err != nil {
		return nil, err
	}
	return &reply, nil
}

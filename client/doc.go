// Package client is the Go client of ImpossibleDB.
//
// It owns the API: collections, options, results, errors, bulk writes and
// iterators. Which node answers, and what to do when none does, is package
// route's.
//
//	db, err := client.Dial(ctx, "idb://127.0.0.1:7400,127.0.0.1:7410")
//	if err != nil { … }
//	defer db.Close()
//
//	users := db.Collection("users")
//	_, err = users.Put(ctx, "u17", User{Name: "Ada"})
//	d, err := users.Get(ctx, "u17")
//	var u User
//	err = d.Decode(&u)
//
//	for d, err := range users.Scan(ctx, client.Prefix("u")) { … }
//
// # Guarantees
//
// Reads are linearizable. A write takes effect at most once, however often the
// client had to send it: it has one request ID, and the servers answer a repeat
// with the first answer. When the context ends before an answer came, the error
// tells which of two things is true: nothing was done (ErrUnavailable), or the
// write may have happened (ErrOutcomeUnknown). The second is never reported as
// the first; RetryOf sends the same write again and learns what became of it.
//
// # Life of a call
//
// Encode the document once, take a request ID, then route.Cluster.Do: find the
// leader, send, and on a refusal or a lost connection send again, with growing
// pauses, until there is an answer or the context ends. A context without a
// deadline gets the default timeout (30 s; see WithTimeout).
//
// A DB and its Collections are safe for any number of goroutines. Requests of
// all of them share a few connections.
package client

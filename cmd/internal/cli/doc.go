// Package cli is the idb command line: commands, flags, settings, help, shell
// completion, exit codes, tables, import and export.
//
// It owns what a person types and sees. It does not know sockets, frames or
// Raft: data goes through package client, nodes through package node.
//
// Life of a command: Main, arrange (flags to the front, words checked against
// the tree), urfave/cli's parser, the action, one error mapped to an exit code.
package cli

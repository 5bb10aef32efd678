//go:build !unix

package wire

// Elsewhere package net does all the reading and writing.
const canTry = false

func readNow(uintptr, []byte) (int, error)  { return 0, errAgain }
func writeNow(uintptr, []byte) (int, error) { return 0, errAgain }

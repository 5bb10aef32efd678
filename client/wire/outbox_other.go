//go:build !unix

package wire

// Elsewhere every frame is written by the writer goroutine.
const canTryWrite = false

func writeNow(uintptr, []byte) (int, error) { return 0, nil }

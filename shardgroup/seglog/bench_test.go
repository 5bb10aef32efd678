package seglog

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Opening a log of 256 MiB, which is what eight groups hold that have just
// been loaded with 100,000 documents, and more.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	l, err := Open(vfs.Default, dir, Options{})
	if err != nil {
		b.Fatal(err)
	}
	const batches, entry = 4096, 8 << 10
	for i := range uint64(batches) {
		p := make(payloads, 8)
		for k := range p {
			p[k] = make([]byte, entry)
		}
		if err := l.Append(uint32(i%8), 1+i/8*8, p); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(batches * 8 * entry)
	for b.Loop() {
		l, err := Open(vfs.Default, dir, Options{Existing: true})
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

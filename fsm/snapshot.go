package fsm

import (
	"errors"
	"fmt"

	"github.com/impossibledb/idb/fsm/mutant"
	"github.com/impossibledb/idb/fsm/mvcc"
)

// Export is the group's state at one applied index, ready to be streamed to
// another replica: Applied, Size (exact), WriteTo, Close.
type Export = mvcc.Export

// Importer takes the stream on the other side: it is an io.Writer, then
// Finish, or Abort.
type Importer = mvcc.Importer

// Imported is a stream that arrived whole, for Install.
type Imported = mvcc.Imported

// Snapshot pins the state as it is. Applying goes on meanwhile. The export is
// closed soon: it keeps removed data on disk.
func (m *Machine) Snapshot() (*Export, error) {
	if err := m.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHalted, err)
	}
	m.swap.RLock()
	x, err := m.engine.NewExport(m.group)
	m.swap.RUnlock()
	if err != nil {
		return nil, err
	}
	at, err := readMeta(x, m.group)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("snapshot of %s: %w", m.group, err), x.Close())
	}
	x.Applied = at.applied
	return x, nil
}

// NewImporter starts an import for this group in dir, which it empties.
func (m *Machine) NewImporter(dir string) (*Importer, error) {
	return m.engine.NewImporter(dir, m.group)
}

// Install makes an import the group's state, in one step that is durable when
// it returns, and removes the import. An import that is not ahead of what is
// applied is only removed: applying came first, or this is the second time.
//
// It may be called again after a crash at any point: OpenImported finds what
// was not finished.
func (m *Machine) Install(i *Imported) error {
	m.applyMu.Lock()
	defer m.applyMu.Unlock()
	if i.Group != m.group {
		return fmt.Errorf("installing in %s: the snapshot is of %s", m.group, i.Group)
	}
	if err := m.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrHalted, err)
	}
	if i.Applied > m.Applied() {
		if err := m.replace(i); err != nil {
			return m.halt(err)
		}
		m.log.Info("snapshot installed", "applied", i.Applied)
	}
	return i.Remove()
}

// replace takes the import's rows for the machine's.
func (m *Machine) replace(i *Imported) error {
	m.swap.Lock()
	defer m.swap.Unlock()
	if err := m.engine.Install(i); err != nil {
		return err
	}
	if err := m.load(); err != nil {
		return fmt.Errorf("after installing a snapshot of %s: %w", m.group, err)
	}
	if mutant.On(mutant.RequestsLost) {
		m.tail.answers, m.tail.count = nil, 0
		clear(m.tail.table)
		m.shown.answers = 0
	}
	if m.Applied() != i.Applied {
		return fmt.Errorf("the snapshot of %s says it is at %d, and is at %d: %w", m.group, i.Applied, m.Applied(), ErrDamaged)
	}
	return nil
}

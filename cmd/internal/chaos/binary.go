package chaos

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
)

// Build compiles the idb command into dir and returns its path.
func Build(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "idb")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/impossibledb/idb/cmd/idb")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building idb: %w\n%s", err, out)
	}
	return path, nil
}

//go:build !unix

package atomicfile

import "os"

// restrict does nothing: outside Unix the mode does not say who has access, and
// a new file inherits its permissions from the directory.
func restrict(*os.File) error { return nil }

// SyncDir does nothing: directories cannot be synced here.
func SyncDir(string) error { return nil }

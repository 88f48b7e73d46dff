package atomicfile

import "golang.org/x/sys/unix"

// renameExclusive renames from to to, and fails when to exists.
func renameExclusive(from, to string) error {
	return unix.RenamexNp(from, to, unix.RENAME_EXCL)
}

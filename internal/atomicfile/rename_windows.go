package atomicfile

import "syscall"

// renameExclusive renames from to to, and fails when to exists. os.Rename
// would replace it.
func renameExclusive(from, to string) error {
	f, err := syscall.UTF16PtrFromString(from)
	if err != nil {
		return err
	}
	t, err := syscall.UTF16PtrFromString(to)
	if err != nil {
		return err
	}
	return syscall.MoveFile(f, t)
}

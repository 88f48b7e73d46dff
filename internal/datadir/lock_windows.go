package datadir

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// lockDir opens a file of the directory without sharing it, which locks it on
// Windows.
func lockDir(path string) (io.Closer, error) {
	path = filepath.Join(path, lockName)
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, 0, nil, syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if errors.Is(err, syscall.Errno(32)) { // ERROR_SHARING_VIOLATION
		return nil, ErrLocked
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(h), path), nil
}

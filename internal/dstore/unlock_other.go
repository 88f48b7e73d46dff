//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package dstore

import "os"

// closeMapped closes a file that stays mapped.
func closeMapped(f *os.File) error { return f.Close() }

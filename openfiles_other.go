//go:build !unix

package p2pnode

// openFiles: there is no such limit, or no way to ask for it.
func openFiles() (uint64, bool) { return 0, false }

//go:build !unix

package p2pnode

// openFiles reports that there is no such limit, or no way to read it.
func openFiles() (uint64, bool) { return 0, false }

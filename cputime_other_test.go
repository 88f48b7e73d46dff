//go:build !unix

package p2pnode

import "time"

// cpuTime returns 0: only Unix tells.
func cpuTime() time.Duration { return 0 }

package limits

import (
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/pbnjay/memory"
)

// Memory returns how many bytes of memory the process may use: those of the
// machine, or the limit of its control group, as in a container. It reads them
// once.
var Memory = sync.OnceValue(func() int64 {
	total := int64(min(memory.TotalMemory(), math.MaxInt64))
	if total == 0 { // unknown
		total = 1 << 30
	}
	own, _ := os.ReadFile("/proc/self/cgroup") // exists only on Linux
	return min(total, groupMemory(string(own), func(name string) string {
		text, _ := os.ReadFile(name) // most of them do not exist
		return string(text)
	}))
})

// groupMemory returns the smallest limit of a process's control groups, given the
// content of its /proc/self/cgroup and a function that reads files.
func groupMemory(own string, read func(name string) string) int64 {
	files := []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}
	for line := range strings.Lines(own) {
		// <number>:<controllers>:<path>, without controllers in version 2.
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(parts) < 3:
		case parts[1] == "":
			files = append(files, path.Join("/sys/fs/cgroup", parts[2], "memory.max"))
		case strings.Contains(","+parts[1]+",", ",memory,"):
			files = append(files, path.Join("/sys/fs/cgroup/memory", parts[2], "memory.limit_in_bytes"))
		}
	}
	least := int64(math.MaxInt64)
	for _, f := range files {
		if n, err := strconv.ParseInt(strings.TrimSpace(read(f)), 10, 64); err == nil && n > 0 { // "max" means no limit
			least = min(least, n)
		}
	}
	return least
}

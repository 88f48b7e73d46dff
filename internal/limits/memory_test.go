package limits

import (
	"math"
	"testing"
)

func TestMemoryIsThatOfTheControlGroup(t *testing.T) {
	for name, row := range map[string]struct {
		own   string
		files map[string]string
		want  int64
	}{
		"none":                   {"", nil, math.MaxInt64},
		"no limit":               {"0::/\n", map[string]string{"/sys/fs/cgroup/memory.max": "max\n"}, math.MaxInt64},
		"a container's":          {"0::/\n", map[string]string{"/sys/fs/cgroup/memory.max": "536870912\n"}, 512 << 20},
		"a service's":            {"0::/system.slice/x.service\n", map[string]string{"/sys/fs/cgroup/system.slice/x.service/memory.max": "1073741824\n"}, 1 << 30},
		"version 1":              {"5:cpu,memory:/docker/x\n1:name=systemd:/\n", map[string]string{"/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "268435456"}, 256 << 20},
		"version 1, a container": {"", map[string]string{"/sys/fs/cgroup/memory/memory.limit_in_bytes": "268435456"}, 256 << 20},
		"the least of two":       {"0::/x\n", map[string]string{"/sys/fs/cgroup/memory.max": "1000", "/sys/fs/cgroup/x/memory.max": "2000"}, 1000},
		"nonsense":               {"::\nx", map[string]string{"/sys/fs/cgroup/memory.max": "many"}, math.MaxInt64},
	} {
		if got := groupMemory(row.own, func(name string) string { return row.files[name] }); got != row.want {
			t.Errorf("%s: %d, want %d", name, got, row.want)
		}
	}
	if m := Memory(); m <= 0 || m == math.MaxInt64 {
		t.Errorf("this machine's memory is %d", m)
	}
}

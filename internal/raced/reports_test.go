package raced

import (
	"strings"
	"testing"
)

func TestReports(t *testing.T) {
	const upstream = "WARNING: DATA RACE\nWrite by goroutine 1:\n  a.(*relayFinder).cleanupDisconnectedPeers()\nPrevious read by goroutine 2:\n  a.(*relayFinder).maybeConnectToRelay()\n"
	const own = "WARNING: DATA RACE\nWrite by goroutine 1:\n  p2pnode.f()\nPrevious read by goroutine 2:\n  a.(*relayFinder).maybeConnectToRelay()\n"
	const line = "==================\n"
	if list := Reports("a log line\n" + line + upstream + line + "Found 1 data race(s)\n"); list != nil {
		t.Errorf("reported: %q", list)
	}
	list := Reports(line + upstream + line + "between\n" + line + own + line)
	if len(list) != 1 || !strings.Contains(list[0], "p2pnode.f()") || strings.Contains(list[0], "cleanup") {
		t.Errorf("reported: %q", list)
	}
}

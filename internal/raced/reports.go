package raced

import "strings"

// known are races of upstream that do no harm, by functions in both stacks.
var known = [][]string{
	// go-libp2p v0.51, p2p/host/autorelay: maybeConnectToRelay reads the length of
	// the map of relays with another lock than the one that guards it.
	{"(*relayFinder).maybeConnectToRelay()", "(*relayFinder).cleanupDisconnectedPeers()"},
}

// Reports returns the reports of the race detector in the output of a process, but for
// those of known races of upstream. Such a process is to run with exitcode=0 in GORACE.
func Reports(output string) (list []string) {
	const start, end = "WARNING: DATA RACE", "=================="
	for _, part := range strings.Split(output, start)[1:] {
		report, _, _ := strings.Cut(part, end)
		if !isKnown(report) {
			list = append(list, start+report)
		}
	}
	return list
}

func isKnown(report string) bool {
	for _, functions := range known {
		all := true
		for _, f := range functions {
			all = all && strings.Contains(report, f)
		}
		if all {
			return true
		}
	}
	return false
}

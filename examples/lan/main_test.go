package main

import (
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/clitest"
	"github.com/go-p2pnode/p2pnode/internal/needs"
)

func TestMain(m *testing.M) { clitest.Main(m, main) }

// Two programs meet by multicast DNS and hear each other.
func TestLAN(t *testing.T) {
	needs.Multicast(t)
	a, b := clitest.Start(t, run), clitest.Start(t, run)
	for _, p := range []*clitest.Program{a, b} {
		// Both print both greetings, each with the peer ID of who says it.
		p.Lines(2, ` says "hello from `)
	}
}

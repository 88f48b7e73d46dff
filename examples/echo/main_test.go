package main

import (
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m) }

func TestEcho(t *testing.T) {
	server := exampletest.Start(t, run, "-listen", "/ip4/127.0.0.1/tcp/0")
	addr := strings.Fields(server.Line("-connect"))[2]
	client := exampletest.Start(t, run, "-connect", addr, "-message", "over there")
	if err := client.Wait(); err != nil {
		t.Fatal(err)
	}
	client.Line("reply: over there")
	server.Line("echoed 10 bytes")
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	exampletest.Usage(t, run,
		[]string{"-connect", "-connect", "somewhere"},
		[]string{"WithListenAddrs", "-listen", "127.0.0.1:1"},
		[]string{"no flag", "leftover"})
}

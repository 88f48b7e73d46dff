package main

import (
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/clitest"
)

func TestMain(m *testing.M) { clitest.Main(m, main) }

func TestEcho(t *testing.T) {
	server := clitest.Start(t, run, "-listen", "/ip4/127.0.0.1/tcp/0")
	addr := strings.Fields(server.Line("-connect"))[2]
	for message, want := range map[string]string{
		"over there":                         `reply: "over there"`,
		"\x1b[31mred":                        `reply: "\x1b[31mred"`,
		"":                                   `reply: ""`,
		strings.Repeat("long", maxMessage/4): `reply: "` + strings.Repeat("long", maxMessage/4) + `"`,
	} {
		client := clitest.Start(t, run, "-connect", addr, "-message", message)
		if err := client.Wait(); err != nil {
			t.Fatal(err)
		}
		client.Line(want)
	}
	server.Line("echoed 10 bytes")
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
}

func TestNobodyThere(t *testing.T) {
	server := clitest.Start(t, run, "-listen", "/ip4/127.0.0.1/tcp/0")
	addr := strings.Fields(server.Line("-connect"))[2]
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	client := clitest.Start(t, run, "-connect", addr)
	if err := client.Wait(); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a server that has stopped: %v", err)
	}
}

func TestUsage(t *testing.T) {
	clitest.Usage(t, run,
		[]string{"-connect", "-connect", "somewhere"},
		[]string{"-message", "-connect", "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGRUVh8eN5mqvBWTSHSLqAeUHjTMpf1wmHUTBMsEvLZ6V", "-message", strings.Repeat("x", maxMessage+1)},
		[]string{"is not a flag", "leftover"},
		[]string{"-listen: ", "-listen", "127.0.0.1:1"})
}

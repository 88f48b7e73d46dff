package examples_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/clitest"
	"github.com/go-p2pnode/p2pnode/internal/natlab"
)

// One command runs the three roles in network namespaces, behind every router, and
// prints what becomes of each pair.
func TestRelayLab(t *testing.T) {
	relay := program(t, "relay")
	natlab.New(t) // or the test is skipped
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var out strings.Builder
	if err := relay.Run(ctx, []string{"lab", "-kinds", "port-restricted,symmetric"}, &out); err != nil {
		t.Fatalf("%v, after\n%s", err, out.String())
	}
	for _, want := range []string{
		"| port-restricted | private | ", "| symmetric | private | ",
		"\n| dialer, listener | port-restricted | symmetric |\n",
		"\n| port-restricted | direct over ", " | relayed |\n",
		"\n| symmetric | relayed | relayed |\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing", want)
		}
	}
	if t.Failed() {
		t.Log(out.String())
	}
}

func TestRelayLabUsage(t *testing.T) {
	clitest.Usage(t, program(t, "relay"), []string{"-kinds: ", "lab", "-kinds", "cone"})
}

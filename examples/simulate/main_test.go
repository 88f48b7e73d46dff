package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/cli"
	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/raced"
)

func TestMain(m *testing.M) {
	leaktest.Main(m)
}

// simulated runs the program and returns what it printed and its report.
func simulated(t *testing.T, args ...string) (string, report) {
	t.Helper()
	if raced.Detector {
		t.Skip("too many goroutines for the race detector: run it without -race")
	}
	file := filepath.Join(t.TempDir(), "report.json")
	var out strings.Builder
	if err := run(t.Context(), append(args, "-q", "-json", file), &out); err != nil {
		t.Fatalf("%v, after\n%s", err, out.String())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	return out.String(), r
}

func TestReportTableAndPlot(t *testing.T) {
	svg := filepath.Join(t.TempDir(), "plot.svg")
	text, r := simulated(t, "-n", "8, 16", "-latency", "25ms", "-messages", "3", "-lookups", "3", "-svg", svg)
	if len(r.Results) != 2 || r.Results[0].Nodes != 8 || r.Results[1].Nodes != 16 {
		t.Fatalf("%d results: %+v", len(r.Results), r.Results)
	}
	for _, x := range r.Results {
		if x.Found != 1 || x.Reached != 1 || x.Copies < 1 || x.GossipHops < 1 || x.Connections < 1 || x.Queries < 1 {
			t.Errorf("%+v", x)
		}
		// One hop takes 25 ms, and a message that gossip has to repeat a
		// heartbeat or two.
		if x.DeliverTime.Median < 25 || x.DeliverTime.Max > 4000 || math.Mod(x.DeliverTime.Median, 25) != 0 {
			t.Errorf("delivered in %+v", x.DeliverTime)
		}
	}
	if !strings.Contains(text, "find a provider") || strings.Count(text, "100.0%") != 4 {
		t.Errorf("table:\n%s", text)
	}
	f, err := os.Open(svg)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := 0
	for d := xml.NewDecoder(f); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the plot is not well formed: %v", err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "polyline" {
			lines++
		}
	}
	if lines != 8 {
		t.Errorf("the plot has %d lines, want 8", lines)
	}
}

func TestSameSeedSameReport(t *testing.T) {
	args := []string{"-n", "12", "-latency", "uniform:10ms-90ms", "-messages", "4", "-lookups", "4", "-seed", "7"}
	_, a := simulated(t, args...)
	_, b := simulated(t, args...)
	// What the seed decides is the same to the digit. The rest depends on
	// choices that gossipsub and the DHT take from the runtime: it is close.
	if a.Settings.Seed != b.Settings.Seed || a.Results[0].Nodes != b.Results[0].Nodes {
		t.Errorf("settings differ: %+v, %+v", a.Settings, b.Settings)
	}
	x, y := a.Results[0], b.Results[0]
	if x.Found != y.Found || x.Reached != y.Reached {
		t.Errorf("found %v and %v, reached %v and %v", x.Found, y.Found, x.Reached, y.Reached)
	}
	if d := math.Abs(x.DeliverTime.Median-y.DeliverTime.Median) / x.DeliverTime.Median; d > 0.5 {
		t.Errorf("median delivery in %v ms and %v ms", x.DeliverTime.Median, y.DeliverTime.Median)
	}
}

func TestLossAndChurn(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	_, r := simulated(t, "-n", "20", "-loss", "0.02", "-churn", "12", "-messages", "6", "-lookups", "6")
	x := r.Results[0]
	if x.Crashes == 0 || x.Found < 0.5 || x.Reached < 0.8 {
		t.Errorf("%+v", x)
	}
}

func TestQUIC(t *testing.T) {
	_, r := simulated(t, "-n", "6", "-quic", "-messages", "2", "-lookups", "2")
	if x := r.Results[0]; r.Settings.Transport != "quic" || x.Found != 1 || x.Reached != 1 {
		t.Errorf("%+v", x)
	}
}

func TestMistakesInTheArguments(t *testing.T) {
	for _, c := range []struct{ args, says string }{
		{"-n 3", `"3" is not a number of nodes`},
		{"-n ten", `"ten" is not a number`},
		{"-n 20000", "from 4 to 10000"},
		{"-loss 0.7", "-loss 0.7"},
		{"-loss NaN", "-loss NaN"},
		{"-churn -1", "-churn -1"},
		{"-low 9 -high 3", "-low 9 -high 3"},
		{"-k 0", "-k 0"},
		{"-messages 0", "-messages 0"},
		{"-latency far", "-latency"},
		{"-latency -5ms", "-latency"},
		{"-latency uniform:5ms", "-latency"},
		{"-latency uniform:9ms-5ms", "-latency"},
		{"-latency normal:5ms,x", "-latency"},
		{"more", `"more" is not a flag`},
	} {
		err := run(t.Context(), strings.Fields(c.args), io.Discard)
		if !errors.Is(err, cli.ErrUsage) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want a mistake in the arguments that says %q", c.args, err, c.says)
		}
	}
}

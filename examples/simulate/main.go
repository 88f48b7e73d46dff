// Simulate runs networks of growing size in virtual time and shows how the
// results scale: how long it takes to find a provider and over how many hops,
// how long a message needs to reach everybody, and what that costs each node.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/cli"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

func main() { cli.Main(run) }

// settings are what the flags say.
type settings struct {
	Nodes     []int   `json:"nodes"`
	Latency   string  `json:"latency"`
	Loss      float64 `json:"loss"`
	Churn     float64 `json:"crashesPerMinute"`
	Seed      uint64  `json:"seed"`
	Transport string  `json:"transport"`
	Low       int     `json:"connectionsLow"`
	High      int     `json:"connectionsHigh"`
	Bucket    int     `json:"bucketSize"`
	Alpha     int     `json:"lookupConcurrency"`
	Messages  int     `json:"messages"`
	Lookups   int     `json:"lookups"`

	latency p2ptest.Latency
}

func run(ctx context.Context, args []string, out io.Writer) error {
	s := settings{Transport: "memory"}
	fs := flag.NewFlagSet("simulate", flag.ContinueOnError)
	nodes := fs.String("n", "50,100,200", "how many nodes, one network after another, separated by commas")
	fs.StringVar(&s.Latency, "latency", "regions", "one-way latency: regions (typical round trips between continents), a duration such as 25ms, uniform:10ms-90ms, or normal:50ms,15ms (mean, standard deviation)")
	fs.Float64Var(&s.Loss, "loss", 0, "share of packets lost at each node, each way, from 0 to 1")
	fs.Float64Var(&s.Churn, "churn", 0, "crashes a minute, each followed by a restart half a minute later")
	fs.Uint64Var(&s.Seed, "seed", 1, "what identities, places, losses and the choice of nodes come from")
	quic := fs.Bool("quic", false, "real QUIC instead of connections in memory: slower, and truer under loss")
	fs.IntVar(&s.Low, "low", 16, "connections that a node trims down to")
	fs.IntVar(&s.High, "high", 24, "connections at which it starts to")
	fs.IntVar(&s.Bucket, "k", 20, "bucket size of the DHT")
	fs.IntVar(&s.Alpha, "alpha", 3, "concurrency of DHT lookups")
	fs.IntVar(&s.Messages, "messages", 20, "messages published in each network")
	fs.IntVar(&s.Lookups, "lookups", 20, "CIDs provided and found in each network")
	jsonFile := fs.String("json", "", "file to write the report to")
	svgFile := fs.String("svg", "", "file to write the plot to")
	quiet := fs.Bool("q", false, "no progress on standard error")
	if err := cli.Parse(fs, args, out, "simulate runs networks of p2pnode nodes in virtual time and reports how they scale."); err != nil {
		return err
	}
	if *quic {
		s.Transport = "quic"
	}
	if err := s.check(*nodes); err != nil {
		return cli.Usagef("simulate: %v", err)
	}

	var progress status
	if !*quiet {
		stop := progress.show(os.Stderr)
		defer stop()
	}
	// The context itself belongs to real time: nothing in virtual time may
	// wait for it.
	var interrupted atomic.Bool
	defer context.AfterFunc(ctx, func() { interrupted.Store(true) })()
	report := &report{Settings: s}
	var list []func(*testing.T)
	for i, n := range s.Nodes {
		list = append(list, func(t *testing.T) {
			goOn := func() {
				t.Helper()
				if interrupted.Load() {
					t.Fatal("interrupted")
				}
			}
			goOn()
			report.Results = append(report.Results, s.simulate(t, n, &progress, goOn))
			if i < len(s.Nodes)-1 {
				return
			}
			// The last one. A program ends here, with p2ptest.Main.
			progress.set("done")
			if err := report.write(out, *jsonFile, *svgFile); err != nil {
				t.Error(err)
			}
		})
	}
	if !testing.Testing() {
		p2ptest.Main("simulate", list...)
	}
	if !p2ptest.Run("simulate", list...) {
		return errors.New("simulate: a simulation failed")
	}
	return nil
}

func (s *settings) check(nodes string) error {
	for _, text := range strings.Split(nodes, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || n < 4 || n > 10_000 {
			return fmt.Errorf("-n %q: %q is no number of nodes from 4 to 10000", nodes, text)
		}
		s.Nodes = append(s.Nodes, n)
	}
	switch {
	case !(s.Loss >= 0 && s.Loss < 0.5):
		return fmt.Errorf("-loss %v: it is a share from 0 to below 0.5", s.Loss)
	case !(s.Churn >= 0 && s.Churn <= 600):
		return fmt.Errorf("-churn %v: it is a number of crashes a minute, 600 at most", s.Churn)
	case s.Low < 1 || s.High < s.Low:
		return fmt.Errorf("-low %d -high %d: at least one connection, and the higher limit not below the lower", s.Low, s.High)
	case s.Bucket < 1 || s.Alpha < 1:
		return fmt.Errorf("-k %d -alpha %d: both are at least 1", s.Bucket, s.Alpha)
	case s.Messages < 1 || s.Lookups < 1:
		return fmt.Errorf("-messages %d -lookups %d: at least one of each", s.Messages, s.Lookups)
	}
	var err error
	s.latency, err = parseLatency(s.Latency)
	return err
}

// parseLatency reads the -latency flag.
func parseLatency(text string) (p2ptest.Latency, error) {
	bad := fmt.Errorf("-latency %q: say regions, a duration such as 25ms, uniform:10ms-90ms or normal:50ms,15ms", text)
	two := func(text, sep string) (a, b time.Duration, err error) {
		x, y, ok := strings.Cut(text, sep)
		if !ok {
			return 0, 0, bad
		}
		a, errA := time.ParseDuration(x)
		b, errB := time.ParseDuration(y)
		if errA != nil || errB != nil || a < 0 || b < 0 || a > time.Minute || b > time.Minute {
			return 0, 0, bad
		}
		return a, b, nil
	}
	kind, rest, _ := strings.Cut(text, ":")
	switch kind {
	case "regions":
		return p2ptest.Regions(), nil
	case "uniform":
		a, b, err := two(rest, "-")
		if err == nil && b < a {
			err = bad
		}
		return p2ptest.Uniform(a, b), err
	case "normal":
		a, b, err := two(rest, ",")
		return p2ptest.Normal(a, b), err
	default:
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 || d > time.Minute {
			return p2ptest.Latency{}, bad
		}
		return p2ptest.Fixed(d), nil
	}
}

// status is what goes on, for the line that shows it. It is written in
// virtual time and read in real time.
type status struct{ text atomic.Pointer[string] }

func (s *status) set(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.text.Store(&text)
}

// show prints what goes on every two seconds, until stop.
func (s *status) show(w io.Writer) (stop func()) {
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		begun, last := time.Now(), ""
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-done:
				return
			}
			if text := s.text.Load(); text != nil && *text != last {
				last = *text
				fmt.Fprintf(w, "%6.0fs  %s\n", time.Since(begun).Seconds(), last)
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// report is what comes out of a run.
type report struct {
	Settings settings `json:"settings"`
	Results  []result `json:"results"`
}

func (r *report) write(out io.Writer, jsonFile, svgFile string) error {
	r.table(out)
	if jsonFile != "" {
		text, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(jsonFile, append(text, '\n'), 0o644); err != nil {
			return fmt.Errorf("simulate: -json: %w", err)
		}
		fmt.Fprintf(out, "report: %s\n", jsonFile)
	}
	if svgFile != "" {
		if err := os.WriteFile(svgFile, r.plot(), 0o644); err != nil {
			return fmt.Errorf("simulate: -svg: %w", err)
		}
		fmt.Fprintf(out, "plot: %s\n", svgFile)
	}
	return nil
}

// table prints the results.
func (r *report) table(out io.Writer) {
	fmt.Fprintf(out, "latency %s, loss %v, %v crashes a minute, %s transport, %d to %d connections, k %d, alpha %d, seed %d\n\n",
		r.Settings.Latency, r.Settings.Loss, r.Settings.Churn, r.Settings.Transport, r.Settings.Low, r.Settings.High, r.Settings.Bucket, r.Settings.Alpha, r.Settings.Seed)
	fmt.Fprintln(out, "                 ------- find a provider -------  -------- one message to all --------  -- each node --")
	fmt.Fprintln(out, " nodes  tables   found    time   (p95)  hops asked  reached    time   (max)  hops copies   conns  queries")
	for _, x := range r.Results {
		fmt.Fprintf(out, "%6d %6.1fs  %5.1f%% %5.0fms %5.0fms  %4.1f %5.1f   %5.1f%% %5.0fms %5.0fms  %4.1f  %5.1f   %5.1f   %6.1f\n",
			x.Nodes, x.TablesFilled, 100*x.Found, x.FindTime.Median, x.FindTime.P95, x.LookupHops, x.LookupRequests,
			100*x.Reached, x.DeliverTime.Median, x.DeliverTime.Max, x.GossipHops, x.Copies, x.Connections, x.Queries)
	}
	fmt.Fprintln(out, "\nAll times are virtual. time: the median; hops: the mean length of the way; asked: peers asked for the record;")
	fmt.Fprintln(out, "copies: how often a node received each message; queries: DHT requests that it answered while all joined.")
}

// spread sums up some durations, in milliseconds.
type spread struct {
	Median float64 `json:"median"`
	P95    float64 `json:"p95"`
	Max    float64 `json:"max"`
}

func spreadOf(list []time.Duration) spread {
	if len(list) == 0 {
		return spread{}
	}
	list = slices.Sorted(slices.Values(list))
	at := func(share float64) float64 {
		return float64(list[min(int(share*float64(len(list))), len(list)-1)].Microseconds()) / 1000
	}
	return spread{Median: at(0.5), P95: at(0.95), Max: at(1)}
}

func mean[T int | uint64](list []T) float64 {
	if len(list) == 0 {
		return 0
	}
	var sum float64
	for _, v := range list {
		sum += float64(v)
	}
	return sum / float64(len(list))
}

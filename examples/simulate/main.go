// Simulate runs networks of growing size in virtual time and shows how they
// scale: the time and hops to find a provider, the time until a message has
// reached all nodes, and the cost for each node.
package main

import (
	"context"
	"encoding/json"
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

// settings holds the values of the flags.
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
	Scores    string  `json:"scores"`

	latency p2ptest.Latency
}

func run(ctx context.Context, args []string, out io.Writer) error {
	s := settings{Transport: "memory"}
	fs := flag.NewFlagSet("simulate", flag.ContinueOnError)
	nodes := fs.String("n", "50,100,200", "numbers of nodes, separated by commas; one network for each")
	fs.StringVar(&s.Latency, "latency", "regions", "one-way latency: regions (typical round trips between continents), a duration such as 25ms, uniform:10ms-90ms, or normal:50ms,15ms (mean, standard deviation)")
	fs.Float64Var(&s.Loss, "loss", 0, "fraction of packets lost at each node, in each direction, from 0 to below 0.5")
	fs.Float64Var(&s.Churn, "churn", 0, "crashes per minute, each followed by a restart half a minute later")
	fs.Uint64Var(&s.Seed, "seed", 1, "seed of the identities, latencies, losses and the choice of nodes")
	quic := fs.Bool("quic", false, "use real QUIC instead of connections in memory: slower, and more accurate with loss")
	fs.IntVar(&s.Low, "low", 16, "connections down to which a node trims")
	fs.IntVar(&s.High, "high", 24, "connections at which a node starts trimming")
	fs.IntVar(&s.Bucket, "k", 20, "bucket size of the DHT")
	fs.IntVar(&s.Alpha, "alpha", 3, "concurrency of DHT lookups")
	fs.IntVar(&s.Messages, "messages", 20, "messages published in each network")
	fs.IntVar(&s.Lookups, "lookups", 20, "CIDs provided and found in each network; with 0 the nodes have no DHT, and each dials half of -low others at random")
	fs.StringVar(&s.Scores, "scores", "off", "peer scores of pubsub: off, small or large, the presets of WithPeerScoring")
	jsonFile := fs.String("json", "", "file to write the report to")
	svgFile := fs.String("svg", "", "file to write the plot to")
	quiet := fs.Bool("q", false, "print no progress on standard error")
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
	// The context belongs to real time, so goroutines in virtual time must not wait
	// for it.
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
			// The last network: p2ptest.Main exits after it.
			progress.set("done")
			if err := report.write(out, *jsonFile, *svgFile); err != nil {
				t.Error(err)
			}
		})
	}
	p2ptest.Main("simulate", list...) // which does not return
	return nil
}

func (s *settings) check(nodes string) error {
	for _, text := range strings.Split(nodes, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || n < 4 || n > 10_000 {
			return fmt.Errorf("-n %q: %q is not a number of nodes from 4 to 10000", nodes, text)
		}
		s.Nodes = append(s.Nodes, n)
	}
	switch {
	case !(s.Loss >= 0 && s.Loss < 0.5):
		return fmt.Errorf("-loss %v: it must be from 0 to below 0.5", s.Loss)
	case !(s.Churn >= 0 && s.Churn <= 600):
		return fmt.Errorf("-churn %v: it must be from 0 to 600 crashes per minute", s.Churn)
	case s.Low < 1 || s.High < s.Low:
		return fmt.Errorf("-low %d -high %d: -low must be at least 1, and -high at least -low", s.Low, s.High)
	case s.Bucket < 1 || s.Alpha < 1:
		return fmt.Errorf("-k %d -alpha %d: both must be at least 1", s.Bucket, s.Alpha)
	case s.Messages < 1 || s.Lookups < 0:
		return fmt.Errorf("-messages %d -lookups %d: -messages must be at least 1, and -lookups not negative", s.Messages, s.Lookups)
	case s.Lookups == 0 && s.Low < 6:
		return fmt.Errorf("-lookups 0 -low %d: without a DHT -low must be at least 6, or the network may fall apart", s.Low)
	case s.Scores != "off" && s.Scores != "small" && s.Scores != "large":
		return fmt.Errorf("-scores %q: use off, small or large", s.Scores)
	}
	var err error
	s.latency, err = parseLatency(s.Latency)
	return err
}

// parseLatency reads the -latency flag.
func parseLatency(text string) (p2ptest.Latency, error) {
	bad := fmt.Errorf("-latency %q: use regions, a duration such as 25ms, uniform:10ms-90ms or normal:50ms,15ms", text)
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

// status is the progress line. It is written in virtual time and read in real
// time.
type status struct{ text atomic.Pointer[string] }

func (s *status) set(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.text.Store(&text)
}

// show prints the progress every two seconds, until stop.
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

// report is the result of a run.
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
	fmt.Fprintf(out, "latency %s, loss %v, %v crashes per minute, %s transport, %d to %d connections, k %d, alpha %d, scores %s, seed %d\n\n",
		r.Settings.Latency, r.Settings.Loss, r.Settings.Churn, r.Settings.Transport, r.Settings.Low, r.Settings.High, r.Settings.Bucket, r.Settings.Alpha, r.Settings.Scores, r.Settings.Seed)
	fmt.Fprintln(out, "                 ------- find a provider -------  ------------ one message to all ------------  -- each node --")
	fmt.Fprintln(out, " nodes  tables   found    time   (p95)  hops asked  reached    time   (p99)   (max)  hops  dups   conns  queries")
	for _, x := range r.Results {
		found := fmt.Sprintf("%6.1fs  %5.1f%% %5.0fms %5.0fms  %4.1f %5.1f", x.TablesFilled, 100*x.Found, x.FindTime.Median, x.FindTime.P95, x.LookupHops, x.LookupRequests)
		if r.Settings.Lookups == 0 {
			found = fmt.Sprintf("%*s", len(found), "no DHT")
		}
		fmt.Fprintf(out, "%6d %s   %5.1f%% %5.0fms %5.0fms %5.0fms  %4.1f  %4.1f   %5.1f   %6.1f\n",
			x.Nodes, found, 100*x.Reached, x.DeliverTime.Median, x.DeliverTime.P99, x.DeliverTime.Max, x.GossipHops, x.Duplicates, x.Connections, x.Queries)
	}
	fmt.Fprintln(out, "\nAll times are virtual. time: the median; hops: the mean length of the path; asked: peers queried for the record;")
	fmt.Fprintln(out, "dups: how often a node received a message that it had; queries: DHT requests that it answered while all nodes joined.")
}

// spread summarizes durations, in milliseconds.
type spread struct {
	Median float64 `json:"median"`
	P95    float64 `json:"p95"`
	P99    float64 `json:"p99"`
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
	return spread{Median: at(0.5), P95: at(0.95), P99: at(0.99), Max: at(1)}
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

// The quickstart runs a small network in this process, on this machine alone:
// a bootstrap node, five peers that know nobody else, and some that come
// later. It provides a file and fetches it by its CID, publishes to a topic,
// reaches a peer through a relay, and goes on without the bootstrap node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/examples/internal/cli"
)

const (
	fetchProtocol = protocol.ID("/quickstart/fetch/1.0.0")
	helloProtocol = protocol.ID("/quickstart/hello/1.0.0")
	topic         = "announcements"
	maxFile       = 64 << 20
	timeLimit     = time.Minute
)

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	rest, err := cli.ParseArgs(fs, args, out, "quickstart [FILE] shows what a node does, with seven of them on this machine. FILE is provided and fetched; by default it is the README.")
	if err != nil {
		return err
	}
	file, err := findFile(rest)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()

	d := &demo{out: out, nodes: make(map[string]*p2pnode.Node)}
	defer d.closeAll()
	steps := []struct {
		title string
		run   func(context.Context) (string, error)
	}{
		{"start a bootstrap node and five peers that know only it", d.start},
		{"announce a file: alice provides its CID", func(ctx context.Context) (string, error) { return d.provide(ctx, file) }},
		{"find it: bob asks the DHT who has the CID", d.find},
		{"fetch it: bob opens a stream and checks the hash", d.fetch},
		{"publish: carol announces it, all others hear it", d.publish},
		{"relay: frank listens nowhere, erin reaches him", d.relay},
		{"survive: the bootstrap node stops, strangers still meet", d.survive},
	}
	fmt.Fprintf(out, "p2pnode quickstart: a network in one process, on 127.0.0.1 alone\n\n")
	var table []string
	for i, s := range steps {
		fmt.Fprintf(out, "%d. %s\n", i+1, s.title)
		began := time.Now()
		result, err := s.run(ctx)
		if err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, s.title, err)
		}
		took := time.Since(began).Round(100 * time.Microsecond)
		fmt.Fprintf(out, "   done in %v\n\n", took)
		table = append(table, fmt.Sprintf("   %d  %10v  %s", i+1, took, result))
	}
	fmt.Fprintf(out, "What happened:\n%s\n\nEvery step was checked. Next: examples/README.md\n", strings.Join(table, "\n"))
	return nil
}

// findFile is the file that was named, or the README of this repository.
func findFile(args []string) (string, error) {
	switch len(args) {
	case 0:
		dir, err := os.Getwd()
		if err != nil {
			return "", err
		}
		for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
				return filepath.Join(dir, "README.md"), nil
			}
		}
		return "", cli.Usagef("quickstart: no README found from here; name a file: quickstart FILE")
	case 1:
		info, err := os.Stat(args[0])
		switch {
		case err != nil:
			return "", cli.Usagef("quickstart: %v", err)
		case !info.Mode().IsRegular() || info.Size() > maxFile:
			return "", cli.Usagef("quickstart: %s is not a file of at most %d bytes", args[0], maxFile)
		}
		return args[0], nil
	default:
		return "", cli.Usagef("quickstart: one file at most, not %d", len(args))
	}
}

// demo is the network with what its steps hand on to each other.
type demo struct {
	out   io.Writer
	nodes map[string]*p2pnode.Node

	content  []byte
	cid      cid.Cid
	provider peer.AddrInfo
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "   "+format+"\n", args...)
}

// add starts a node and keeps it under a name.
func (d *demo) add(ctx context.Context, name string, opts ...p2pnode.Option) (*p2pnode.Node, error) {
	n, err := p2pnode.New(ctx, append([]p2pnode.Option{p2pnode.WithNetwork("quickstart")}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	d.nodes[name] = n
	return n, nil
}

func (d *demo) closeAll() {
	for name, n := range d.nodes {
		if err := n.Close(); err != nil && !errors.Is(err, p2pnode.ErrClosed) {
			d.say("closing %s: %v", name, err)
		}
	}
}

var (
	here  = p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1")
	names = []string{"alice", "bob", "carol", "dave", "erin"}
)

func (d *demo) start(ctx context.Context) (string, error) {
	// The bootstrap node is stopped later. With TCP alone, whoever dials it
	// then is told at once, where QUIC waits 5 seconds for an answer.
	boot, err := d.add(ctx, "boot", p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0"), p2pnode.WithRelayService())
	if err != nil {
		return "", err
	}
	d.say("boot   %s", boot.Addrs()[0])
	for _, name := range names {
		n, err := d.add(ctx, name, here, p2pnode.WithBootstrapPeers(boot.AddrInfo()))
		if err != nil {
			return "", err
		}
		n.Handle(helloProtocol, func(_ context.Context, s network.Stream) error {
			_, err := io.WriteString(s, "hello from "+name)
			return err
		})
	}
	for _, name := range names {
		if err := d.nodes[name].WaitReady(ctx); err != nil {
			return "", err
		}
		st := d.nodes[name].Status()
		d.say("%-6s %s  ready: %d peers, %d in its routing table", name, st.ID, len(st.Peers), st.DHT.Peers)
	}
	return "a bootstrap node and five peers, all ready", nil
}

func (d *demo) provide(ctx context.Context, file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	d.content, err = io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return "", err
	}
	if d.cid, err = p2pnode.CIDOf(strings.NewReader(string(d.content))); err != nil {
		return "", err
	}
	d.say("%s, %d bytes", filepath.Base(file), len(d.content))
	d.say("CID %s", d.cid)
	alice := d.nodes["alice"]
	alice.Handle(fetchProtocol, func(_ context.Context, s network.Stream) error {
		if err := s.SetDeadline(time.Now().Add(timeLimit)); err != nil {
			return err
		}
		_, err := s.Write(d.content)
		return err
	})
	// Provide returns when another peer has proved to hold the record.
	if err := alice.Provide(ctx, d.cid); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s provided as %s…", filepath.Base(file), d.cid.String()[:16]), nil
}

func (d *demo) find(ctx context.Context) (string, error) {
	for p, err := range d.nodes["bob"].FindProviders(ctx, d.cid) {
		if err != nil {
			return "", err
		}
		d.say("%s has it, at %s", p.ID, p.Addrs[0])
		d.provider = p
		break // the first is enough; breaking ends the search
	}
	if d.provider.ID != d.nodes["alice"].ID() {
		return "", fmt.Errorf("the DHT named %q, not alice", d.provider.ID)
	}
	return "bob found alice through the DHT", nil
}

func (d *demo) fetch(ctx context.Context) (string, error) {
	bob := d.nodes["bob"]
	if err := bob.Connect(ctx, d.provider); err != nil {
		return "", err
	}
	s, err := bob.OpenStream(ctx, d.provider.ID, fetchProtocol)
	if err != nil {
		return "", err
	}
	defer s.Close()
	if err := s.SetDeadline(time.Now().Add(timeLimit)); err != nil {
		return "", err
	}
	// The hash is computed while the bytes arrive, and never of more of them
	// than a file may have.
	progress := &progress{d: d, total: len(d.content)}
	got, err := p2pnode.CIDOf(io.TeeReader(io.LimitReader(s, maxFile), progress))
	if err != nil {
		return "", err
	}
	if !got.Equals(d.cid) {
		return "", fmt.Errorf("the content has the CID %s, not %s", got, d.cid)
	}
	d.say("the hash is that of the CID: nobody can have changed it")
	return fmt.Sprintf("bob fetched %d bytes and verified them", progress.done), nil
}

// progress prints a line for each quarter of the file.
type progress struct {
	d           *demo
	done, total int
	printed     int
}

func (p *progress) Write(b []byte) (int, error) {
	p.done += len(b)
	if quarter := 4 * p.done / max(p.total, 1); quarter > p.printed {
		p.printed = quarter
		p.d.say("%3d%%  %d of %d bytes", 25*quarter, p.done, p.total)
	}
	return len(b), nil
}

func (d *demo) publish(ctx context.Context) (string, error) {
	subs := make(map[string]*p2pnode.Subscription)
	for _, name := range append(slices.Clone(names), "boot") {
		s, err := d.nodes[name].Subscribe(ctx, topic)
		if err != nil {
			return "", err
		}
		defer s.Close()
		subs[name] = s
	}
	carol := d.nodes["carol"]
	// Publish waits for the first peer on the topic by itself; for all of
	// them to hear, wait until all are on it.
	if err := wait(ctx, func() bool {
		topics := carol.Status().Topics
		return len(topics) == 1 && len(topics[0].Peers) == len(subs)-1
	}); err != nil {
		return "", fmt.Errorf("waiting for subscribers: %w", err)
	}
	text := "alice has " + d.cid.String()
	if err := carol.Publish(ctx, topic, []byte(text)); err != nil {
		return "", err
	}
	for _, name := range append(slices.Clone(names), "boot") {
		m, err := subs[name].Next(ctx)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		if m.Author != carol.ID() || string(m.Data) != text {
			return "", fmt.Errorf("%s heard something else: %q", name, m.Data)
		}
		d.say("%-6s heard it, signed by carol", name)
	}
	return fmt.Sprintf("carol's announcement reached all %d subscribers", len(subs)), nil
}

func (d *demo) relay(ctx context.Context) (string, error) {
	// Without a DHT frank dials nobody but the relay, so that nobody has a
	// connection to him yet.
	boot := d.nodes["boot"]
	frank, err := d.add(ctx, "frank", p2pnode.WithoutListening(), p2pnode.WithoutDHT(), p2pnode.WithAutoRelay(boot.AddrInfo()))
	if err != nil {
		return "", err
	}
	frank.Handle(helloProtocol, func(_ context.Context, s network.Stream) error {
		_, err := io.WriteString(s, "hello from frank")
		return err
	})
	if err := wait(ctx, func() bool { return len(frank.Addrs()) > 0 }); err != nil {
		return "", fmt.Errorf("waiting for the reservation: %w", err)
	}
	d.say("frank's only addresses are like %s", short(frank.Addrs()[0].String()))
	erin := d.nodes["erin"]
	if err := erin.Connect(ctx, frank.AddrInfo()); err != nil {
		return "", err
	}
	if err := d.hello(ctx, erin, frank); err != nil {
		return "", err
	}
	for _, p := range erin.Peers() {
		if p.ID == frank.ID() && !p.Relayed {
			return "", errors.New("erin's connection to frank is not relayed")
		}
	}
	return "erin reached frank through the relay", nil
}

func (d *demo) survive(ctx context.Context) (string, error) {
	// Peers that serve the DHT get to know each other in time. Two that only
	// use it do not: gina is told of alice, hugo of dave.
	gina, err := d.add(ctx, "gina", here, p2pnode.WithDHTMode(p2pnode.DHTModeClient), p2pnode.WithBootstrapPeers(d.nodes["alice"].AddrInfo()))
	if err != nil {
		return "", err
	}
	hugo, err := d.add(ctx, "hugo", here, p2pnode.WithDHTMode(p2pnode.DHTModeClient), p2pnode.WithBootstrapPeers(d.nodes["dave"].AddrInfo()))
	if err != nil {
		return "", err
	}
	hugo.Handle(helloProtocol, func(_ context.Context, s network.Stream) error {
		_, err := io.WriteString(s, "hello from hugo")
		return err
	})
	for _, n := range []*p2pnode.Node{gina, hugo} {
		if err := n.WaitReady(ctx); err != nil {
			return "", err
		}
	}
	if err := d.nodes["boot"].Close(); err != nil {
		return "", err
	}
	d.say("boot is gone")
	if slices.ContainsFunc(gina.Peers(), func(p p2pnode.Peer) bool { return p.ID == hugo.ID() }) {
		return "", errors.New("gina and hugo have met before")
	}
	d.say("gina knows %d peers, hugo %d; they have never met", len(gina.Peers()), len(hugo.Peers()))
	found, err := gina.FindPeer(ctx, hugo.ID())
	if err != nil {
		return "", err
	}
	d.say("gina asked the DHT for hugo's ID: %s", found.Addrs[0])
	if err := gina.Connect(ctx, found); err != nil {
		return "", err
	}
	if err := d.hello(ctx, gina, hugo); err != nil {
		return "", err
	}
	return "without the bootstrap node, gina found hugo", nil
}

// hello has one node greeted by another.
func (d *demo) hello(ctx context.Context, from, to *p2pnode.Node) error {
	s, err := from.OpenStream(ctx, to.ID(), helloProtocol)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.SetDeadline(time.Now().Add(timeLimit)); err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(s, 1<<10))
	if err != nil {
		return err
	}
	if len(text) == 0 {
		return errors.New("no greeting came")
	}
	d.say("%q", text)
	return nil
}

// wait looks at something again and again until it is true.
func wait(ctx context.Context, ok func() bool) error {
	for tick := time.NewTicker(5 * time.Millisecond); !ok(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// short leaves the middle of the peer IDs out of an address.
func short(addr string) string {
	parts := strings.Split(addr, "/")
	for i, p := range parts {
		if len(p) > 20 {
			parts[i] = p[:8] + "…" + p[len(p)-4:]
		}
	}
	return strings.Join(parts, "/")
}

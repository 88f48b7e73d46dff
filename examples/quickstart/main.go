// The quickstart runs a small network in this process, on this machine alone:
// a bootstrap node, five peers that know nobody else, and three more. It provides a file and fetches it by its CID, publishes to a topic,
// reaches a peer through a relay, and goes on without the bootstrap node.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/cli"
)

const (
	fetchProtocol = protocol.ID("/quickstart/fetch/1.0.0")
	helloProtocol = protocol.ID("/quickstart/hello/1.0.0")
	topic         = "announcements"
	maxFile       = 64 << 20
	timeLimit     = time.Minute // for all of it; it takes less than a second
)

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	listen := fs.String("listen", "/ip4/127.0.0.1/tcp/0", "addresses that every node listens on, separated by commas; port 0 stands for any free one")
	rest, err := cli.ParseArgs(fs, args, out, "quickstart [FILE] shows what nodes do, with nine of them on this machine. FILE is provided and fetched; by default it is the README.")
	if err != nil {
		return err
	}
	d := &demo{out: out, fs: fs, listen: *listen, nodes: make(map[string]*p2pnode.Node)}
	if err := d.load(rest); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	defer d.stop(ctx) // for when a step fails; otherwise it is the last one

	steps := []struct {
		title string
		run   func(context.Context) (string, error)
	}{
		{"start a bootstrap node and four peers that know only it", d.start},
		{"announce a file: alice provides its CID", d.provide},
		{"find it: bob, a fifth peer, comes late and asks the DHT who has the CID", d.find},
		{"fetch it: bob opens a stream and checks the hash", d.fetch},
		{"publish: carol announces it, everybody hears it", d.publish},
		{"relay: frank listens nowhere, erin reaches him", d.relay},
		{"survive: the bootstrap node stops, strangers still meet", d.survive},
		{"stop all nodes", d.stop},
	}
	fmt.Fprintf(out, "p2pnode quickstart: a network in one process, on this machine alone\n\n")
	var table strings.Builder
	for i, s := range steps {
		fmt.Fprintf(out, "%d. %s\n", i+1, s.title)
		began := time.Now()
		result, err := s.run(ctx)
		took := time.Since(began).Round(100 * time.Microsecond)
		if err != nil {
			if errors.Is(err, cli.ErrUsage) {
				return err
			}
			return fmt.Errorf("quickstart: step %d, %s: %w", i+1, s.title, err)
		}
		d.say("done in %v\n", took)
		fmt.Fprintf(&table, "   %d  %8v  %s\n", i+1, took, result)
	}
	fmt.Fprintf(out, "What happened, each result checked:\n%s\nNext: examples/README.md\n", table.String())
	return nil
}

// demo is the network with what its steps hand on to each other.
type demo struct {
	out    io.Writer
	fs     *flag.FlagSet
	listen string
	nodes  map[string]*p2pnode.Node

	file     string // what alice has
	content  []byte
	cid      cid.Cid       // what the others are told
	provider peer.AddrInfo // what bob found out
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "   "+format+"\n", args...)
}

// load reads the file that was named, or the README.
func (d *demo) load(args []string) error {
	switch len(args) {
	case 0:
		d.file = readme()
		if d.file == "" {
			return cli.Usagef("quickstart: no README.md found from here; name a file: quickstart FILE")
		}
	case 1:
		d.file = args[0]
	default:
		return cli.Usagef("quickstart: one file at most, not %d", len(args))
	}
	f, err := os.Open(d.file)
	if err != nil {
		return cli.Usagef("quickstart: %v", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxFile {
		return cli.Usagef("quickstart: %s is not a file of at most %d bytes", d.file, maxFile)
	}
	d.content, err = io.ReadAll(io.LimitReader(f, maxFile))
	return err
}

// readme finds README.md here or in the root of the module that this is in.
func readme() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	exists := func(name string) bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return err == nil
	}
	for !exists("README.md") && !exists("go.mod") && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
	}
	if !exists("README.md") {
		return ""
	}
	return filepath.Join(dir, "README.md")
}

// add starts a node and keeps it under a name.
func (d *demo) add(ctx context.Context, name string, opts ...p2pnode.Option) (*p2pnode.Node, error) {
	n, err := p2pnode.New(ctx, append([]p2pnode.Option{p2pnode.WithNetwork("quickstart")}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, cli.Explain(d.fs, err))
	}
	d.nodes[name] = n
	err = n.Handle(helloProtocol, func(_ context.Context, s network.Stream) error {
		if err := s.SetDeadline(time.Now().Add(timeLimit)); err != nil {
			return err
		}
		_, err := io.WriteString(s, "hello from "+name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// join starts nodes that know the bootstrap node and nobody else, and waits
// until they are ready.
func (d *demo) join(ctx context.Context, names ...string) error {
	for _, name := range names {
		if _, err := d.add(ctx, name, cli.Listen(d.listen), p2pnode.WithBootstrapPeers(d.nodes["boot"].AddrInfo())); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := d.nodes[name].WaitReady(ctx); err != nil {
			return err
		}
		d.say("%-6s %s is ready", name, d.nodes[name].ID())
	}
	return nil
}

func (d *demo) start(ctx context.Context) (string, error) {
	boot, err := d.add(ctx, "boot", cli.Listen(d.listen), p2pnode.WithRelayService())
	if err != nil {
		return "", err
	}
	d.say("boot   %s", boot.Addrs()[0])
	return "the bootstrap node and four peers are ready", d.join(ctx, "alice", "carol", "dave", "erin")
}

func (d *demo) provide(ctx context.Context) (string, error) {
	var err error
	if d.cid, err = p2pnode.CIDOf(bytes.NewReader(d.content)); err != nil {
		return "", err
	}
	d.say("%s, %d bytes", filepath.Base(d.file), len(d.content))
	d.say("CID %s", d.cid)
	alice := d.nodes["alice"]
	// The protocol: 8 bytes that say the length, and the file.
	err = alice.Handle(fetchProtocol, func(_ context.Context, s network.Stream) error {
		if err := s.SetDeadline(time.Now().Add(timeLimit)); err != nil {
			return err
		}
		if err := binary.Write(s, binary.BigEndian, uint64(len(d.content))); err != nil {
			return err
		}
		_, err := s.Write(d.content)
		return err
	})
	if err != nil {
		return "", err
	}
	// Provide returns when another peer has proved to hold the record.
	if err := alice.Provide(ctx, d.cid); err != nil {
		return "", err
	}
	return fmt.Sprintf("alice provided %s as %s…", filepath.Base(d.file), d.cid.String()[:16]), nil
}

func (d *demo) find(ctx context.Context) (string, error) {
	// In a network this small every peer of the DHT is given a copy of every
	// record. Bob was not there, so he has to ask.
	if err := d.join(ctx, "bob"); err != nil {
		return "", err
	}
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
	p := &progress{d: d}
	if err := binary.Read(s, binary.BigEndian, &p.total); err != nil {
		return "", err
	}
	if p.total > maxFile {
		return "", fmt.Errorf("a file of %d bytes is offered, with at most %d", p.total, maxFile)
	}
	// The hash is computed while the bytes arrive, and never of more of them
	// than were announced.
	got, err := p2pnode.CIDOf(io.TeeReader(io.LimitReader(s, int64(p.total)), p))
	if err != nil {
		return "", err
	}
	if p.done != p.total || !got.Equals(d.cid) {
		return "", fmt.Errorf("%d bytes came, of %d, with the CID %s", p.done, p.total, got)
	}
	d.say("the hash is the one in the CID: these are the bytes that alice provided")
	return fmt.Sprintf("bob fetched %d bytes and verified them", p.done), nil
}

// progress prints a line for each quarter of the file.
type progress struct {
	d              *demo
	done, total    uint64
	quarterPrinted uint64
}

func (p *progress) Write(b []byte) (int, error) {
	p.done += uint64(len(b))
	if quarter := 4 * p.done / p.total; quarter > p.quarterPrinted {
		p.quarterPrinted = quarter
		p.d.say("%3d%%  %d of %d bytes", 25*quarter, p.done, p.total)
	}
	return len(b), nil
}

func (d *demo) publish(ctx context.Context) (string, error) {
	names := []string{"boot", "alice", "bob", "carol", "dave", "erin"}
	carol := d.nodes["carol"]
	settle, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	events := carol.Events(settle)
	subs := make(map[string]*p2pnode.Subscription)
	for _, name := range names {
		s, err := d.nodes[name].Subscribe(ctx, topic)
		if err != nil {
			return "", err
		}
		defer s.Close()
		subs[name] = s
	}
	// Publish waits for the first peer on the topic by itself. For all of them
	// to hear it, wait until carol's messages reach the other five. Should some
	// not be her neighbors, the others pass it on once gossipsub has settled,
	// which takes a second or two.
	reached := make(map[peer.ID]bool)
	for ev := range events {
		if joined, ok := ev.(p2pnode.EventTopicPeerJoined); ok {
			reached[joined.ID] = true
		}
		if len(reached) == len(names)-1 {
			break
		}
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	text := "alice has " + d.cid.String()
	if err := carol.Publish(ctx, topic, []byte(text)); err != nil {
		return "", err
	}
	for _, name := range names {
		m, err := subs[name].Next(ctx)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		if m.Author != carol.ID() || string(m.Data) != text {
			return "", fmt.Errorf("%s heard something else: %q", name, m.Data)
		}
		d.say("%-6s heard it, signed by carol", name)
	}
	return fmt.Sprintf("carol's announcement reached all %d subscribers", len(names)), nil
}

func (d *demo) relay(ctx context.Context) (string, error) {
	// Without a DHT frank dials nobody but the relay, so that nobody has a
	// connection to him yet.
	boot, erin := d.nodes["boot"], d.nodes["erin"]
	frank, err := d.add(ctx, "frank", p2pnode.WithoutListening(), p2pnode.WithoutDHT(), p2pnode.WithAutoRelay(boot.AddrInfo()))
	if err != nil {
		return "", err
	}
	if err := frank.WaitReady(ctx, p2pnode.StageReachable); err != nil {
		return "", err
	}
	d.say("frank has no port; boot keeps a place for him: %s", short(frank.Addrs()[0].String()))
	if err := erin.Connect(ctx, frank.AddrInfo()); err != nil {
		return "", err
	}
	if err := d.hello(ctx, "erin", "frank"); err != nil {
		return "", err
	}
	if p, ok := connection(erin, frank); !ok || !p.Relayed {
		return "", fmt.Errorf("erin's connection to frank should be a relayed one: %+v", p)
	}
	return "erin reached frank through the relay", nil
}

func (d *demo) survive(ctx context.Context) (string, error) {
	// Peers that serve the DHT soon know each other. Two that only use it do
	// not: gina is told of alice, hugo of dave.
	var late [2]*p2pnode.Node
	for i, who := range [][2]string{{"gina", "alice"}, {"hugo", "dave"}} {
		n, err := d.add(ctx, who[0], cli.Listen(d.listen), p2pnode.WithDHTMode(p2pnode.DHTModeClient),
			p2pnode.WithBootstrapPeers(d.nodes[who[1]].AddrInfo()))
		if err != nil {
			return "", err
		}
		if err := n.WaitReady(ctx); err != nil {
			return "", err
		}
		d.say("%s comes, and is told of %s alone", who[0], who[1])
		late[i] = n
	}
	gina, hugo := late[0], late[1]

	boot, erin := d.nodes["boot"], d.nodes["erin"]
	address := boot.AddrInfo()
	events := erin.Events(ctx)
	if err := boot.Close(); err != nil {
		return "", err
	}
	// Erin learns of it in a moment, by the end of her connection.
	for ev := range events {
		if gone, ok := ev.(p2pnode.EventPeerDisconnected); ok && gone.ID == boot.ID() {
			break
		}
	}
	if err := erin.Connect(ctx, address); err == nil {
		return "", errors.New("the bootstrap node still answers")
	}
	d.say("boot has stopped, and does not answer any more")

	if _, ok := connection(gina, hugo); ok {
		return "", errors.New("gina and hugo have met before")
	}
	if known := gina.Host().Peerstore().Addrs(hugo.ID()); len(known) > 0 {
		return "", fmt.Errorf("gina knew hugo's address before: %v", known)
	}
	d.say("gina and hugo have never met: no connection, no address")
	found, err := gina.FindPeer(ctx, hugo.ID())
	if err != nil {
		return "", err
	}
	d.say("gina asked the DHT for hugo's ID: he is at %s", found.Addrs[0])
	if err := gina.Connect(ctx, found); err != nil {
		return "", err
	}
	if err := d.hello(ctx, "gina", "hugo"); err != nil {
		return "", err
	}
	return "without the bootstrap node, gina found hugo", nil
}

// stop closes every node. Close waits for all that the node started.
func (d *demo) stop(context.Context) (string, error) {
	var errs []error
	for name, n := range d.nodes {
		if err := n.Close(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return fmt.Sprintf("all %d nodes stopped, no errors", len(d.nodes)), errors.Join(errs...)
}

// hello has one node greeted by another over a stream.
func (d *demo) hello(ctx context.Context, from, to string) error {
	s, err := d.nodes[from].OpenStream(ctx, d.nodes[to].ID(), helloProtocol)
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
	if string(text) != "hello from "+to {
		return fmt.Errorf("%s said %q", to, text)
	}
	d.say("%s opened a stream, and read %q", from, text)
	return nil
}

// connection is that of one node to another, if there is one.
func connection(from, to *p2pnode.Node) (p2pnode.Peer, bool) {
	for _, p := range from.Peers() {
		if p.ID == to.ID() {
			return p, true
		}
	}
	return p2pnode.Peer{}, false
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

// Quickstart runs a small network in this process, only on this machine: a
// bootstrap node, five peers that know only it, and three more. It provides a
// file and fetches it by its CID, publishes on a topic, reaches a peer through a
// relay, and finds a peer without the bootstrap node.
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
	timeLimit     = time.Minute // for the whole run, which takes less than a second
)

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	listen := fs.String("listen", "/ip4/127.0.0.1/tcp/0", "addresses on which every node listens, separated by commas; with port 0 the system chooses a free one")
	rest, err := cli.ParseArgs(fs, args, out, "quickstart [FILE] shows the main features with nine nodes on this machine. It provides and fetches FILE, by default the README.")
	if err != nil {
		return err
	}
	d := &demo{out: out, fs: fs, listen: *listen, nodes: make(map[string]*p2pnode.Node)}
	if err := d.load(rest); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	defer d.stop(ctx) // if a step fails; otherwise the last step

	steps := []struct {
		title string
		run   func(context.Context) (string, error)
	}{
		{"start a bootstrap node and four peers that know only it", d.start},
		{"announce a file: alice provides its CID", d.provide},
		{"find it: bob, a fifth peer, joins late and searches the DHT for providers of the CID", d.find},
		{"fetch it: bob opens a stream and checks the hash", d.fetch},
		{"publish: carol announces it, all subscribers receive it", d.publish},
		{"relay: frank does not listen, erin reaches him", d.relay},
		{"survive: the bootstrap node stops, strangers still find each other", d.survive},
		{"stop all nodes", d.stop},
	}
	fmt.Fprintf(out, "p2pnode quickstart: a network in one process, only on this machine\n\n")
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
	fmt.Fprintf(out, "Results, all checked:\n%s\nNext: examples/README.md\n", table.String())
	return nil
}

// demo is the network and the state that its steps share.
type demo struct {
	out    io.Writer
	fs     *flag.FlagSet
	listen string
	nodes  map[string]*p2pnode.Node

	file     string // alice's
	content  []byte
	cid      cid.Cid       // of content
	provider peer.AddrInfo // found by bob
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "   "+format+"\n", args...)
}

// load reads the given file, or the README.
func (d *demo) load(args []string) error {
	switch len(args) {
	case 0:
		d.file = readme()
		if d.file == "" {
			return cli.Usagef("quickstart: no README.md found in this directory or above; name a file: quickstart FILE")
		}
	case 1:
		d.file = args[0]
	default:
		return cli.Usagef("quickstart: got %d arguments; give at most one file", len(args))
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

// readme finds README.md in this directory or in the root of its module.
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

// add starts a node with a name.
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

// join starts nodes that know only the bootstrap node, and waits until they are
// ready.
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
	// The protocol: the length in 8 bytes, and the file.
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
	// Provide returns once another peer has proved that it holds the record.
	if err := alice.Provide(ctx, d.cid); err != nil {
		return "", err
	}
	return fmt.Sprintf("alice provided %s as %s…", filepath.Base(d.file), d.cid.String()[:16]), nil
}

func (d *demo) find(ctx context.Context) (string, error) {
	// In such a small network every peer of the DHT gets a copy of every record.
	// Bob joins later, so he must query others.
	if err := d.join(ctx, "bob"); err != nil {
		return "", err
	}
	for p, err := range d.nodes["bob"].FindProviders(ctx, d.cid) {
		if err != nil {
			return "", err
		}
		d.say("%s has it, at %s", p.ID, p.Addrs[0])
		d.provider = p
		break // the first is enough; break ends the search
	}
	if d.provider.ID != d.nodes["alice"].ID() {
		return "", fmt.Errorf("the DHT returned %q, not alice", d.provider.ID)
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
		return "", fmt.Errorf("the file has %d bytes, more than %d", p.total, maxFile)
	}
	// Compute the hash while the data arrives, of at most the announced length.
	got, err := p2pnode.CIDOf(io.TeeReader(io.LimitReader(s, int64(p.total)), p))
	if err != nil {
		return "", err
	}
	if p.done != p.total || !got.Equals(d.cid) {
		return "", fmt.Errorf("received %d of %d bytes, with the CID %s", p.done, p.total, got)
	}
	d.say("the hash matches the CID: this is the file that alice provided")
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
	// Publish waits for the first peer on the topic by itself. To reach all five,
	// wait until they have joined. If some are not carol's neighbors, other peers
	// forward the message once gossipsub's mesh has settled, which takes a second
	// or two.
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
			return "", fmt.Errorf("%s received another message: %q", name, m.Data)
		}
		d.say("%-6s received it, signed by carol", name)
	}
	return fmt.Sprintf("carol's announcement reached all %d subscribers", len(names)), nil
}

func (d *demo) relay(ctx context.Context) (string, error) {
	// Without a DHT frank dials only the relay, so that no other peer is connected
	// to him.
	boot, erin := d.nodes["boot"], d.nodes["erin"]
	frank, err := d.add(ctx, "frank", p2pnode.WithoutListening(), p2pnode.WithoutDHT(), p2pnode.WithAutoRelay(boot.AddrInfo()))
	if err != nil {
		return "", err
	}
	if err := frank.WaitReady(ctx, p2pnode.StageReachable); err != nil {
		return "", err
	}
	d.say("frank does not listen; his circuit address at boot: %s", short(frank.Addrs()[0].String()))
	if err := erin.Connect(ctx, frank.AddrInfo()); err != nil {
		return "", err
	}
	if err := d.hello(ctx, "erin", "frank"); err != nil {
		return "", err
	}
	if p, ok := connection(erin, frank); !ok || !p.Relayed {
		return "", fmt.Errorf("erin's connection to frank is not relayed: %+v", p)
	}
	return "erin reached frank through the relay", nil
}

func (d *demo) survive(ctx context.Context) (string, error) {
	// DHT servers soon know each other. Two clients do not: gina knows only alice,
	// hugo only dave.
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
		d.say("%s joins, and knows only %s", who[0], who[1])
		late[i] = n
	}
	gina, hugo := late[0], late[1]

	boot, erin := d.nodes["boot"], d.nodes["erin"]
	address := boot.AddrInfo()
	events := erin.Events(ctx)
	if err := boot.Close(); err != nil {
		return "", err
	}
	// Erin notices when her connection closes.
	for ev := range events {
		if gone, ok := ev.(p2pnode.EventPeerDisconnected); ok && gone.ID == boot.ID() {
			break
		}
	}
	if err := erin.Connect(ctx, address); err == nil {
		return "", errors.New("the bootstrap node still accepts connections")
	}
	d.say("boot has stopped; erin cannot connect to it")

	if _, ok := connection(gina, hugo); ok {
		return "", errors.New("gina and hugo are already connected")
	}
	if known := gina.Host().Peerstore().Addrs(hugo.ID()); len(known) > 0 {
		return "", fmt.Errorf("gina already knows hugo's addresses: %v", known)
	}
	d.say("gina and hugo have never met: gina has no connection to hugo and no address of his")
	found, err := gina.FindPeer(ctx, hugo.ID())
	if err != nil {
		return "", err
	}
	d.say("gina found hugo in the DHT by his peer ID, at %s", found.Addrs[0])
	if err := gina.Connect(ctx, found); err != nil {
		return "", err
	}
	if err := d.hello(ctx, "gina", "hugo"); err != nil {
		return "", err
	}
	return "without the bootstrap node, gina found hugo", nil
}

// stop closes all nodes. Close waits for everything that the node has started.
func (d *demo) stop(context.Context) (string, error) {
	var errs []error
	for name, n := range d.nodes {
		if err := n.Close(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return fmt.Sprintf("all %d nodes stopped, no errors", len(d.nodes)), errors.Join(errs...)
}

// hello opens a stream from one node to another and reads its greeting.
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
		return fmt.Errorf("%s sent %q", to, text)
	}
	d.say("%s opened a stream and read %q", from, text)
	return nil
}

// connection returns the connection of one node to another, if there is one.
func connection(from, to *p2pnode.Node) (p2pnode.Peer, bool) {
	for _, p := range from.Peers() {
		if p.ID == to.ID() {
			return p, true
		}
	}
	return p2pnode.Peer{}, false
}

// short shortens the peer IDs in an address.
func short(addr string) string {
	parts := strings.Split(addr, "/")
	for i, p := range parts {
		if len(p) > 20 {
			parts[i] = p[:8] + "…" + p[len(p)-4:]
		}
	}
	return strings.Join(parts, "/")
}

// Relay shows how peers reach each other from behind routers, in three processes on
// any machines: a relay with a public address, a listener that finds out what it is
// behind and gets a reservation, and a dialer that connects to the listener by its
// peer ID, through the relay and then directly. Without a role, all three run in this
// process. The role lab runs many of them in a laboratory of network namespaces, and
// prints which routers can be crossed.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/cli"
)

const (
	echoProtocol = protocol.ID("/example/echo/1.0.0")
	networkName  = "example"
	patience     = time.Minute
)

func main() { cli.Main(run) }

// flags are those of all roles.
type flags struct {
	*flag.FlagSet
	listen   *string
	noListen *bool
	join     []string
	peers    *string
	kinds    *string
}

func run(ctx context.Context, args []string, out io.Writer) error {
	role := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		role, args = args[0], args[1:]
	}
	f := &flags{FlagSet: flag.NewFlagSet("relay", flag.ContinueOnError)}
	f.listen = f.String("listen", "", "addresses to listen on, separated by commas; by default free ports on all interfaces, without a role on 127.0.0.1")
	f.noListen = f.Bool("no-listen", false, "for listen and dial: open no port, so that only a relay leads there")
	f.Func("join", "for all roles: a ticket or an address that a relay printed; may be given several times", func(s string) error {
		f.join = append(f.join, s)
		return nil
	})
	f.peers = f.String("peer", "", "for dial: peer IDs or addresses, separated by commas")
	f.kinds = f.String("kinds", "", "for lab: routers, separated by commas, such as port-restricted,symmetric; all by default")
	about := "relay shows how peers reach each other from behind routers.\n\nIts first argument is its role: relay, listen, dial or lab; by default, the first three run in this process."
	if err := cli.Parse(f.FlagSet, args, out, about); err != nil {
		return err
	}
	out = &lines{out: out}
	switch role {
	case "":
		return all(ctx, f, out)
	case "relay":
		return serve(ctx, f, out)
	case "listen":
		return listen(ctx, f, out)
	case "dial":
		return dial(ctx, f, out)
	case "lab":
		return laboratory(ctx, f, out)
	default:
		return cli.Usagef("relay: %q is not a role: use relay, listen, dial or lab", role)
	}
}

// lines writes one line at a time, for several goroutines.
type lines struct {
	mu  sync.Mutex
	out io.Writer // guarded by mu
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(b)
}

// known returns the options that join the network of -join, and its peers.
func (f *flags) known() (opts []p2pnode.Option, peers []peer.AddrInfo, err error) {
	for _, s := range f.join {
		if strings.HasPrefix(s, "/") {
			list, err := p2pnode.ParsePeers(s)
			if err != nil {
				return nil, nil, cli.Usagef("relay: -join: %v", err)
			}
			opts, peers = append(opts, p2pnode.WithBootstrapPeers(list...)), append(peers, list...)
			continue
		}
		t, err := p2pnode.ParseTicket(s)
		if err != nil {
			return nil, nil, cli.Usagef("relay: -join: %v", err)
		}
		opts, peers = append(opts, p2pnode.WithTicket(s)), append(peers, t.Peers()...)
	}
	return opts, peers, nil
}

// A relay is a node with a public address.
func startRelay(ctx context.Context, f *flags, listen string) (*p2pnode.Node, error) {
	opts, _, err := f.known()
	if err != nil {
		return nil, err
	}
	opts = append(opts, p2pnode.WithNetwork(networkName), p2pnode.WithProfile(p2pnode.ProfileServer), cli.Listen(listen))
	n, err := p2pnode.New(ctx, opts...)
	return n, cli.Explain(f.FlagSet, err)
}

// serve is the role relay.
func serve(ctx context.Context, f *flags, out io.Writer) error {
	n, err := startRelay(ctx, f, cmp.Or(*f.listen, cli.AnyInterface))
	if err != nil {
		return err
	}
	defer n.Close()
	ticket, err := n.Ticket()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "peer ID %s\n", n.ID())
	fmt.Fprintln(out, "Relaying; next, on another machine or in another terminal, use one of:")
	fmt.Fprintf(out, "  relay listen -join %s\n", ticket.Text())
	for _, a := range n.Addrs() {
		fmt.Fprintf(out, "  relay listen -join %s\n", a)
	}
	<-ctx.Done()
	return nil
}

// hidden is a node that is, or may be, behind a router, and prints what happens to it.
type hidden struct {
	*p2pnode.Node
	out     io.Writer
	begun   time.Time
	punches bool          // it tries to punch holes, because it has a port
	verdict chan struct{} // closed once it knows whether others can dial it
	events  sync.WaitGroup
}

func startHidden(ctx context.Context, f *flags, out io.Writer) (*hidden, error) {
	opts, peers, err := f.known()
	if err != nil {
		return nil, err
	}
	if len(peers) == 0 {
		return nil, cli.Usagef("relay: -join is missing: give what the relay printed")
	}
	opts = append(opts, p2pnode.WithNetwork(networkName))
	if *f.noListen {
		opts = append(opts, p2pnode.WithoutListening(), p2pnode.WithAutoRelay(peers...))
	} else {
		opts = append(opts, p2pnode.WithNATTraversal(), cli.Listen(*f.listen))
	}
	h := &hidden{out: out, begun: time.Now(), punches: !*f.noListen, verdict: make(chan struct{})}
	if h.Node, err = p2pnode.New(ctx, opts...); err != nil {
		return nil, cli.Explain(f.FlagSet, err)
	}
	h.say("peer ID %s", h.ID())
	events := h.Events(context.Background(), p2pnode.EventsWithState()) // until Close
	h.events.Go(func() {
		known := sync.OnceFunc(func() { close(h.verdict) })
		for ev := range events {
			switch ev := ev.(type) {
			case p2pnode.EventReachabilityChanged:
				h.say("reachability: %s", ev.Reachability)
				if ev.Reachability != p2pnode.ReachabilityUnknown {
					known()
				}
			case p2pnode.EventRelayReserved:
				h.say("reservation at the relay %s", ev.ID)
			case p2pnode.EventRelayLost:
				h.say("the reservation at the relay %s is lost", ev.ID)
			case p2pnode.EventHolePunched:
				if ev.Err == nil {
					h.say("punched a hole to %s in %s", ev.ID, seconds(ev.Took))
				} else {
					h.say("no hole to %s: %v", ev.ID, ev.Err)
				}
			}
		}
	})
	if err := h.meet(ctx, peers); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// meet connects to one of the peers. The node would keep trying by itself; Connect
// returns the reasons of a failure.
func (h *hidden) meet(ctx context.Context, peers []peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var errs []error
	for _, p := range peers {
		err := h.Connect(ctx, p)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// say prints a line with the time since the start.
func (h *hidden) say(format string, args ...any) {
	fmt.Fprintf(h.out, "%8s  %s\n", seconds(time.Since(h.begun)), fmt.Sprintf(format, args...))
}

func (h *hidden) Close() error {
	err := h.Node.Close()
	h.events.Wait()
	return err
}

// settled waits until the node knows whether others can dial it.
func (h *hidden) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case <-h.verdict:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("relay: nobody said whether this node can be dialed: %w", ctx.Err())
	}
}

func startListener(ctx context.Context, f *flags, out io.Writer) (*hidden, error) {
	h, err := startHidden(ctx, f, out)
	if err != nil {
		return nil, err
	}
	err = h.Handle(echoProtocol, func(_ context.Context, s network.Stream) error {
		h.say("stream of %s, %s", s.Conn().RemotePeer(), path(s.Conn()))
		if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		k, err := io.Copy(s, io.LimitReader(s, 1<<20))
		h.say("echoed %d bytes to %s", k, s.Conn().RemotePeer())
		return err
	})
	if err == nil {
		err = h.settled(ctx)
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		err = h.WaitReady(ctx, p2pnode.StageReachable) // its error says why there is no reservation
	}
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// listen is the role listen.
func listen(ctx context.Context, f *flags, out io.Writer) error {
	h, err := startListener(ctx, f, out)
	if err != nil {
		return err
	}
	defer h.Close()
	h.say("reachable; next, on a third machine or in a third terminal:")
	fmt.Fprintf(out, "  relay dial -join %s -peer %s\n", strings.Join(f.join, " -join "), h.ID())
	<-ctx.Done()
	return nil
}

// dial is the role dial.
func dial(ctx context.Context, f *flags, out io.Writer) error {
	var to []peer.AddrInfo
	for s := range strings.SplitSeq(*f.peers, ",") {
		if id, err := peer.Decode(s); err == nil {
			to = append(to, peer.AddrInfo{ID: id})
			continue
		}
		list, err := p2pnode.ParsePeers(s)
		if err != nil {
			return cli.Usagef("relay: -peer: neither a peer ID nor an address: %v", err)
		}
		to = append(to, list...)
	}
	h, err := startHidden(ctx, f, out)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.settled(ctx); err != nil { // then it knows its own addresses, to punch holes
		return err
	}
	errs := make([]error, len(to))
	var calls sync.WaitGroup
	for i, p := range to {
		calls.Go(func() { errs[i] = h.visit(ctx, p) })
	}
	calls.Wait()
	return errors.Join(errs...)
}

// visit connects to a peer, and uses streams on the way.
func (h *hidden) visit(ctx context.Context, to peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	direct, over := h.follow(ctx, to.ID)
	// The DHT knows the addresses of a peer ID.
	if err := h.WaitReady(ctx, p2pnode.StageRouting); err != nil {
		return err
	}
	if err := h.Connect(ctx, to); err != nil {
		return err
	}
	connected := time.Now()
	s, err := h.OpenStream(ctx, to.ID, echoProtocol)
	if err != nil {
		return err
	}
	defer s.Close()
	first := path(s.Conn())
	h.say("connected to %s, %s", to.ID, first)
	if err := h.echo(ctx, s); err != nil {
		return err
	}
	if first != relayed || !h.punches {
		h.say("result: %s %s", to.ID, first)
		return nil
	}
	for {
		at, ok := next(direct, over)
		if !ok {
			break
		}
		// The stream that was opened on the relayed connection goes on, and a new one takes
		// the direct one.
		if err := h.echo(ctx, s); err != nil {
			return err
		}
		second, err := h.OpenStream(ctx, to.ID, echoProtocol)
		if err != nil {
			return err
		}
		defer second.Close()
		if then := path(second.Conn()); then != relayed { // the connection may have closed again
			after := seconds(at.Sub(connected))
			h.say("path to %s: was %s, is %s after %s", to.ID, first, then, after)
			if err := h.echo(ctx, second); err != nil {
				return err
			}
			h.say("result: %s %s after %s", to.ID, then, after)
			return nil
		}
	}
	h.say("path to %s: stays relayed, within the limits of the relay", to.ID)
	if err := h.echo(ctx, s); err != nil {
		return err
	}
	h.say("result: %s relayed", to.ID)
	return nil
}

// next returns when a direct connection was opened, and false if there comes none.
func next(direct <-chan time.Time, over <-chan struct{}) (time.Time, bool) {
	select {
	case at := <-direct:
		return at, true
	case <-over:
	}
	select {
	case at := <-direct:
		return at, true
	default:
		return time.Time{}, false
	}
}

// follow returns a channel with the times at which direct connections to a peer open,
// and one that is closed after three attempts to punch a hole, or with ctx.
func (h *hidden) follow(ctx context.Context, id peer.ID) (direct <-chan time.Time, over <-chan struct{}) {
	opened, ended := make(chan time.Time, 16), make(chan struct{})
	events := h.Events(ctx)
	// Events tell of peers; libp2p also of further connections to one.
	bundle := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if c.RemotePeer() != id || path(c) == relayed {
			return
		}
		select {
		case opened <- time.Now():
		default: // nobody waits any more
		}
	}}
	h.Host().Network().Notify(bundle)
	h.events.Go(func() {
		defer close(ended)
		defer h.Host().Network().StopNotify(bundle)
		tries := 0
		for ev := range events {
			if ev, ok := ev.(p2pnode.EventHolePunched); ok && ev.ID == id && ev.Err != nil {
				if tries++; tries == 3 {
					return
				}
			}
		}
	})
	return opened, ended
}

// echo sends some bytes, and gets them back.
func (h *hidden) echo(ctx context.Context, s network.Stream) error {
	if at, ok := ctx.Deadline(); ok {
		if err := s.SetDeadline(at); err != nil {
			return err
		}
	}
	text := []byte(strings.Repeat("hello ", 100))
	if _, err := s.Write(text); err != nil {
		return err
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(s, back); err != nil {
		return fmt.Errorf("relay: the echo: %w", err)
	}
	if string(back) != string(text) {
		return fmt.Errorf("relay: %q came back", back)
	}
	h.say("%d bytes there and back on a stream to %s that was opened %s", len(text), s.Conn().RemotePeer(), path(s.Conn()))
	return nil
}

const relayed = "relayed"

// path says how a connection leads to its peer.
func path(c network.Conn) string {
	if _, err := c.RemoteMultiaddr().ValueForProtocol(ma.P_CIRCUIT); err == nil {
		return relayed
	}
	return "direct over " + c.ConnState().Transport
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2fs", d.Seconds()) }

// all runs the three roles in this process, on 127.0.0.1. No router is in the way:
// the listener and the dialer open no port.
func all(ctx context.Context, f *flags, out io.Writer) error {
	relay, err := startRelay(ctx, f, cmp.Or(*f.listen, "/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		return err
	}
	defer relay.Close()
	fmt.Fprintf(out, "the relay listens on %s\n", relay.Addrs()[0])
	ticket, err := relay.Ticket()
	if err != nil {
		return err
	}
	f.join, *f.noListen = []string{ticket.Text()}, true
	fmt.Fprintln(out, "\nlistener, which opens no port:")
	listener, err := startListener(ctx, f, out)
	if err != nil {
		return err
	}
	defer listener.Close()
	fmt.Fprintf(out, "its circuit address is %s\n", listener.Addrs()[0])
	*f.peers = listener.Addrs()[0].String()
	fmt.Fprintln(out, "\ndialer:")
	return dial(ctx, f, out)
}

// Relay shows how to reach a peer that cannot be dialed. It has three roles: a
// relay, a listener that opens no port and has a reservation at the relay, and a
// dialer that reaches the listener through it. Without -role all three run in
// this process.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/cli"
)

const (
	greetProtocol = protocol.ID("/example/greet/1.0.0")
	patience      = 30 * time.Second
)

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("relay", flag.ContinueOnError)
	role := fs.String("role", "", "relay, listen or dial; by default all three in this process")
	listen := fs.String("listen", "", "for the relay: addresses to listen on, separated by commas; by default all interfaces with -role relay, 127.0.0.1 without -role")
	relayAddr := fs.String("relay", "", "for -role listen: an address that the relay printed")
	to := fs.String("peer", "", "for -role dial: an address that the listener printed")
	if err := cli.Parse(fs, args, out, "relay shows how to reach a peer that cannot be dialed."); err != nil {
		return err
	}
	switch *role {
	case "":
		return all(ctx, fs, *listen, out)
	case "relay":
		n, err := startRelay(ctx, fs, cmp.Or(*listen, cli.AnyInterface))
		if err != nil {
			return err
		}
		defer n.Close()
		fmt.Fprintln(out, "Relaying; next, in another terminal, use one of:")
		for _, a := range n.Addrs() {
			fmt.Fprintf(out, "  relay -role listen -relay %s\n", a)
		}
		<-ctx.Done()
		return nil
	case "listen":
		n, err := startListener(ctx, fs, *relayAddr, out)
		if err != nil {
			return err
		}
		defer n.Close()
		fmt.Fprintln(out, "Reserved, without an open port; next, in a third terminal, use one of:")
		for _, a := range n.Addrs() {
			fmt.Fprintf(out, "  relay -role dial -peer %s\n", a)
		}
		<-ctx.Done()
		return nil
	case "dial":
		return dial(ctx, fs, *to, out)
	default:
		return cli.Usagef("relay: -role %q: use relay, listen or dial", *role)
	}
}

func startRelay(ctx context.Context, fs *flag.FlagSet, listen string) (*p2pnode.Node, error) {
	n, err := p2pnode.New(ctx, cli.Listen(listen), p2pnode.WithRelayService())
	return n, cli.Explain(fs, err)
}

// startListener returns once the node has a reservation.
func startListener(ctx context.Context, fs *flag.FlagSet, addr string, out io.Writer) (*p2pnode.Node, error) {
	relays, err := p2pnode.ParsePeers(addr)
	if err != nil {
		return nil, cli.Usagef("relay: -relay: %v", err)
	}
	n, err := p2pnode.New(ctx, p2pnode.WithoutListening(), p2pnode.WithAutoRelay(relays...))
	if err != nil {
		return nil, cli.Explain(fs, err)
	}
	err = n.Handle(greetProtocol, func(_ context.Context, s network.Stream) error {
		if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s connected through %s\n", s.Conn().RemotePeer(), s.Conn().RemoteMultiaddr())
		_, err := io.WriteString(s, "hello from behind the relay")
		return err
	})
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// The node would keep trying by itself; Connect returns the reason of a
	// failure.
	if err := n.Connect(ctx, relays[0]); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	if err := reserved(ctx, n); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// reserved waits for a reservation, which gives the node its first address.
func reserved(ctx context.Context, n *p2pnode.Node) error {
	changes := n.Events(ctx) // before the first check, to miss no change
	if len(n.Addrs()) > 0 {
		return nil
	}
	for range changes {
		if len(n.Addrs()) > 0 {
			return nil
		}
	}
	return fmt.Errorf("relay: no reservation (%w); check that the peer is a relay and not full", ctx.Err())
}

func dial(ctx context.Context, fs *flag.FlagSet, addr string, out io.Writer) error {
	peers, err := p2pnode.ParsePeers(addr)
	if err != nil {
		return cli.Usagef("relay: -peer: %v", err)
	}
	to := peers[0]
	n, err := p2pnode.New(ctx, p2pnode.WithoutListening())
	if err != nil {
		return cli.Explain(fs, err)
	}
	defer n.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := n.Connect(ctx, to); err != nil {
		return err
	}
	s, err := n.OpenStream(ctx, to.ID, greetProtocol)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(s, 1<<10))
	if err != nil {
		return err
	}
	known := n.Peers()
	i := slices.IndexFunc(known, func(p p2pnode.Peer) bool { return p.ID == to.ID })
	if i < 0 {
		return errors.New("relay: the connection was lost")
	}
	fmt.Fprintf(out, "connected, relayed: %v\n%q\n", known[i].Relayed, text)
	return nil
}

// all runs the three roles in this process.
func all(ctx context.Context, fs *flag.FlagSet, listen string, out io.Writer) error {
	relay, err := startRelay(ctx, fs, cmp.Or(listen, "/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		return err
	}
	defer relay.Close()
	fmt.Fprintf(out, "the relay listens on %s\n", relay.Addrs()[0])
	listener, err := startListener(ctx, fs, relay.Addrs()[0].String(), out)
	if err != nil {
		return err
	}
	defer listener.Close()
	fmt.Fprintf(out, "the listener opened no port; its circuit address is %s\n", listener.Addrs()[0])
	return dial(ctx, fs, listener.Addrs()[0].String(), out)
}

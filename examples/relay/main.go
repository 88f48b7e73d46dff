// Relay shows how a peer that cannot be dialled is reached. It has three
// roles: a relay, a listener that opens no port and keeps a reservation at the
// relay, and a dialler that reaches the listener through it. Without -role all
// three run in this process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/examples/internal/cli"
)

const (
	greetProtocol = protocol.ID("/example/greet/1.0.0")
	patience      = 30 * time.Second
)

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("relay", flag.ContinueOnError)
	role := fs.String("role", "", "relay, listen or dial; all three in this process by default")
	listen := fs.String("listen", "", "for -role relay: addresses to listen on, separated by commas; all interfaces by default")
	relay := fs.String("relay", "", "for -role listen: address of the relay")
	to := fs.String("peer", "", "for -role dial: address of the listener, as it prints it")
	if err := cli.Parse(fs, args, out, "relay shows how a peer that cannot be dialled is reached."); err != nil {
		return err
	}
	switch *role {
	case "":
		return all(ctx, out)
	case "relay":
		n, err := startRelay(ctx, cli.Listen(*listen))
		if err != nil {
			return err
		}
		defer n.Close()
		for _, a := range n.Addrs() {
			fmt.Fprintf(out, "relay -role listen -relay %s\n", a)
		}
		<-ctx.Done()
		return nil
	case "listen":
		n, err := startListener(ctx, *relay, out)
		if err != nil {
			return err
		}
		defer n.Close()
		for _, a := range n.Addrs() {
			fmt.Fprintf(out, "relay -role dial -peer %s\n", a)
		}
		<-ctx.Done()
		return nil
	case "dial":
		return dial(ctx, *to, out)
	default:
		return cli.Usagef("relay: -role %q: choose of relay, listen and dial", *role)
	}
}

func startRelay(ctx context.Context, listen p2pnode.Option) (*p2pnode.Node, error) {
	return cli.Start(ctx, listen, p2pnode.WithRelayService())
}

// startListener returns when the reservation stands.
func startListener(ctx context.Context, relay string, out io.Writer) (*p2pnode.Node, error) {
	relays, err := p2pnode.ParsePeers(relay)
	if err != nil {
		return nil, cli.Usagef("relay: -relay: %v", err)
	}
	n, err := cli.Start(ctx, p2pnode.WithoutListening(), p2pnode.WithAutoRelay(relays...))
	if err != nil {
		return nil, err
	}
	n.Handle(greetProtocol, func(_ context.Context, s network.Stream) error {
		if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s came by %s\n", s.Conn().RemotePeer(), s.Conn().RemoteMultiaddr())
		_, err := io.WriteString(s, "hello from behind the relay")
		return err
	})
	for ev := range n.Events(ctx) {
		if a, ok := ev.(p2pnode.AddrsChanged); ok && len(a.Addrs) > 0 {
			return n, nil
		}
		if len(n.Addrs()) > 0 { // it stood before the first event
			return n, nil
		}
	}
	return nil, errors.Join(ctx.Err(), n.Close())
}

func dial(ctx context.Context, addr string, out io.Writer) error {
	peers, err := p2pnode.ParsePeers(addr)
	if err != nil {
		return cli.Usagef("relay: -peer: %v", err)
	}
	n, err := cli.Start(ctx, p2pnode.WithoutListening())
	if err != nil {
		return err
	}
	defer n.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := n.Connect(ctx, peers[0]); err != nil {
		return err
	}
	s, err := n.OpenStream(ctx, peers[0].ID, greetProtocol)
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
	for _, p := range n.Peers() {
		if p.ID == peers[0].ID {
			fmt.Fprintf(out, "connected, relayed: %v\n", p.Relayed)
		}
	}
	fmt.Fprintf(out, "%s\n", text)
	return nil
}

// all runs the three roles here.
func all(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	relay, err := startRelay(ctx, cli.Listen("/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		return err
	}
	defer relay.Close()
	fmt.Fprintf(out, "the relay listens on %s\n", relay.Addrs()[0])
	listener, err := startListener(ctx, relay.Addrs()[0].String(), out)
	if err != nil {
		return err
	}
	defer listener.Close()
	fmt.Fprintf(out, "the listener opened no port; it is reached by %s\n", listener.Addrs()[0])
	return dial(ctx, listener.Addrs()[0].String(), out)
}

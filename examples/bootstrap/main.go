// Bootstrap is a server that the other nodes of a network start from: it keeps
// its identity in a file, so that its addresses stay the same, and serves the
// DHT.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/examples/internal/cli"
)

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("bootstrap", flag.ContinueOnError)
	identity := fs.String("identity", "", "file that holds the node's key; created when absent (required)")
	network := fs.String("network", "example", "name of the network, the same as with WithNetwork")
	listen := fs.String("listen", "/ip4/0.0.0.0/tcp/4001,/ip4/0.0.0.0/udp/4001/quic-v1", "addresses to listen on, separated by commas")
	relay := fs.Bool("relay", false, "be a relay too, for peers that cannot be dialled")
	if err := cli.Parse(fs, args, out, "bootstrap is a server that the other nodes of a network start from. It ends on an interrupt or SIGTERM."); err != nil {
		return err
	}
	if *identity == "" {
		return cli.Usagef("bootstrap: -identity FILE is required: without it the addresses change at every start")
	}
	opts := []p2pnode.Option{
		p2pnode.WithNetwork(*network),
		p2pnode.WithIdentityFile(*identity),
		cli.Listen(*listen),
		// A bootstrap server has to answer, whatever it finds out about its
		// own reachability.
		p2pnode.WithDHTMode(p2pnode.DHTModeServer),
	}
	if *relay {
		opts = append(opts, p2pnode.WithRelayService())
	}
	n, err := cli.Start(ctx, fs, opts...)
	if err != nil {
		return err
	}
	events := n.Events(ctx) // before the addresses are out, so that no peer is missed
	fmt.Fprintf(out, "peer ID %s\nOthers join with WithNetwork(%q) and one or more of:\n", n.ID(), *network)
	for _, a := range n.Addrs() {
		fmt.Fprintf(out, "  WithBootstrapAddrs(%q)\n", a)
	}
	if *relay {
		fmt.Fprintln(out, "It is a relay too: those addresses, parsed by ParsePeers, are also for WithAutoRelay.")
	}
	for ev := range events { // until ctx ends
		switch ev := ev.(type) {
		case p2pnode.PeerConnected:
			// Quoted, because peers call themselves what they like.
			fmt.Fprintf(out, "+ %s %q from %s\n", ev.Peer.ID, ev.Peer.Agent, ev.Peer.Addr)
		case p2pnode.PeerDisconnected:
			fmt.Fprintf(out, "- %s\n", ev.ID)
		case p2pnode.EventsLost:
			fmt.Fprintf(out, "  (%d events not shown)\n", ev.Count)
		}
	}
	fmt.Fprintln(out, "stopping")
	return n.Close()
}

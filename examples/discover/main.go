// Discover finds peers with a common interest in the DHT: each advertises a
// namespace, and searches for others that do.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/cli"
)

// patience is how long a dial may take.
const patience = 10 * time.Second

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("discover", flag.ContinueOnError)
	namespace := fs.String("namespace", "room", "the namespace to advertise and to search")
	listen := fs.String("listen", cli.AnyInterface, "addresses to listen on, separated by commas")
	bootstrap := fs.String("bootstrap", "", "addresses of peers of the network, separated by commas; without any this is the first peer")
	network := fs.String("network", "example", "name of the network, the same for all")
	every := fs.Duration("every", 5*time.Second, "how often to search")
	if err := cli.Parse(fs, args, out, "discover connects to the peers that advertise the same namespace."); err != nil {
		return err
	}
	if *namespace == "" || *every <= 0 {
		return cli.Usagef("discover: -namespace must not be empty and -every must be above 0")
	}
	n, err := p2pnode.New(ctx, p2pnode.WithNetwork(*network), cli.Listen(*listen), cli.Bootstrap(*bootstrap))
	if err != nil {
		return cli.Explain(fs, err)
	}
	var background sync.WaitGroup
	defer background.Wait()
	defer n.Close() // ends the background goroutine

	fmt.Fprintf(out, "peer ID %s; others find this peer with one of:\n", n.ID())
	for _, a := range n.Addrs() {
		fmt.Fprintf(out, "  discover -namespace %s -bootstrap %s\n", *namespace, a)
	}
	background.Go(func() {
		// Advertise returns the result of the first attempt, and the node repeats
		// the announcement until it closes. The first peer of a network has no
		// others to announce to yet.
		switch err := n.Advertise(ctx, *namespace); {
		case err == nil:
			fmt.Fprintf(out, "advertised %s\n", *namespace)
		case errors.Is(err, p2pnode.ErrNoPeers):
			fmt.Fprintln(out, "no other peers yet; the announcement follows")
		}
	})

	answered := make(map[peer.ID]bool) // whether the last dial of a peer succeeded
	ticker := time.NewTicker(*every)
	defer ticker.Stop()
	for {
		look(ctx, n, *namespace, answered, out)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// look searches once, connects to the peers that it finds, and prints changes.
func look(ctx context.Context, n *p2pnode.Node, namespace string, answered map[peer.ID]bool, out io.Writer) {
	for p, err := range n.FindPeers(ctx, namespace) {
		switch {
		case ctx.Err() != nil || errors.Is(err, p2pnode.ErrNoPeers):
			return // no peers to query yet
		case p.ID == "":
			fmt.Fprintf(out, "search: %v\n", err)
			return // an error without a peer is the last pair
		}
		if err == nil { // it has addresses
			err = connect(ctx, n, p)
		}
		was, known := answered[p.ID]
		if answered[p.ID] = err == nil; known && was == (err == nil) {
			continue
		}
		if err != nil {
			fmt.Fprintf(out, "%s does not answer: %v\n", p.ID, err)
		} else {
			fmt.Fprintf(out, "connected to %s\n", p.ID)
		}
	}
}

func connect(ctx context.Context, n *p2pnode.Node, p peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return n.Connect(ctx, p)
}

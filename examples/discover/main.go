// Discover has peers of one interest find each other in the DHT: each
// advertises a namespace, and looks for others that do.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/examples/internal/cli"
)

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("discover", flag.ContinueOnError)
	namespace := fs.String("namespace", "example", "what to meet under")
	listen := fs.String("listen", "", "addresses to listen on, separated by commas; all interfaces by default")
	bootstrap := fs.String("bootstrap", "", "addresses of peers of the network, separated by commas; without any, be the first one")
	every := fs.Duration("every", 2*time.Second, "how often to look")
	if err := cli.Parse(fs, args, out, "discover meets the peers that advertise the same namespace."); err != nil {
		return err
	}
	if *namespace == "" || *every <= 0 {
		return cli.Usagef("discover: -namespace must not be empty and -every must be above 0")
	}
	n, err := cli.Start(ctx, p2pnode.WithNetwork("example-discover"), cli.Listen(*listen), cli.Bootstrap(*bootstrap))
	if err != nil {
		return err
	}
	defer n.Close()
	for _, a := range n.Addrs() {
		fmt.Fprintf(out, "discover -namespace %s -bootstrap %s\n", *namespace, a)
	}
	go func() {
		// It keeps announcing until ctx ends; the result is that of the
		// first attempt, and the first peer of a network has nobody to tell.
		err := n.Advertise(ctx, *namespace)
		if err == nil {
			fmt.Fprintf(out, "advertised %s\n", *namespace)
		} else if errors.Is(err, p2pnode.ErrNoPeers) {
			fmt.Fprintln(out, "nobody is here yet; the announcement follows")
		}
	}()

	met := make(map[peer.ID]bool)
	for tick := time.NewTicker(*every); ; {
		for p, err := range n.FindPeers(ctx, *namespace) {
			if errors.Is(err, p2pnode.ErrNoPeers) || ctx.Err() != nil {
				break // nobody to ask yet
			}
			if err != nil {
				fmt.Fprintf(out, "looking: %v\n", err)
				continue
			}
			if met[p.ID] {
				continue
			}
			if err := n.Connect(ctx, p); err != nil {
				fmt.Fprintf(out, "%s does not answer: %v\n", p.ID, err)
				continue
			}
			met[p.ID] = true
			fmt.Fprintf(out, "met %s\n", p.ID)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

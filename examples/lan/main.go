// Lan publishes a greeting to the nodes on the LAN and prints theirs.
// Run it on two machines, or twice on one.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/go-p2pnode/p2pnode"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, _ []string, out io.Writer) error {
	node, err := p2pnode.New(ctx, p2pnode.WithNetwork("acme-hello"), p2pnode.WithMDNS())
	if err != nil {
		return err
	}
	defer node.Close()
	sub, err := node.Subscribe(ctx, "greetings")
	if err != nil {
		return err
	}
	if err := node.WaitReady(ctx, p2pnode.StageTopic("greetings")); err != nil {
		return err // names the stage that is missing
	}
	name, _ := os.Hostname()
	if err := node.Publish(ctx, "greetings", []byte("hello from "+name)); err != nil {
		return err
	}
	for msg, err := range sub.Messages(ctx) {
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s says %q\n", msg.Author, msg.Data)
	}
	return nil
}

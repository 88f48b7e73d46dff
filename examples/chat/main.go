// Chat is a chat room for the people on one LAN: they find each other by
// multicast DNS and talk over a topic. Without multicast, -bootstrap names
// somebody who is in the room.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/examples/internal/cli"
)

// maxLine bounds what is shown of what others say.
const maxLine = 1000

func main() {
	cli.Main(func(ctx context.Context, args []string, out io.Writer) error { return run(ctx, args, os.Stdin, out) })
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	fs := flag.NewFlagSet("chat", flag.ContinueOnError)
	nick := fs.String("nick", "anonymous", "your name")
	topic := fs.String("topic", "lobby", "the room")
	listen := fs.String("listen", "", "addresses to listen on, separated by commas; all interfaces by default")
	bootstrap := fs.String("bootstrap", "", "addresses of somebody in the room, separated by commas, where multicast does not reach")
	if err := cli.Parse(fs, args, out, "chat is a chat room for the people on one LAN. Type a line to say it; end with ctrl-D."); err != nil {
		return err
	}
	if *nick == "" || len(*nick) > 32 {
		return cli.Usagef("chat: -nick %q: it must have 1 to 32 characters", *nick)
	}
	n, err := cli.Start(ctx, p2pnode.WithNetwork("example-chat"), p2pnode.WithMDNS(), cli.Listen(*listen), cli.Bootstrap(*bootstrap))
	if err != nil {
		return err
	}
	defer n.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	for _, a := range n.Addrs() {
		fmt.Fprintf(out, "* others can join with -bootstrap %s\n", a)
	}
	sub, err := n.Subscribe(ctx, *topic)
	if err != nil {
		return err
	}
	events := n.Events(ctx)
	go func() { // ends with the node
		for ev := range events {
			switch ev := ev.(type) {
			case p2pnode.PeerConnected:
				fmt.Fprintf(out, "* %s is here\n", short(ev.Peer.ID.String()))
			case p2pnode.PeerDisconnected:
				fmt.Fprintf(out, "* %s is gone\n", short(ev.ID.String()))
			}
		}
	}()
	go func() { // ends with the subscription
		for m, err := range sub.Messages(ctx) {
			if err != nil {
				return
			}
			if m.Author == n.ID() {
				continue
			}
			who, text, ok := strings.Cut(string(m.Data[:min(len(m.Data), maxLine)]), "\n")
			if ok {
				fmt.Fprintf(out, "%s (%s): %s\n", printable(who), short(m.Author.String()), printable(text))
			}
		}
	}()
	lines := make(chan string)
	go func() { // ends with the input: a read cannot be interrupted
		defer close(lines)
		for s := bufio.NewScanner(in); s.Scan(); {
			select {
			case lines <- s.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				return nil
			}
			if line == "" {
				continue
			}
			err := n.Publish(ctx, *topic, []byte(*nick+"\n"+line))
			if errors.Is(err, p2pnode.ErrNoPeers) {
				fmt.Fprintln(out, "* nobody is here to hear that")
			} else if err != nil && ctx.Err() == nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// printable takes out what could play tricks with the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}

func short(id string) string { return id[:4] + "…" + id[len(id)-6:] }

// Echo is a protocol that sends back what a peer sends. Without -connect the
// program is the server, with it the client.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/cli"
)

const (
	echoProtocol = protocol.ID("/example/echo/1.0.0")
	maxMessage   = 64 << 10
	patience     = 30 * time.Second
)

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("echo", flag.ContinueOnError)
	listen := fs.String("listen", cli.AnyInterface, "for the server: addresses to listen on, separated by commas")
	connect := fs.String("connect", "", "for the client: an address that the server printed")
	message := fs.String("message", "hello", "for the client: the message to send")
	if err := cli.Parse(fs, args, out, "echo sends back what it receives; with -connect it sends a message to another echo."); err != nil {
		return err
	}
	if *connect == "" {
		n, err := p2pnode.New(ctx, cli.Listen(*listen))
		if err != nil {
			return cli.Explain(fs, err)
		}
		defer n.Close()
		return serve(ctx, n, out)
	}

	server, err := p2pnode.ParsePeers(*connect)
	if err != nil {
		return cli.Usagef("echo: -connect: %v", err)
	}
	if len(*message) > maxMessage {
		return cli.Usagef("echo: -message has %d bytes, more than %d", len(*message), maxMessage)
	}
	n, err := p2pnode.New(ctx, p2pnode.WithoutListening())
	if err != nil {
		return cli.Explain(fs, err)
	}
	defer n.Close()
	return ask(ctx, n, server[0], *message, out)
}

func serve(ctx context.Context, n *p2pnode.Node, out io.Writer) error {
	err := n.Handle(echoProtocol, func(_ context.Context, s network.Stream) error {
		// The deadline ends the stream of a peer that stalls; maxMessage bounds what
		// a peer can send.
		if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		size, err := io.Copy(s, io.LimitReader(s, maxMessage))
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "echoed %d bytes to %s\n", size, s.Conn().RemotePeer())
		return nil // closes the stream
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "Listening; try one of:")
	for _, a := range n.Addrs() {
		fmt.Fprintf(out, "  echo -connect %s\n", a)
	}
	<-ctx.Done()
	return nil
}

func ask(ctx context.Context, n *p2pnode.Node, server peer.AddrInfo, message string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := n.Connect(ctx, server); err != nil {
		return err
	}
	s, err := n.OpenStream(ctx, server.ID, echoProtocol)
	if err != nil {
		return err
	}
	defer s.Close()
	// ctx applies only to opening the stream; reads and writes need a deadline.
	if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(s, message); err != nil {
		return err
	}
	if err := s.CloseWrite(); err != nil { // ends the message
		return err
	}
	reply, err := io.ReadAll(io.LimitReader(s, maxMessage))
	if err != nil {
		return err
	}
	// Quoted, because the server could send escape sequences.
	fmt.Fprintf(out, "reply: %q\n", reply)
	return nil
}

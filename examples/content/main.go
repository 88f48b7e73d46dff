// Content shares files by what is in them: one peer provides a file under its
// CID, another finds out who has it, fetches it and checks that it is the one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/examples/internal/cli"
)

const (
	fetchProtocol = protocol.ID("/example/content/1.0.0")
	maxFile       = 1 << 30
	stall         = 30 * time.Second // a transfer that stands still so long has failed
)

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("content", flag.ContinueOnError)
	provide := fs.String("provide", "", "file to provide until interrupted")
	fetch := fs.String("fetch", "", "CID to find and fetch")
	to := fs.String("o", "", "file to write what was fetched to; it must not exist")
	listen := fs.String("listen", "", "addresses to listen on, separated by commas; all interfaces by default")
	bootstrap := fs.String("bootstrap", "", "addresses of peers of the network, separated by commas")
	if err := cli.Parse(fs, args, out, "content provides a file by its CID, or finds and fetches one."); err != nil {
		return err
	}
	opts := []p2pnode.Option{p2pnode.WithNetwork("example-content"), cli.Listen(*listen), cli.Bootstrap(*bootstrap)}
	switch {
	case (*provide == "") == (*fetch == ""):
		return cli.Usagef("content: give one of -provide FILE and -fetch CID (-h explains)")
	case *provide != "":
		return provideFile(ctx, *provide, out, opts)
	}
	c, err := cid.Decode(*fetch)
	if err != nil {
		return cli.Usagef("content: -fetch %q is not a CID: %v", *fetch, err)
	}
	if *to == "" || *bootstrap == "" {
		return cli.Usagef("content: -fetch needs -o FILE to write to and -bootstrap ADDR to ask")
	}
	return fetchFile(ctx, c, *to, out, opts)
}

func provideFile(ctx context.Context, name string, out io.Writer, opts []p2pnode.Option) error {
	f, err := os.Open(name)
	if err != nil {
		return cli.Usagef("content: -provide: %v", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxFile {
		return cli.Usagef("content: -provide: %s is not a file of at most %d bytes", name, maxFile)
	}
	c, err := p2pnode.CIDOf(f)
	if err != nil {
		return err
	}
	n, err := cli.Start(ctx, opts...)
	if err != nil {
		return err
	}
	defer n.Close()
	n.Handle(fetchProtocol, func(_ context.Context, s network.Stream) error {
		size, err := io.Copy(&patient{s}, io.NewSectionReader(f, 0, info.Size()))
		if err == nil {
			fmt.Fprintf(out, "sent %d bytes to %s\n", size, s.Conn().RemotePeer())
		}
		return err
	})
	for _, a := range n.Addrs() {
		fmt.Fprintf(out, "content -fetch %s -o FILE -bootstrap %s\n", c, a)
	}
	// The record is held by other peers, so there must be one. Until then,
	// whoever asks this node itself finds it too.
	for ctx.Err() == nil {
		err := n.Provide(ctx, c)
		if err == nil {
			fmt.Fprintf(out, "provided: other peers know that %s is here\n", c)
			break
		}
		if !errors.Is(err, p2pnode.ErrNoPeers) && ctx.Err() == nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

func fetchFile(ctx context.Context, c cid.Cid, to string, out io.Writer, opts []p2pnode.Option) error {
	n, err := cli.Start(ctx, opts...)
	if err != nil {
		return err
	}
	defer n.Close()
	tried := 0
	for p, err := range n.FindProviders(ctx, c) {
		if err != nil {
			return err
		}
		tried++
		fmt.Fprintf(out, "%s has it\n", p.ID)
		if err := fetchFrom(ctx, n, p, c, to, out); err == nil {
			return nil
		} else if errors.Is(err, os.ErrExist) {
			return cli.Usagef("content: -o: %v", err)
		} else {
			fmt.Fprintf(out, "but: %v\n", err)
		}
	}
	return fmt.Errorf("content: none of %d providers delivered %s", tried, c)
}

// fetchFrom writes to a temporary file, which gets its name only when the hash
// is right: a file with the name is a whole one.
func fetchFrom(ctx context.Context, n *p2pnode.Node, p peer.AddrInfo, c cid.Cid, to string, out io.Writer) error {
	if err := n.Connect(ctx, p); err != nil {
		return err
	}
	s, err := n.OpenStream(ctx, p.ID, fetchProtocol)
	if err != nil {
		return err
	}
	defer s.Close()
	f, err := os.CreateTemp(filepath.Dir(to), ".fetch-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	prefix := c.Prefix()
	got, err := p2pnode.CIDOf(io.TeeReader(io.LimitReader(&patient{s}, maxFile), f), p2pnode.CIDCodec(prefix.Codec), p2pnode.CIDHash(prefix.MhType))
	if err != nil {
		return err
	}
	if !got.Equals(c) {
		return fmt.Errorf("what came has the CID %s", got)
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), to); err != nil { // unlike a rename, it replaces nothing
		return err
	}
	fmt.Fprintf(out, "fetched and verified: %s\n", to)
	return nil
}

// patient gives every read and write of a stream a deadline of its own.
type patient struct{ s network.Stream }

func (p *patient) Read(b []byte) (int, error) {
	if err := p.s.SetReadDeadline(time.Now().Add(stall)); err != nil {
		return 0, err
	}
	return p.s.Read(b)
}

func (p *patient) Write(b []byte) (int, error) {
	if err := p.s.SetWriteDeadline(time.Now().Add(stall)); err != nil {
		return 0, err
	}
	return p.s.Write(b)
}

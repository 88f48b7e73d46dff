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
	"github.com/go-p2pnode/p2pnode/internal/cli"
)

const (
	fetchProtocol = protocol.ID("/example/content/1.0.0")
	maxFile       = 1 << 30
	patience      = 30 * time.Second // a peer that does not answer, or a transfer that stands still, so long has failed
	retry         = time.Second      // the pause before another search
)

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("content", flag.ContinueOnError)
	provide := fs.String("provide", "", "file to provide until interrupted")
	fetch := fs.String("fetch", "", "CID to find and fetch")
	to := fs.String("o", "", "file to write what was fetched to; it must not exist")
	listen := fs.String("listen", cli.AnyInterface, "addresses to listen on, separated by commas")
	bootstrap := fs.String("bootstrap", "", "addresses of peers of the network, separated by commas")
	search := fs.Duration("search", 10*time.Second, "how long to go on searching when nobody has the CID")
	networkName := fs.String("network", "example", "name of the network, the same for all")
	if err := cli.Parse(fs, args, out, "content provides a file by its CID, or finds and fetches one."); err != nil {
		return err
	}
	start := func() (*p2pnode.Node, error) {
		n, err := p2pnode.New(ctx, p2pnode.WithNetwork(*networkName), cli.Listen(*listen), cli.Bootstrap(*bootstrap))
		return n, cli.Explain(fs, err)
	}
	switch {
	case (*provide == "") == (*fetch == ""):
		return cli.Usagef("content: say what to do: -provide FILE offers a file, -fetch CID -o FILE -bootstrap ADDR gets one")
	case *provide != "":
		return provideFile(ctx, *provide, out, start)
	case *to == "" || *bootstrap == "":
		return cli.Usagef("content: -fetch needs -o FILE to write to and -bootstrap ADDR to ask")
	}
	c, err := cid.Decode(*fetch)
	if err != nil {
		return cli.Usagef("content: -fetch %q is not a CID: %v", *fetch, err)
	}
	if c.Version() != 1 || c.Prefix().Codec != cid.Raw {
		return cli.Usagef("content: -fetch %s is no CID of a plain file, as -provide prints it", c)
	}
	return fetchFile(ctx, c, *to, *search, out, start)
}

func provideFile(ctx context.Context, name string, out io.Writer, start func() (*p2pnode.Node, error)) error {
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
	n, err := start()
	if err != nil {
		return err
	}
	defer n.Close()
	err = n.Handle(fetchProtocol, func(_ context.Context, s network.Stream) error {
		size, err := io.Copy(patient{s}, io.NewSectionReader(f, 0, info.Size()))
		if err == nil {
			fmt.Fprintf(out, "sent %d bytes to %s\n", size, s.Conn().RemotePeer())
		}
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "Providing; to fetch it, one of:")
	for _, a := range n.Addrs() {
		fmt.Fprintf(out, "  content -fetch %s -o FILE -bootstrap %s\n", c, a)
	}
	events := n.Events(ctx)
	switch err := n.Provide(ctx, c); {
	case ctx.Err() != nil:
		return nil // interrupted, as it should be
	case errors.Is(err, p2pnode.ErrNoPeers):
		// The record is held by other peers, so there must be one. The node
		// announces it when there is.
		fmt.Fprintln(out, "no other peer is here yet to know about it")
	case err != nil:
		return err
	}
	for ev := range events { // until ctx ends
		if ev, ok := ev.(p2pnode.EventProvided); ok && ev.Err == nil {
			fmt.Fprintf(out, "provided: other peers know that %s is here\n", ev.CID)
		}
	}
	return nil
}

// fetchFile writes to a temporary file, which gets its name only when the hash
// is right: a file with the name is a whole one.
func fetchFile(ctx context.Context, c cid.Cid, to string, search time.Duration, out io.Writer, start func() (*p2pnode.Node, error)) error {
	if _, err := os.Lstat(to); err == nil {
		return cli.Usagef("content: -o: %s exists already", to)
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".fetch-*")
	if err != nil {
		return cli.Usagef("content: -o: %v", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	n, err := start()
	if err != nil {
		return err
	}
	defer n.Close()

	if err := findAndFetch(ctx, n, c, f, search, out); err != nil {
		return err
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

// findAndFetch tries one provider after the other. One that came just now may
// not have told the network yet, so finding nobody is no reason to give up.
func findAndFetch(ctx context.Context, n *p2pnode.Node, c cid.Cid, f *os.File, search time.Duration, out io.Writer) error {
	var failed []error
	for end := time.Now().Add(search); ; {
		for p, err := range n.FindProviders(ctx, c) {
			if err == nil {
				fmt.Fprintf(out, "%s has it\n", p.ID)
				err = fetchFrom(ctx, n, p, c, f)
			}
			if err == nil {
				return nil
			}
			fmt.Fprintf(out, "but: %v\n", err) // the next one may do better
			failed = append(failed, err)
		}
		if len(failed) > 0 {
			return fmt.Errorf("content: nobody delivered %s: %w", c, errors.Join(failed...))
		}
		if time.Until(end) < retry {
			return fmt.Errorf("content: nobody on the network provides %s", c)
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fetchFrom fills the file from one provider and checks the hash.
func fetchFrom(ctx context.Context, n *p2pnode.Node, p peer.AddrInfo, c cid.Cid, f *os.File) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil { // of what another provider sent
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := n.Connect(ctx, p); err != nil {
		return err
	}
	s, err := n.OpenStream(ctx, p.ID, fetchProtocol)
	if err != nil {
		return err
	}
	defer s.Close()
	// The hash is computed while the bytes arrive, and never of more of them
	// than a file may have.
	received := io.TeeReader(io.LimitReader(patient{s}, maxFile), f)
	got, err := p2pnode.CIDOf(received, p2pnode.CIDHash(c.Prefix().MhType))
	if err != nil {
		return errors.Join(err, s.Reset()) // do not send what nobody reads
	}
	if !got.Equals(c) {
		return fmt.Errorf("%s sent something else, with the CID %s", p.ID, got)
	}
	return nil
}

// patient gives every read and write of a stream a deadline of its own, so
// that a long transfer may go on and one that stands still may not.
type patient struct{ s network.Stream }

func (p patient) Read(b []byte) (int, error) {
	if err := p.s.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return p.s.Read(b)
}

func (p patient) Write(b []byte) (int, error) {
	if err := p.s.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return p.s.Write(b)
}

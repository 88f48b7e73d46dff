// Content shares files by their content: one peer provides a file under its CID,
// another finds the provider, fetches the file and verifies it.
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
	patience      = 30 * time.Second // how long a dial, a read or a write may take
	retry         = time.Second      // the pause before another search
)

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("content", flag.ContinueOnError)
	provide := fs.String("provide", "", "file to provide until interrupted")
	fetch := fs.String("fetch", "", "CID to find and fetch")
	to := fs.String("o", "", "file to write; it must not exist")
	listen := fs.String("listen", cli.AnyInterface, "addresses to listen on, separated by commas")
	bootstrap := fs.String("bootstrap", "", "addresses of peers of the network, separated by commas")
	ticket := fs.String("ticket", "", "ticket of a peer of the network, as -provide prints it")
	search := fs.Duration("search", 10*time.Second, "how long to repeat the search until a provider is found")
	networkName := fs.String("network", "example", "name of the network, the same for all")
	if err := cli.Parse(fs, args, out, "content provides a file by its CID, or finds and fetches one."); err != nil {
		return err
	}
	start := func() (*p2pnode.Node, error) {
		n, err := p2pnode.New(ctx, append(cli.Join(fs, *networkName, *ticket), cli.Listen(*listen), cli.Bootstrap(*bootstrap))...)
		return n, cli.Explain(fs, err)
	}
	switch {
	case (*provide == "") == (*fetch == ""):
		return cli.Usagef("content: use either -provide FILE, or -fetch CID -o FILE -ticket TICKET")
	case *provide != "":
		return provideFile(ctx, *provide, out, start)
	case *to == "" || *bootstrap+*ticket == "":
		return cli.Usagef("content: -fetch needs -o FILE, and -ticket TICKET or -bootstrap ADDR")
	}
	c, err := cid.Decode(*fetch)
	if err != nil {
		return cli.Usagef("content: -fetch %q is not a CID: %v", *fetch, err)
	}
	if c.Version() != 1 || c.Prefix().Codec != cid.Raw {
		return cli.Usagef("content: -fetch %s is not the CID of a plain file, as printed by -provide", c)
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
	made, err := n.Ticket()
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "Providing; to fetch the file, use one of:")
	fmt.Fprintf(out, "  content -fetch %s -o FILE -ticket %s\n", c, made.Text())
	for _, a := range n.Addrs() {
		fmt.Fprintf(out, "  content -fetch %s -o FILE -bootstrap %s\n", c, a)
	}
	events := n.Events(ctx)
	switch err := n.Provide(ctx, c); {
	case ctx.Err() != nil:
		return nil // interrupted by the user
	case errors.Is(err, p2pnode.ErrNoPeers):
		// Other peers hold the record. The node provides it once one connects.
		fmt.Fprintln(out, "no other peers yet; the provider record follows")
	case err != nil:
		return err
	}
	for ev := range events { // until ctx ends
		if ev, ok := ev.(p2pnode.EventProvided); ok && ev.Err == nil {
			fmt.Fprintf(out, "provided: other peers hold a provider record for %s\n", ev.CID)
		}
	}
	return nil
}

// fetchFile writes to a temporary file, which gets its name only if the hash is
// right: a file with the name is complete.
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
	if err := os.Link(f.Name(), to); err != nil { // unlike a rename, it does not replace a file
		return err
	}
	fmt.Fprintf(out, "fetched and verified: %s\n", to)
	return nil
}

// findAndFetch tries one provider after the other. It repeats the search, because
// a new provider may not have announced itself yet.
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
			fmt.Fprintf(out, "trying the next provider: %v\n", err)
			failed = append(failed, err)
		}
		if len(failed) > 0 {
			return fmt.Errorf("content: no provider delivered %s: %w", c, errors.Join(failed...))
		}
		if time.Until(end) < retry {
			return fmt.Errorf("content: no peer of the network provides %s", c)
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
	if err := f.Truncate(0); err != nil { // drops the data of another provider
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
	// Compute the hash while the data arrives, of at most maxFile bytes.
	received := io.TeeReader(io.LimitReader(patient{s}, maxFile), f)
	got, err := p2pnode.CIDOf(received, p2pnode.CIDHash(c.Prefix().MhType))
	if err != nil {
		return errors.Join(err, s.Reset()) // so that the provider stops sending
	}
	if !got.Equals(c) {
		return fmt.Errorf("%s sent something else, with the CID %s", p.ID, got)
	}
	return nil
}

// patient sets a deadline for each read and write of a stream, so that a long
// transfer continues and a stalled one fails.
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

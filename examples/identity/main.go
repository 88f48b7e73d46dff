// Identity creates, shows and reuses a node's key.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/cli"
)

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("identity", flag.ContinueOnError)
	file := fs.String("file", "", "key file to create or reuse; without it the new key is shown but not saved")
	kind := fs.String("type", "", "type of a new key: ed25519 (the default), rsa, secp256k1 or ecdsa; an existing key must have this type")
	export := fs.Bool("export", false, "also print the private key, for WithIdentityString; anybody who has it can impersonate you")
	if err := cli.Parse(fs, args, out, "identity creates, shows and reuses a node's key."); err != nil {
		return err
	}
	if *file == "" {
		key, err := generate(*kind)
		if err != nil {
			return err
		}
		return show(out, key, "no file; the next run creates another key", *export)
	}

	_, err := os.Lstat(*file)
	kept := *file + " (reused)"
	if errors.Is(err, os.ErrNotExist) {
		kept = *file + " (created)"
		// WithIdentityFile creates a missing file with an Ed25519 key. For another
		// type, create it first.
		if *kind != "" {
			if err := create(*file, *kind); err != nil {
				return err
			}
		}
	}
	// A node with this option has the same peer ID at every start. Start one,
	// without opening a port, to show the ID.
	n, err := p2pnode.New(ctx, p2pnode.WithIdentityFile(*file), p2pnode.WithoutListening(), p2pnode.WithoutDHT(), p2pnode.WithoutPubSub())
	if err != nil {
		return cli.Explain(fs, err)
	}
	key := n.Host().Peerstore().PrivKey(n.ID())
	if err := n.Close(); err != nil {
		return err
	}
	if *kind != "" && !strings.EqualFold(*kind, key.Type().String()) {
		return cli.Usagef("identity: -type %s: the key in %s is of type %s; choose another file", *kind, *file, key.Type())
	}
	return show(out, key, kept, *export)
}

func generate(kind string) (crypto.PrivKey, error) {
	if kind == "" {
		kind = string(p2pnode.KeyEd25519)
	}
	key, err := p2pnode.GenerateKey(p2pnode.KeyType(kind))
	if err != nil {
		return nil, cli.Usagef("identity: -type: %v", err)
	}
	return key, nil
}

// create writes a new key to a new file that only its owner can read.
func create(file, kind string) error {
	key, err := generate(kind)
	if err != nil {
		return err
	}
	text, err := p2pnode.EncodeKey(key)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return cli.Usagef("identity: -file: %v", err)
	}
	_, err = f.WriteString(text + "\n")
	return errors.Join(err, f.Close())
}

func show(out io.Writer, key crypto.PrivKey, kept string, export bool) error {
	id, err := p2pnode.PeerID(key)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "peer ID   %s\nkey type  %s\nkept in   %s\n", id, key.Type(), kept)
	if export {
		text, err := p2pnode.EncodeKey(key)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "private   %s\n", text)
	}
	return nil
}

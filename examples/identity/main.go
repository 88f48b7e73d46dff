// Identity creates, shows and reuses the key that a node is known by.
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
	fs := flag.NewFlagSet("identity", flag.ContinueOnError)
	file := fs.String("file", "", "key file to create or reuse; without it a key is made and shown, and kept nowhere")
	kind := fs.String("type", "ed25519", "type of a key that is kept nowhere: ed25519, rsa, secp256k1 or ecdsa")
	export := fs.Bool("export", false, "print the private key too, as WithIdentityString takes it: whoever sees it can be you")
	if err := cli.Parse(fs, args, out, "identity creates, shows and reuses the key that a node is known by."); err != nil {
		return err
	}
	var opt p2pnode.Option
	if *file != "" {
		// The node creates the file when it is not there, and never writes
		// to it again.
		opt = p2pnode.WithIdentityFile(*file)
	} else {
		key, err := p2pnode.GenerateKey(p2pnode.KeyType(*kind))
		if err != nil {
			return cli.Usagef("identity: -type: %v", err)
		}
		opt = p2pnode.WithIdentity(key)
	}
	n, err := cli.Start(ctx, opt, p2pnode.WithoutListening())
	if err != nil {
		return err
	}
	defer n.Close()
	key := n.Host().Peerstore().PrivKey(n.ID())
	fmt.Fprintf(out, "peer ID   %s\nkey type  %s\n", n.ID(), key.Type())
	if *file != "" {
		fmt.Fprintf(out, "kept in   %s\n", *file)
	}
	if *export {
		text, err := p2pnode.EncodeKey(key)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "private   %s\n", text)
	}
	return nil
}

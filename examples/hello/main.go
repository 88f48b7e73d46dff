// Hello starts two nodes: alice publishes a message, bob prints it.
package main

import (
	"context"
	"fmt"
	"log"

	"github.com/go-p2pnode/p2pnode"
)

func main() {
	ctx := context.Background()
	alice := must(p2pnode.New(ctx))
	defer alice.Close()
	bob := must(p2pnode.New(ctx, p2pnode.WithBootstrapPeers(alice.AddrInfo())))
	defer bob.Close()

	sub := must(bob.Subscribe(ctx, "greetings"))
	if err := alice.Publish(ctx, "greetings", []byte("hello, bob")); err != nil {
		log.Fatal(err)
	}
	msg := must(sub.Next(ctx))
	fmt.Printf("%s says %q\n", msg.Author, msg.Data)
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

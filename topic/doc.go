// Package topic gives a topic of a [p2pnode.Node] a Go type: values are published
// and read, and what does not decode never reaches a reader.
//
//	type Greeting struct{ From, Text string }
//
//	greetings, err := topic.Join(node, "greetings", topic.JSON[Greeting]())
//	if err != nil {
//		return err
//	}
//	defer greetings.Close()
//	if err := greetings.Publish(ctx, Greeting{"ada", "hello"}); err != nil {
//		return err
//	}
//	return greetings.Each(ctx, func(ctx context.Context, m topic.Message[Greeting]) error {
//		fmt.Println(m.Author, m.Value.Text)
//		return nil
//	})
//
// # Codecs
//
// A [Codec] makes bytes of values and values of bytes. [JSON] and [StrictJSON] use
// the standard library. Package protocodec has one for protobuf messages, and
// package cborcodec one for CBOR; only programs that import them link them. There
// is nothing else on the wire: a peer that publishes JSON to a topic takes part in
// it, whatever it is written in.
//
// # Validation
//
// A message is decoded once, when it arrives, before anybody gets it or it is sent
// on. One that is larger than [MaxSize], does not decode, or does not pass
// [Validate] is rejected: it is dropped and held against the peer that sent it on,
// which [p2pnode.Node.Status] counts and [p2pnode.Node.Diagnose] reports with the
// peer's ID. The node's own messages are validated too; their error is
// [p2pnode.ErrRejected].
//
// The value of a message is shared by all subscriptions and validators of the
// process: do not modify what it points to, nor what was published.
//
// # Schemas that change
//
// New fields need no version: [JSON], protobuf and CBOR ignore those that they do
// not know. For incompatible changes, [VersionInName] makes each version a topic of
// its own, and [VersionInEnvelope] puts the version in front of each message, so
// that versions share a topic and its mesh, and a node can read several.
package topic

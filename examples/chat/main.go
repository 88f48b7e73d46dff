// Chat is a chat room for the people on one LAN: they find each other by
// multicast DNS and chat on a typed topic. Where multicast does not reach, -ticket
// takes the ticket that somebody else's chat prints.
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
	"sync"
	"time"
	"unicode"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/cli"
	"github.com/go-p2pnode/p2pnode/topic"
)

const (
	maxNick = 32
	maxLine = 1000
)

// line is what people say. Without a text it only announces the nick.
type line struct {
	Nick string `json:"nick"`
	Text string `json:"text,omitempty"`
}

// valid refuses what this program does not send. Everybody checks it, so it does not
// spread.
func valid(_ context.Context, m topic.Message[line]) error {
	if l := m.Value; l.Nick == "" || len(l.Nick) > maxNick || len(l.Text) > maxLine {
		return fmt.Errorf("a nick of %d bytes and a text of %d", len(l.Nick), len(l.Text))
	}
	return nil
}

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	return runWith(ctx, args, os.Stdin, out)
}

func runWith(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	fs := flag.NewFlagSet("chat", flag.ContinueOnError)
	nick := fs.String("nick", "anonymous", "your name")
	name := fs.String("topic", "lobby", "the room")
	listen := fs.String("listen", cli.AnyInterface, "addresses to listen on, separated by commas")
	bootstrap := fs.String("bootstrap", "", "addresses of peers, separated by commas; for networks without multicast")
	ticket := fs.String("ticket", "", "ticket of somebody in the room, as chat prints it; for networks without multicast")
	network := fs.String("network", "example", "name of the network, the same for all")
	mdns := fs.Bool("mdns", true, "find others on the LAN; use -mdns=false on networks without multicast")
	if err := cli.Parse(fs, args, out, "chat is a chat room for the people on one LAN. Type a line to send it; end with ctrl-D."); err != nil {
		return err
	}
	if *nick == "" || len(*nick) > maxNick || printable(*nick) != *nick {
		return cli.Usagef("chat: -nick %q: it must have 1 to %d printable bytes", *nick, maxNick)
	}
	if *name == "" {
		return cli.Usagef("chat: -topic must not be empty")
	}
	opts := append(cli.Join(fs, *network, *ticket), cli.Listen(*listen), cli.Bootstrap(*bootstrap))
	if *mdns {
		opts = append(opts, p2pnode.WithMDNS())
	}
	n, err := p2pnode.New(ctx, opts...)
	var failed *p2pnode.StartError
	if errors.As(err, &failed) && failed.Step == "mdns" {
		return fmt.Errorf("%w (without multicast, use -mdns=false and -ticket)", err)
	}
	if err != nil {
		return cli.Explain(fs, err)
	}
	defer n.Close()
	var readers sync.WaitGroup
	defer readers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := n.Events(ctx) // before the first peer joins the topic
	chat, err := topic.Join(n, *name, topic.JSON[line](), topic.Validate(valid), topic.With(p2pnode.TopicDiscovery(3)))
	if err != nil {
		return err
	}
	sub, err := chat.Subscribe(ctx, p2pnode.SubscribeOthers())
	if err != nil {
		return err
	}
	defer sub.Close()
	fmt.Fprintf(out, "* you are %s (%s) in %s; elsewhere, others join you with one of:\n", *nick, short(n.ID()), *name)
	made, err := n.Ticket()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "*   chat -topic %s -ticket %s\n", *name, made.Text())
	for _, a := range n.Addrs() {
		fmt.Fprintf(out, "*   chat -topic %s -bootstrap %s\n", *name, a)
	}

	happened := make(chan p2pnode.Event)
	readers.Go(func() {
		for ev := range events {
			select {
			case happened <- ev:
			case <-ctx.Done():
				return
			}
		}
	})
	typed := lines(ctx, in)

	// This loop does everything else, so that nothing needs a lock.
	r := &room{chat: chat, nick: *nick, out: out, nicks: make(map[peer.ID]string)}
	for err == nil {
		select {
		case m, ok := <-sub.C():
			if !ok {
				return nil
			}
			r.hear(m)
		case ev := <-happened:
			err = r.happen(ctx, ev)
		case text, ok := <-typed:
			if !ok {
				return nil
			}
			err = r.say(ctx, text)
		case <-ctx.Done():
			return nil
		}
	}
	if ctx.Err() != nil {
		return nil // interrupted in the middle of something
	}
	return err
}

// lines returns the lines of the input. A read cannot be interrupted, so the
// goroutine may remain in one after ctx ends.
func lines(ctx context.Context, in io.Reader) <-chan string {
	ch := make(chan string)
	go func() {
		defer close(ch)
		for s := bufio.NewScanner(in); s.Scan(); {
			select {
			case ch <- s.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	return ch
}

// room is the state of one person's chat.
type room struct {
	chat *topic.Topic[line]
	nick string
	out  io.Writer

	nicks map[peer.ID]string // the authors who have not left
}

// say publishes a line.
func (r *room) say(ctx context.Context, text string) error {
	text = strings.ToValidUTF8(text, "\ufffd") // as JSON does: the others count the bytes of that
	switch {
	case text == "":
		return nil
	case len(text) > maxLine:
		fmt.Fprintf(r.out, "* not sent: a line may have at most %d bytes\n", maxLine)
		return nil
	}
	// Publish waits for a peer on the topic until its context ends.
	wait, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := r.chat.Publish(wait, line{r.nick, text})
	if errors.Is(err, p2pnode.ErrNoPeers) && ctx.Err() == nil {
		fmt.Fprintln(r.out, "* not sent: nobody else is here")
		return nil
	}
	return err
}

// hear prints a message. Anybody can take any nick, so next to it is the
// author's ID, which is proved by a signature.
func (r *room) hear(m topic.Message[line]) {
	who := fmt.Sprintf("%s (%s)", printable(m.Value.Nick), short(m.Author))
	if r.nicks[m.Author] != who {
		r.nicks[m.Author] = who
		fmt.Fprintf(r.out, "* %s is here\n", who)
	}
	if text := m.Value.Text; text != "" {
		fmt.Fprintf(r.out, "%s: %s\n", who, printable(text))
	}
}

// happen announces the nick to peers that join the topic, and prints those that
// leave, and how well the topic is connected.
func (r *room) happen(ctx context.Context, ev p2pnode.Event) error {
	switch ev := ev.(type) {
	case p2pnode.EventTopicPeerJoined:
		if ev.Topic == r.chat.Topic().Name() {
			return r.chat.Publish(ctx, line{Nick: r.nick}, p2pnode.PublishNow())
		}
	case p2pnode.EventTopicPeerLeft:
		who, known := r.nicks[ev.ID]
		if ev.Topic == r.chat.Topic().Name() && known {
			fmt.Fprintf(r.out, "* %s has left\n", who)
			delete(r.nicks, ev.ID)
		}
	case p2pnode.EventTopicHealth:
		if ev.Topic == r.chat.Topic().Name() {
			fmt.Fprintf(r.out, "* connection to the room: %s\n", ev.Health)
		}
	}
	return nil
}

// printable removes characters that could control the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

// short returns the end of a peer ID. The beginning is the same for many.
func short(id peer.ID) string {
	s := id.String()
	return "…" + s[len(s)-6:]
}

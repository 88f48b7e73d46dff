// Labpeer is a peer for the laboratory of internal/natlab: a node of this library,
// or a host of libp2p assembled by hand, that takes commands as lines of JSON on
// standard input, and prints replies and events as lines of JSON.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"
)

func main() {
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// echo is the protocol of streams on which a peer sends back what it receives.
const echo = protocol.ID("/lab/echo/1.0.0")

// Options is what a peer is started with.
type Options struct {
	// Raw is a host of libp2p assembled by hand, with everything switched on.
	Raw bool `json:"raw,omitempty"`
	// Server is a public node: DHT server, relay, AutoNAT.
	Server bool `json:"server,omitempty"`
	// Bootstrap are the addresses of public nodes.
	Bootstrap []string `json:"bootstrap,omitempty"`
	// Relays are those named.
	Relays []string `json:"relays,omitempty"`
	// Traversal is NAT traversal in one word.
	Traversal bool `json:"traversal,omitempty"`
	// MDNS is the discovery of peers on the local network.
	MDNS bool `json:"mdns,omitempty"`
	// Service is the name that it uses there, instead of the network's.
	Service string `json:"service,omitempty"`
	// Network is the name of the network; none: "lab".
	Network string `json:"network,omitempty"`
	// PortMapping asks the router for a port.
	PortMapping bool `json:"portMapping,omitempty"`
	// Log prints the log to standard error.
	Log bool `json:"log,omitempty"`
	// NoAnnounce are prefixes whose addresses are not announced.
	NoAnnounce []netip.Prefix `json:"noAnnounce,omitempty"`
	// ConnRate is how many connections per second there may be with one address; 0 for
	// that of the library.
	ConnRate int `json:"connRate,omitempty"`
	// Listen are the addresses to listen on; none: those of the library.
	Listen []string `json:"listen,omitempty"`
}

// Command is one line of input.
type Command struct {
	ID      int          `json:"id"`
	Do      string       `json:"do"`
	Options Options      `json:"options,omitzero"` // start
	Peer    peer.ID      `json:"peer,omitempty"`
	Addrs   []string     `json:"addrs,omitempty"`  // connect
	Stream  int          `json:"stream,omitempty"` // say, hangup
	Topic   string       `json:"topic,omitempty"`
	Text    string       `json:"text,omitempty"`
	Timeout Milliseconds `json:"timeout,omitempty"`
}

// Milliseconds is a duration in JSON.
type Milliseconds int64

// Reply is a line of output: the answer to a command, or an event.
type Reply struct {
	ID    int    `json:"id,omitempty"` // of the command; 0 for an event
	Error string `json:"error,omitempty"`
	// At is when it was printed.
	At time.Time `json:"at"`

	Peer   peer.ID         `json:"peer,omitempty"`
	Addrs  []string        `json:"addrs,omitempty"`
	Stream int             `json:"stream,omitempty"`
	Text   string          `json:"text,omitempty"`
	Status json.RawMessage `json:"status,omitempty"`
	Peers  []peer.ID       `json:"peers,omitempty"`

	// Path is how a stream or a connection leads to the peer: "relayed", or its
	// transport.
	Path string `json:"path,omitempty"`
	// Opened and Closed are events about connections.
	Opened bool `json:"opened,omitempty"`
	Closed bool `json:"closed,omitempty"`
	// Event is an event of the library.
	Event json.RawMessage `json:"event,omitempty"`
	// Type is its type.
	Type string `json:"type,omitempty"`
}

// node is what the library's node and the one assembled by hand have in common.
type node interface {
	Host() host.Host
	Connect(ctx context.Context, p peer.AddrInfo) error
	OpenStream(ctx context.Context, p peer.ID, protos ...protocol.ID) (network.Stream, error)
	Close() error
}

// server carries out commands.
type server struct {
	out  sync.Mutex
	enc  *json.Encoder
	node node // set by start

	mu      sync.Mutex
	streams []network.Stream // guarded by mu
}

func serve(in io.Reader, out io.Writer) error {
	s := &server{enc: json.NewEncoder(out)}
	lines := bufio.NewScanner(in)
	var calls sync.WaitGroup
	defer calls.Wait()
	for lines.Scan() {
		var c Command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), err)
		}
		if c.Do == "start" || c.Do == "close" {
			s.answer(c)
			continue
		}
		calls.Go(func() { s.answer(c) })
	}
	return lines.Err()
}

func (s *server) emit(r Reply) {
	r.At = time.Now()
	s.out.Lock()
	defer s.out.Unlock()
	_ = s.enc.Encode(r) // if nobody reads, this process is about to end
}

func (s *server) answer(c Command) {
	r, err := s.do(c)
	r.ID = c.ID
	if err != nil {
		r.Error = err.Error()
	}
	s.emit(r)
}

func forgets(ctx context.Context, h host.Host, id peer.ID, text string) error {
	sub, err := h.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		all := h.Peerstore().Addrs(id)
		if !slices.ContainsFunc(all, func(a ma.Multiaddr) bool { return strings.Contains(a.String(), text) }) {
			return nil
		}
		select {
		case <-sub.Out():
		case <-ctx.Done():
			return fmt.Errorf("it knows %v: %w", all, ctx.Err())
		}
	}
}

func (s *server) do(c Command) (r Reply, err error) {
	timeout := time.Minute
	if c.Timeout > 0 {
		timeout = time.Duration(c.Timeout) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if s.node == nil && c.Do != "start" {
		return r, fmt.Errorf("%s before start", c.Do)
	}
	switch c.Do {
	case "start":
		if c.Options.Raw {
			s.node, err = startRaw(ctx, c.Options)
		} else {
			s.node, err = s.startNode(ctx, c.Options)
		}
		if err != nil {
			return r, err
		}
		s.watch()
		r.Peer = s.node.Host().ID()
		return r, nil
	case "addrs":
		for _, a := range s.node.Host().Addrs() {
			r.Addrs = append(r.Addrs, fmt.Sprintf("%s/p2p/%s", a, s.node.Host().ID()))
		}
		return r, nil
	case "known": // addresses of another peer
		for _, a := range s.node.Host().Peerstore().Addrs(c.Peer) {
			r.Addrs = append(r.Addrs, a.String())
		}
		return r, nil
	case "forgets": // waits until no address of another peer has the text in it
		return r, forgets(ctx, s.node.Host(), c.Peer, c.Text)
	case "connect":
		to := peer.AddrInfo{ID: c.Peer}
		for _, a := range c.Addrs {
			m, err := ma.NewMultiaddr(a)
			if err != nil {
				return r, err
			}
			m, _ = peer.SplitAddr(m)
			to.Addrs = append(to.Addrs, m)
		}
		if err := s.node.Connect(ctx, to); err != nil {
			return r, err
		}
		for _, conn := range s.node.Host().Network().ConnsToPeer(c.Peer) {
			r.Path = path(conn)
		}
		return r, nil
	case "open":
		st, err := s.node.OpenStream(ctx, c.Peer, echo)
		if err != nil {
			return r, err
		}
		s.mu.Lock()
		s.streams = append(s.streams, st)
		r.Stream = len(s.streams)
		s.mu.Unlock()
		r.Path = path(st.Conn())
		return r, nil
	case "say":
		st := s.stream(c.Stream)
		if st == nil {
			return r, fmt.Errorf("stream %d was not opened", c.Stream)
		}
		r.Path = path(st.Conn())
		deadline, _ := ctx.Deadline()
		if err := st.SetDeadline(deadline); err != nil {
			return r, err
		}
		if _, err := io.WriteString(st, c.Text); err != nil {
			return r, err
		}
		b := make([]byte, len(c.Text))
		_, err := io.ReadFull(st, b)
		r.Text = string(b)
		return r, err
	case "hangup":
		if st := s.stream(c.Stream); st != nil {
			return r, st.Close()
		}
		return r, nil
	case "ping":
		rtt := ping.Ping(network.WithNoDial(ctx, "lab"), s.node.Host(), c.Peer)
		select {
		case got := <-rtt:
			return r, got.Error
		case <-ctx.Done():
			return r, ctx.Err()
		}
	case "disconnect":
		return r, s.node.Host().Network().ClosePeer(c.Peer)
	case "close":
		return r, s.node.Close()
	}
	if n, ok := s.node.(*libraryNode); ok {
		return n.do(ctx, c)
	}
	return r, fmt.Errorf("%q: no such command", c.Do)
}

func (s *server) stream(n int) network.Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n < 1 || n > len(s.streams) {
		return nil
	}
	return s.streams[n-1]
}

// watch prints connections that open and close.
func (s *server) watch() {
	s.node.Host().Network().Notify(&network.NotifyBundle{
		ConnectedF: func(_ network.Network, c network.Conn) {
			s.emit(Reply{Peer: c.RemotePeer(), Path: path(c), Addrs: []string{c.RemoteMultiaddr().String()}, Opened: true})
		},
		DisconnectedF: func(_ network.Network, c network.Conn) {
			s.emit(Reply{Peer: c.RemotePeer(), Path: path(c), Addrs: []string{c.RemoteMultiaddr().String()}, Closed: true})
		},
	})
}

// path is "relayed", or the transport of a connection.
func path(c network.Conn) string {
	if _, err := c.RemoteMultiaddr().ValueForProtocol(ma.P_CIRCUIT); err == nil {
		return "relayed"
	}
	return c.ConnState().Transport
}

// answerEcho serves the protocol echo.
func answerEcho(s network.Stream) error {
	_, err := io.Copy(s, s)
	return err
}

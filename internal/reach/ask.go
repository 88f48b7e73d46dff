package reach

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2/pb"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

const (
	// askTimeout bounds one question: a server dials for up to 10 seconds, and may wait
	// 3 seconds before.
	askTimeout = 15 * time.Second
	// backTimeout is how long the dial-back may come after the answer.
	backTimeout = 5 * time.Second
	// Sizes of messages, and how much a server may ask for before it dials an address
	// that is not the one this node's connection comes from: as in upstream and the
	// specification.
	maxAnswer, maxBack = 8192, 1024
	maxData, dataChunk = 100_000, 4000
)

// answer is what a server found out about an address.
type answer int

const (
	refused answer = iota // it cannot dial such addresses
	failed
	dialed
)

var errUnusable = errors.New("the server's answer is unusable")

// asker asks servers of AutoNAT v2 to dial one address. Upstream's client
// (autonatv2.AutoNAT.GetReachability, v0.51) chooses the server by chance, and asks
// each only once in two minutes, for all addresses together: in a network of three
// nodes it would take half an hour to know about six.
type asker struct {
	host *nethost.Host

	mu    sync.Mutex
	waits map[uint64]*wait // by nonce; guarded by mu
}

// wait is a dial-back that is expected.
type wait struct {
	addr  ma.Multiaddr
	since time.Time
	came  chan struct{}
}

func newAsker(h *nethost.Host) *asker { return &asker{host: h, waits: make(map[uint64]*wait)} }

// ask asks a server that is connected directly to dial an address of this node.
func (a *asker) ask(ctx context.Context, id peer.ID, addr ma.Multiaddr) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	s, err := a.host.NewStream(network.WithNoDial(ctx, "autonat"), id, autonatv2.DialProtocol)
	if err != nil {
		return refused, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	if err := s.Scope().SetService(autonatv2.ServiceName); err != nil {
		return refused, errors.Join(err, s.Reset())
	}
	w := &wait{addr: addr, since: time.Now(), came: make(chan struct{}, 1)}
	nonce := rand.Uint64()
	a.mu.Lock()
	a.waits[nonce] = w
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.waits, nonce)
		a.mu.Unlock()
	}()
	resp, err := exchange(s, addr, nonce)
	if err != nil {
		return refused, errors.Join(err, s.Reset())
	}
	_ = s.Close() // the answer is complete
	return w.judge(ctx, resp)
}

// exchange sends the question and returns the answer, after the data that the server
// may want first.
func exchange(s io.ReadWriter, addr ma.Multiaddr, nonce uint64) (*pb.DialResponse, error) {
	question := &pb.Message{Msg: &pb.Message_DialRequest{DialRequest: &pb.DialRequest{Addrs: [][]byte{addr.Bytes()}, Nonce: nonce}}}
	if _, err := protodelim.MarshalTo(s, question); err != nil {
		return nil, err
	}
	in, limit := bufio.NewReader(s), protodelim.UnmarshalOptions{MaxSize: maxAnswer}
	var msg pb.Message
	if err := limit.UnmarshalFrom(in, &msg); err != nil {
		return nil, err
	}
	if want := msg.GetDialDataRequest(); want != nil {
		if want.GetAddrIdx() != 0 || want.GetNumBytes() > maxData {
			return nil, fmt.Errorf("%w: it wants %d bytes for address %d", errUnusable, want.GetNumBytes(), want.GetAddrIdx())
		}
		for left := int(want.GetNumBytes()); left > 0; left -= dataChunk {
			data := &pb.Message{Msg: &pb.Message_DialDataResponse{DialDataResponse: &pb.DialDataResponse{Data: make([]byte, min(max(left, 128), dataChunk))}}}
			if _, err := protodelim.MarshalTo(s, data); err != nil {
				return nil, err
			}
		}
		msg.Reset()
		if err := limit.UnmarshalFrom(in, &msg); err != nil {
			return nil, err
		}
	}
	resp := msg.GetDialResponse()
	if resp == nil || resp.GetAddrIdx() != 0 {
		return nil, fmt.Errorf("%w: it is a %T for address %d", errUnusable, msg.GetMsg(), resp.GetAddrIdx())
	}
	return resp, nil
}

// judge turns a server's words into an answer. That it has dialed is believed only if
// the dial-back came in at the address.
func (w *wait) judge(ctx context.Context, resp *pb.DialResponse) (answer, error) {
	switch resp.GetStatus() {
	case pb.DialResponse_OK:
	case pb.DialResponse_E_DIAL_REFUSED:
		return refused, nil
	default:
		return refused, fmt.Errorf("the server answers %s", resp.GetStatus())
	}
	switch resp.GetDialStatus() {
	case pb.DialStatus_E_DIAL_ERROR:
		return failed, nil
	case pb.DialStatus_OK, pb.DialStatus_E_DIAL_BACK_ERROR:
	default:
		return refused, fmt.Errorf("%w: dial status %s", errUnusable, resp.GetDialStatus())
	}
	timer := time.NewTimer(backTimeout)
	defer timer.Stop()
	select {
	case <-w.came:
		return dialed, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	return refused, fmt.Errorf("%w: no dial-back came", errUnusable)
}

// handle takes a dial-back.
func (a *asker) handle(s network.Stream) {
	defer func() { _ = s.Reset() }()
	if s.Scope().SetService(autonatv2.ServiceName) != nil || s.SetDeadline(time.Now().Add(backTimeout)) != nil {
		return
	}
	var msg pb.DialBack
	if (protodelim.UnmarshalOptions{MaxSize: maxBack}).UnmarshalFrom(bufio.NewReader(s), &msg) != nil {
		return
	}
	a.mu.Lock()
	w := a.waits[msg.GetNonce()]
	a.mu.Unlock()
	c := s.Conn()
	// A connection that was open before, or that this node made, shows nothing.
	if w == nil || c.Stat().Direction != network.DirInbound || c.Stat().Opened.Before(w.since) || !arrived(c.LocalMultiaddr(), w.addr) {
		return
	}
	select {
	case w.came <- struct{}{}:
	default:
	}
	if _, err := protodelim.MarshalTo(s, &pb.DialBackResponse{}); err != nil {
		return
	}
	_ = s.CloseWrite()
	// The server closes the connection when it has the answer. Until then a stream to a
	// server that is also a peer may be opened on it, and fail: be quick.
	_, _ = io.Copy(io.Discard, io.LimitReader(s, maxBack))
}

// arrived reports whether a connection to a local address may be one to an address of
// the node: NATs change the IP and the port, but not the protocols.
func arrived(local, addr ma.Multiaddr) bool {
	return len(local) > 0 && len(addr) > 0 && addrs.KindOf(local) == addrs.KindOf(addr) &&
		(addrs.IsName(addr) || addrs.IsIP6(local) == addrs.IsIP6(addr))
}

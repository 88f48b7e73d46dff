package kad

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/test"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/golden"
	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/nethost/hosttest"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func testContext(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	tb.Cleanup(cancel)
	return ctx
}

func newHost(tb testing.TB) *nethost.Host {
	tb.Helper()
	return hosttest.New(tb, ma.StringCast("/ip4/127.0.0.1/tcp/0"))
}

// newDHT starts a DHT of the network /test.
func newDHT(tb testing.TB, change ...func(*Config)) *DHT {
	tb.Helper()
	cfg := Config{
		Host: newHost(tb), Prefix: "/test", Mode: dht.ModeServer, Log: slog.New(slog.DiscardHandler),
		Changed: new(signal.Signal), Recovered: new(signal.Signal), Announced: func(cid.Cid, time.Duration, error) {}, Progress: func(Progress) {},
	}
	for _, f := range change {
		f(&cfg)
	}
	d, err := New(tb.Context(), cfg)
	must(tb, err)
	tb.Cleanup(func() { must(tb, d.Close()) })
	return d
}

func newID(tb testing.TB) peer.ID {
	tb.Helper()
	id, err := test.RandPeerID()
	must(tb, err)
	return id
}

// meet connects a DHT to a host, and waits until that is in the routing table.
func meet(tb testing.TB, d *DHT, h *nethost.Host) {
	tb.Helper()
	ctx := testContext(tb)
	must(tb, d.cfg.Host.Connect(ctx, hosttest.Info(h)))
	for {
		changed := d.cfg.Changed.Wait()
		for _, t := range d.tables {
			if t.RoutingTable().Find(h.ID()) != "" {
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			tb.Fatal("the peer does not come into the routing table")
		}
	}
}

// scripted is a peer with scripted responses to DHT queries; without one it resets
// the stream.
func scripted(tb testing.TB, answer func(*pb.Message) *pb.Message) *nethost.Host {
	tb.Helper()
	return scriptedAs(tb, "/test/kad/1.0.0", answer)
}

func scriptedAs(tb testing.TB, p protocol.ID, answer func(*pb.Message) *pb.Message) *nethost.Host {
	tb.Helper()
	h := newHost(tb)
	h.SetStreamHandler(p, func(s network.Stream) {
		r := bufio.NewReader(s)
		for {
			var m pb.Message
			if protodelim.UnmarshalFrom(r, &m) != nil {
				_ = s.Reset()
				return
			}
			reply := answer(&m)
			if reply == nil {
				_ = s.Reset()
				return
			}
			if m.Type == pb.Message_ADD_PROVIDER {
				continue // which has no reply
			}
			if _, err := protodelim.MarshalTo(s, reply); err != nil {
				_ = s.Reset()
				return
			}
		}
	})
	return h
}

// names is a peer that names the providers for every key, and of the peers
// known those it is asked for.
func names(tb testing.TB, providers []peer.AddrInfo, known ...peer.AddrInfo) *nethost.Host {
	return scripted(tb, func(m *pb.Message) *pb.Message {
		reply := pb.NewMessage(m.Type, m.Key, 0)
		switch m.Type {
		case pb.Message_GET_PROVIDERS:
			reply.ProviderPeers = pb.RawPeerInfosToPBPeers(providers)
		case pb.Message_FIND_NODE:
			for _, k := range known {
				if string(k.ID) == string(m.Key) {
					reply.CloserPeers = pb.RawPeerInfosToPBPeers([]peer.AddrInfo{k})
				}
			}
		}
		return reply
	})
}

func search(tb testing.TB, d *DHT, s Search) (found []peer.AddrInfo, err error) {
	tb.Helper()
	for ai, e := range d.FindProviders(testContext(tb), NamespaceCID("x"), s) {
		switch {
		case err != nil:
			tb.Error("a pair follows the error")
		case e != nil:
			err = e
		default:
			found = append(found, ai)
		}
	}
	return found, err
}

func living(tb testing.TB) peer.AddrInfo {
	return peer.AddrInfo{ID: newID(tb), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/4001")}}
}

// Providers without addresses do not delay others, however many come first and
// however long their lookups take, and break ends these.
func TestBareProvidersDelayNobody(t *testing.T) {
	var list []peer.AddrInfo
	for range 40 {
		list = append(list, peer.AddrInfo{ID: newID(t)})
	}
	want := living(t)
	list = append(list, want)
	block := make(chan struct{})
	defer close(block)
	var searching atomic.Bool
	h := scripted(t, func(m *pb.Message) *pb.Message {
		reply := pb.NewMessage(m.Type, m.Key, 0)
		switch m.Type {
		case pb.Message_GET_PROVIDERS:
			searching.Store(true)
			reply.ProviderPeers = pb.RawPeerInfosToPBPeers(list)
		case pb.Message_FIND_NODE:
			if searching.Load() {
				<-block
			}
		}
		return reply
	})
	d := newDHT(t)
	meet(t, d, h)
	found := 0
	for ai, err := range d.FindProviders(testContext(t), NamespaceCID("x"), Search{}) {
		must(t, err)
		if ai.ID != want.ID {
			t.Errorf("the first is %v", ai)
		}
		found++
		break
	}
	if found != 1 {
		t.Error("nobody is found")
	}
}

func TestAddressesOfProvidersAreLookedUp(t *testing.T) {
	hidden, unknown, plain := living(t), newID(t), living(t)
	h := names(t, []peer.AddrInfo{{ID: hidden.ID}, {ID: unknown}, plain, plain}, hidden)
	for _, row := range []struct {
		search Search
		want   []peer.ID
	}{
		{Search{}, []peer.ID{hidden.ID, plain.ID}},
		{Search{WithoutAddrs: true}, []peer.ID{hidden.ID, plain.ID, unknown}},
		{Search{Limit: 1}, []peer.ID{plain.ID}},
		{Search{Limit: 2}, []peer.ID{hidden.ID, plain.ID}},
	} {
		d := newDHT(t)
		meet(t, d, h)
		found, err := search(t, d, row.search)
		must(t, err)
		got := make(map[peer.ID]bool)
		for _, ai := range found {
			if got[ai.ID] {
				t.Errorf("%+v: %s comes twice", row.search, ai.ID)
			}
			got[ai.ID] = true
			if (len(ai.Addrs) == 0) != (ai.ID == unknown) {
				t.Errorf("%+v: %v", row.search, ai)
			}
		}
		for _, id := range row.want {
			if !got[id] {
				t.Errorf("%+v: %s is missing", row.search, id)
			}
		}
		if len(got) != len(row.want) {
			t.Errorf("%+v: found %v", row.search, found)
		}
	}
}

// The Internet's and the LAN's DHT are searched at once: neither waits for the
// other.
func TestBothDHTsAreSearchedAtOnce(t *testing.T) {
	d := newDHT(t, func(c *Config) { c.Layout = Two })
	for _, row := range []struct{ slow, fast protocol.ID }{
		{"/test/kad/1.0.0", "/test/lan/kad/1.0.0"},
		{"/test/lan/kad/1.0.0", "/test/kad/1.0.0"},
	} {
		key := NamespaceCID(string(row.slow))
		release := make(chan struct{})
		answering := func(who peer.AddrInfo, wait <-chan struct{}) func(*pb.Message) *pb.Message {
			return func(m *pb.Message) *pb.Message {
				reply := pb.NewMessage(m.Type, m.Key, 0)
				if m.Type == pb.Message_GET_PROVIDERS && string(m.Key) == string(key.Hash()) {
					if wait != nil {
						<-wait
					}
					reply.ProviderPeers = pb.RawPeerInfosToPBPeers([]peer.AddrInfo{who})
				}
				return reply
			}
		}
		first, second := living(t), living(t)
		meet(t, d, scriptedAs(t, row.slow, answering(second, release)))
		meet(t, d, scriptedAs(t, row.fast, answering(first, nil)))
		var found []peer.ID
		for ai, err := range d.FindProviders(testContext(t), key, Search{}) {
			must(t, err)
			if found = append(found, ai.ID); len(found) == 1 {
				close(release)
			}
		}
		if !slices.Equal(found, []peer.ID{first.ID, second.ID}) {
			t.Errorf("found %v, want %s and %s", found, first.ID, second.ID)
		}
	}
}

// Direct addresses come before relayed ones, and on request so do the peers that
// have them.
func TestDirectBeforeRelayed(t *testing.T) {
	direct, relay := living(t).Addrs[0], newID(t)
	circuit := ma.StringCast("/ip4/127.0.0.1/tcp/4002/p2p/" + relay.String() + "/p2p-circuit")
	both, far, bare := peer.AddrInfo{ID: newID(t), Addrs: []ma.Multiaddr{circuit, direct}}, peer.AddrInfo{ID: newID(t), Addrs: []ma.Multiaddr{circuit}}, peer.AddrInfo{ID: newID(t)}
	d := newDHT(t)
	meet(t, d, names(t, []peer.AddrInfo{bare, far, both}))
	for _, row := range []struct {
		search Search
		want   []peer.ID
	}{
		{Search{DirectFirst: true, WithoutAddrs: true}, []peer.ID{both.ID, far.ID, bare.ID}},
		{Search{DirectFirst: true, WithoutAddrs: true, Limit: 2}, []peer.ID{both.ID, far.ID}},
		{Search{DirectFirst: true, Limit: 1}, []peer.ID{both.ID}},
	} {
		found, err := search(t, d, row.search)
		must(t, err)
		var got []peer.ID
		for _, ai := range found {
			got = append(got, ai.ID)
			if ai.ID == both.ID && !(len(ai.Addrs) == 2 && ai.Addrs[0].Equal(direct)) {
				t.Errorf("%+v: the addresses are %v", row.search, ai.Addrs)
			}
		}
		if !slices.Equal(got, row.want) {
			t.Errorf("%+v: found %v, want %v", row.search, got, row.want)
		}
	}
}

// It is an error if no peer responds, but not if none has the value.
func TestNobodyIsNotNoAnswer(t *testing.T) {
	d := newDHT(t)
	meet(t, d, names(t, nil))
	if found, err := search(t, d, Search{}); err != nil || len(found) > 0 {
		t.Errorf("found %v, %v", found, err)
	}
	if _, err := d.FindPeer(testContext(t), newID(t)); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("FindPeer = %v", err)
	}
	if _, err := d.GetValue(testContext(t), "/pk/"+string(newID(t))); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("GetValue = %v", err)
	}

	for what, lookup := range map[string]func(*DHT) error{
		"FindProviders": func(d *DHT) error { _, err := search(t, d, Search{}); return err },
		"FindPeer":      func(d *DHT) error { _, err := d.FindPeer(testContext(t), newID(t)); return err },
		"GetValue": func(d *DHT) error {
			_, err := d.GetValue(testContext(t), "/pk/"+string(newID(t)))
			return err
		},
	} {
		var mute atomic.Bool
		d := newDHT(t)
		meet(t, d, scripted(t, func(m *pb.Message) *pb.Message {
			if mute.Load() {
				return nil
			}
			return pb.NewMessage(m.Type, m.Key, 0)
		}))
		mute.Store(true)
		if err := lookup(d); !errors.Is(err, errs.ErrNoPeers) {
			t.Errorf("%s with nobody who answers = %v", what, err)
		}
	}
}

// The texts for failures of other peers, and for faulty validators.
func TestGoldenKad(t *testing.T) {
	takes := scripted(t, func(m *pb.Message) *pb.Message { return pb.NewMessage(m.Type, m.Key, 0) })
	d := newDHT(t)
	meet(t, d, takes)
	provide := d.announce(testContext(t), NamespaceCID("x"))
	wrong := guard{mad{}, "app", slog.New(slog.DiscardHandler)}
	_, selects := wrong.Select("/app/x", [][]byte{nil})
	golden.Check(t, "DHT, other peers", []golden.Text{
		golden.Of("provide: taken and not kept", provide),
		golden.Of("nobody answers", d.unanswered()),
		golden.Of("a validator panics", wrong.Validate("/app/x", nil)),
		golden.Of("a validator selects what is not there", selects),
	}, takes.ID().String(), "ID")
}

// mad is a validator that panics, and selects an index out of range.
type mad struct{}

func (mad) Validate(string, []byte) error        { panic("mad") }
func (mad) Select(string, [][]byte) (int, error) { return 7, nil }

// Peer IDs of absurd length are neither asked, nor kept, nor yielded.
func TestAbsurdPeerIDs(t *testing.T) {
	long := peer.ID(make([]byte, 60<<10))
	want := living(t)
	h := names(t, []peer.AddrInfo{{ID: long, Addrs: want.Addrs}, {ID: ""}, want}, peer.AddrInfo{ID: long, Addrs: want.Addrs})
	d := newDHT(t)
	meet(t, d, h)
	found, err := search(t, d, Search{WithoutAddrs: true})
	if err != nil || len(found) != 1 || found[0].ID != want.ID {
		t.Errorf("found %d, %v", len(found), err)
	}
	yes := func(any, peer.AddrInfo) bool { return true }
	for id, ok := range map[peer.ID]bool{long: false, "": false, want.ID: true} {
		if queryFilter(nil)(nil, peer.AddrInfo{ID: id}) != ok || queryFilter(yes)(nil, peer.AddrInfo{ID: id}) != ok || tableFilter(nil)(nil, id) != ok {
			t.Errorf("an ID of %d bytes is not judged %v", len(id), ok)
		}
	}
	no := func(any, peer.ID) bool { return false }
	if tableFilter(no)(nil, want.ID) {
		t.Error("the filter of the network is not asked")
	}
}

// A record of the maximum size fits into a message with all other fields.
func TestMaxRecord(t *testing.T) {
	for _, key := range []string{"/app/x", "/app/" + string(make([]byte, 1000))} {
		limit := MaxRecord(key)
		rec := record.MakePutRecord(key, make([]byte, limit))
		rec.TimeReceived = time.Now().UTC().Format(time.RFC3339Nano)
		m := pb.NewMessage(pb.Message_GET_VALUE, []byte(key), 0)
		m.Record = rec
		for range closerPeers {
			// One address fills the record to the byte, but for its own tags.
			m.CloserPeers = append(m.CloserPeers, &pb.Message_Peer{Id: make([]byte, pb.MaxPeerRecordSize-3)})
		}
		if size := proto.Size(m); size > network.MessageSizeMax || size < network.MessageSizeMax-64 {
			t.Errorf("a key of %d bytes: the message has %d of %d", len(key), size, network.MessageSizeMax)
		}
	}
}

type anything struct{}

func (anything) Validate(string, []byte) error        { return nil }
func (anything) Select(string, [][]byte) (int, error) { return 0, nil }

func TestSizesOfRecords(t *testing.T) {
	app := func(c *Config) { c.Validators = map[string]record.Validator{"app": anything{}} }
	a, b := newDHT(t, app), newDHT(t, app)
	meet(t, a, b.cfg.Host.(*nethost.Host))
	ctx := testContext(t)
	if err := a.PutValue(ctx, "/app/x", make([]byte, MaxRecord("/app/x")+1)); !errors.Is(err, errs.ErrTooLarge) {
		t.Errorf("a record above the limit: %v", err)
	}
	if err := a.PutValue(ctx, "/app/x", nil); err == nil {
		t.Error("an empty record is stored")
	}
	long := "/app/" + string(make([]byte, network.MessageSizeMax))
	if err := a.PutValue(ctx, long, []byte("v")); !errors.Is(err, errs.ErrTooLarge) {
		t.Errorf("a key above the limit: %v", err)
	}
	if _, err := a.GetValue(ctx, long); !errors.Is(err, errs.ErrTooLarge) {
		t.Errorf("a key above the limit: %v", err)
	}
	if a.Size() != 1 {
		t.Error("the routing table has lost the peer")
	}
	must(t, a.PutValue(ctx, "/app/x", make([]byte, MaxRecord("/app/x"))))
	if got, err := b.GetValue(ctx, "/app/x"); err != nil || len(got) != MaxRecord("/app/x") {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

type panicking struct{}

func (panicking) Validate(string, []byte) error        { panic("no") }
func (panicking) Select(string, [][]byte) (int, error) { panic("no") }

type outOfRange struct{ anything }

func (outOfRange) Select(string, [][]byte) (int, error) { return 7, nil }

func TestAttackValidatorsAreGuarded(t *testing.T) {
	v := Validators(newHost(t), map[string]record.Validator{"panic": panicking{}, "range": outOfRange{}}, slog.New(slog.DiscardHandler))
	if err := v.Validate("/panic/x", []byte("v")); err == nil {
		t.Error("a validator that panics accepts the record")
	}
	for _, key := range []string{"/panic/x", "/range/x"} {
		if _, err := v.Select(key, [][]byte{[]byte("v")}); err == nil {
			t.Errorf("%s: a record is selected", key)
		}
	}
	// The application's options do not write into each other's.
	d := newDHT(t, func(c *Config) { c.Layout = Two; c.Options = make([]dht.Option, 0, 8) })
	if want := []protocol.ID{"/test/kad/1.0.0", "/test/lan/kad/1.0.0"}; len(d.Protocols()) != 2 || d.Protocols()[0] != want[0] || d.Protocols()[1] != want[1] || !d.Serves() {
		t.Errorf("it serves %v", d.Protocols())
	}
}

// What was provided is announced again when there are peers again, and again
// when the first announcements fail.
func TestAnnouncedAgain(t *testing.T) {
	announced := make(chan error, 100)
	d := newDHT(t, func(c *Config) { c.Announced = func(_ cid.Cid, _ time.Duration, err error) { announced <- err } })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := NamespaceCID("x")
	if err := d.Provide(ctx, c); !errors.Is(err, ErrEmptyTable) || !errors.Is(err, context.Canceled) {
		t.Errorf("Provide with nobody there = %v", err)
	}
	if err := <-announced; !errors.Is(err, ErrEmptyTable) {
		t.Errorf("it is told that %v", err)
	}
	var asked, held atomic.Bool
	meet(t, d, scripted(t, func(m *pb.Message) *pb.Message {
		reply := pb.NewMessage(m.Type, m.Key, 0)
		switch {
		case m.Type == pb.Message_GET_PROVIDERS && !asked.Swap(true):
			// The first time it does not hold the record.
		case m.Type == pb.Message_GET_PROVIDERS && held.Load():
			reply.ProviderPeers = pb.RawPeerInfosToPBPeers([]peer.AddrInfo{{ID: d.self}})
		case m.Type == pb.Message_ADD_PROVIDER:
			held.Store(true)
		}
		return reply
	}))
	d.cfg.Recovered.Notify()
	if err := <-announced; !errors.Is(err, errs.ErrNoPeers) {
		t.Errorf("a record that nobody keeps: %v", err)
	}
	if err := <-announced; err != nil {
		t.Errorf("the second time: %v", err)
	}
}

func TestEndsWithTheNode(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	d, err := New(ctx, Config{
		Host: newHost(t), Prefix: "/test", Mode: dht.ModeServer, Log: slog.New(slog.DiscardHandler),
		Changed: new(signal.Signal), Recovered: new(signal.Signal), Announced: func(cid.Cid, time.Duration, error) {}, Progress: func(Progress) {},
	})
	must(t, err)
	done := make(chan error, 1)
	go func() { _, err := search(t, d, Search{}); done <- err }()
	cancel()
	if err := <-done; !errors.Is(err, errs.ErrClosed) {
		t.Errorf("a search on a closing node = %v", err)
	}
	must(t, d.Close())
	if err := d.Advertise(t.Context(), "x"); !errors.Is(err, errs.ErrClosed) {
		t.Errorf("Advertise after Close = %v", err)
	}
}

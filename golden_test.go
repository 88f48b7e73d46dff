package p2pnode

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/access"
	"github.com/go-p2pnode/p2pnode/internal/golden"
)

// result is the error of a call that also returns a value.
func result[T any](_ T, err error) error { return err }

// last is the error with which a search ends.
func last[T any](search iter.Seq2[T, error]) (err error) {
	for _, err = range search { // the last pair has it
	}
	return err
}

// bare starts a node on loopback without the DHT, pubsub and relays.
func bare(t *testing.T, opts ...Option) *Node {
	t.Helper()
	return newNode(t, append([]Option{WithoutDHT(), WithoutPubSub(), WithoutRelay()}, opts...)...)
}

// The texts of every option's own check, in the order of the table.
func TestGoldenOptions(t *testing.T) {
	var texts []golden.Text
	for _, row := range optionRows(t) {
		if row.check != nil {
			continue
		}
		for _, e := range OptionErrors(ValidateOptions(row.opt)) {
			if e.Option == row.name {
				texts = append(texts, golden.Of(row.name, e))
			}
		}
	}
	one := WithValidator("a", longest{})
	for _, e := range OptionErrors(ValidateOptions(one, one)) {
		texts = append(texts, golden.Of(e.Option+", twice", e))
	}
	golden.Check(t, "options", texts)
}

// The texts of the relations between options, as conflicts.go and validate.go have
// them: the first line names the options involved.
func TestGoldenRelations(t *testing.T) {
	var texts []golden.Text
	for _, c := range conflicts {
		texts = append(texts, golden.Text{Name: c.option + ", " + c.with, Text: c.option + ": " + c.text})
	}
	for _, r := range relations {
		texts = append(texts, golden.Text{Name: strings.Join(r.with, ", "), Text: r.with[0] + ": " + r.text})
	}
	golden.Check(t, "options together", texts)
}

func TestGoldenErrors(t *testing.T) {
	cause := errors.New("cause")
	golden.Check(t, "errors", []golden.Text{
		{Name: "ErrClosed", Text: ErrClosed.Error()},
		{Name: "ErrDisabled", Text: ErrDisabled.Error()},
		{Name: "ErrNoPeers", Text: ErrNoPeers.Error()},
		{Name: "ErrNotReady", Text: ErrNotReady.Error()},
		{Name: "ErrNotFound", Text: ErrNotFound.Error()},
		{Name: "ErrBanned", Text: ErrBanned.Error()},
		{Name: "ErrTooLarge", Text: ErrTooLarge.Error()},
		{Name: "ErrProtocolInUse", Text: ErrProtocolInUse.Error()},
		{Name: "disabled", Text: disabled("the DHT", "leave WithoutDHT out").Error()},
		{Name: "OptionError", Text: (&OptionError{"WithX", cause}).Error()},
		{Name: "StartError", Text: (&StartError{"host", cause}).Error()},
		{Name: "ListenError", Text: (&ListenError{ma.StringCast("/ip4/127.0.0.1/tcp/1"), cause}).Error()},
	})
}

// The texts of New for problems that only the start finds.
func TestGoldenStart(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode fs.FileMode) string {
		file := filepath.Join(dir, name)
		mustNot(t, os.WriteFile(file, []byte(content), 0o600))
		mustNot(t, os.Chmod(file, mode))
		return file
	}
	key := someKey(t)
	id, err := PeerID(key)
	mustNot(t, err)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	mustNot(t, err)
	defer mustClose(t, l)
	taken := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	p, err := net.ListenPacket("udp4", "127.0.0.1:0")
	mustNot(t, err)
	defer mustClose(t, p)
	takenUDP := fmt.Sprint(p.LocalAddr().(*net.UDPAddr).Port)
	held := bare(t, WithDataDir(filepath.Join(dir, "held")))
	badIdentity := filepath.Join(dir, "badIdentity")
	mustNot(t, os.Mkdir(badIdentity, 0o700))
	write(filepath.Join("badIdentity", identityName), "nonsense", 0o600)
	open := filepath.Join(dir, "open")
	mustNot(t, os.Mkdir(open, 0o700))
	mustNot(t, os.Chmod(open, 0o777))

	var texts []golden.Text
	for _, row := range []struct {
		name string
		opts []Option
	}{
		{"identity file: no key", []Option{WithIdentityFile(write("broken", "nonsense", 0o600))}},
		{"identity file: open to others", []Option{WithIdentityFile(write("shared", "nonsense", 0o644))}},
		{"identity file: no directory", []Option{WithIdentityFile(filepath.Join(dir, "no", "key"))}},
		{"identity file: a directory", []Option{WithIdentityFile(dir)}},
		{"identity file: empty", []Option{WithIdentityFile(write("empty", "", 0o600))}},
		{"identity file: too large", []Option{WithIdentityFile(write("large", strings.Repeat("x", 1<<20), 0o600))}},
		{"data directory: open elsewhere", []Option{WithDataDir(filepath.Dir(held.data.dir.Path("x")))}},
		{"data directory: no key in it", []Option{WithDataDir(badIdentity)}},
		{"data directory: a file", []Option{WithDataDir(write("file", "", 0o600))}},
		{"data directory: open to everybody", []Option{WithDataDir(open)}},
		{"banned: itself", []Option{WithIdentity(key), WithBannedPeers(id)}},
		{"listen: the port is taken", []Option{WithListenAddrs("/ip4/127.0.0.1/tcp/" + taken)}},
		{"listen: the port is taken, WebSocket", []Option{WithListenAddrs("/ip4/127.0.0.1/tcp/" + taken + "/ws")}},
		{"listen: the port is taken, QUIC", []Option{WithListenAddrs("/ip4/127.0.0.1/udp/" + takenUDP + "/quic-v1")}},
		{"listen: both ports are taken, and some would do", []Option{
			WithListenAddrs("/ip4/127.0.0.1/tcp/"+taken, "/ip4/127.0.0.1/udp/"+takenUDP+"/quic-v1"), WithPartialListen(),
		}},
	} {
		opts := append([]Option{WithoutDHT(), WithoutPubSub()}, row.opts...)
		if !strings.HasPrefix(row.name, "listen") {
			opts = append(opts, WithoutListening())
		}
		n, err := New(testContext(t), opts...)
		if err == nil {
			mustClose(t, n)
			t.Errorf("%s: started", row.name)
			continue
		}
		texts = append(texts, golden.Of(row.name, err))
	}
	if os.PathSeparator != '/' {
		t.Skip("paths and modes read differently here")
	}
	golden.Check(t, "start", texts, dir, "DIR", id.String(), "ID", taken, "PORT", takenUDP, "PORT")
}

// The warnings of Status about files that are of no use.
func TestGoldenWarnings(t *testing.T) {
	dir := t.TempDir()
	var texts []golden.Text
	for _, name := range []string{"bans", peersName} {
		mustNot(t, os.WriteFile(filepath.Join(dir, name), []byte("damage"), 0o600))
		n := bare(t, WithDataDir(dir))
		for _, w := range n.Status().Warnings {
			texts = append(texts, golden.Text{Name: name + ": damaged", Text: w})
		}
		mustNot(t, n.Close())
	}
	if os.PathSeparator != '/' {
		t.Skip("paths read differently here")
	}
	golden.Check(t, "warnings", texts, dir, "DIR")
}

// The texts of bans, of the list of allowed peers, and of dialing refused peers.
func TestGoldenAccess(t *testing.T) {
	byOption, banned := mustKeyID(t), somePeer("1")
	n := bare(t, WithBannedPeers(byOption))
	strict := bare(t, WithAllowedPeers(n.ID()))
	ctx := testContext(t)
	end := time.Date(2200, 1, 2, 3, 4, 5, 0, time.UTC)
	subnet := netip.MustParsePrefix("198.51.100.0/24")
	inSubnet := peer.AddrInfo{ID: mustKeyID(t), Addrs: []ma.Multiaddr{ma4("/ip4/198.51.100.1/tcp/1")}}
	bansFull := bare(t)
	for i := range access.MaxBans {
		mustNot(t, bansFull.access.Add(access.Ban{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}))
	}

	list := []golden.Text{
		golden.Of("ban: nothing", n.ban(access.Ban{})),
		golden.Of("ban: the past", n.BanPeer(banned.ID, time.Date(2001, 1, 2, 3, 4, 5, 0, time.UTC), "")),
		golden.Of("ban: a far year", n.BanPeer(banned.ID, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), "")),
		golden.Of("ban: itself", n.BanPeer(n.ID(), time.Time{}, "")),
		golden.Of("ban: no peer ID", n.BanPeer("nonsense", time.Time{}, "")),
		golden.Of("ban: half a subnet", n.BanSubnet(netip.PrefixFrom(netip.MustParseAddr("192.0.2.1"), 99), time.Time{}, "")),
		golden.Of("ban: IPv4 in IPv6", n.BanSubnet(netip.MustParsePrefix("::ffff:192.0.2.0/120"), time.Time{}, "")),
		golden.Of("ban: a long reason", n.BanPeer(banned.ID, time.Time{}, strings.Repeat("x", 501))),
		golden.Of("ban: a reason that is no text", n.BanPeer(banned.ID, time.Time{}, "\xff")),
		golden.Of("ban: too many", bansFull.BanPeer(banned.ID, time.Time{}, "")),
		golden.Of("unban: a peer that is not banned", n.UnbanPeer(banned.ID)),
		golden.Of("unban: a subnet that is not banned", n.UnbanSubnet(subnet)),
		golden.Of("allow: without a list", n.Allow(banned.ID)),
		golden.Of("allow: no peer", strict.Allow()),
		golden.Of("allow: no peer ID", strict.Allow("nonsense")),
		golden.Of("disallow: without a list", n.Disallow(banned.ID)),
		golden.Of("disallow: not allowed", strict.Disallow(banned.ID)),
		golden.Of("connect: not allowed", strict.Connect(ctx, banned)),
		golden.Of("add persistent peers: not allowed", strict.AddPersistentPeers(banned)),
	}
	mustNot(t, strict.BanPeer(banned.ID, time.Time{}, ""))
	mustNot(t, n.BanPeer(banned.ID, end, "spam"))
	mustNot(t, n.BanSubnet(subnet, time.Time{}, ""))
	list = append(list,
		golden.Of("allow: banned", strict.Allow(banned.ID)),
		golden.Of("connect: banned", n.Connect(ctx, banned)),
		golden.Of("connect: banned by option", n.Connect(ctx, peer.AddrInfo{ID: byOption, Addrs: banned.Addrs})),
		golden.Of("connect: a banned subnet", n.Connect(ctx, inSubnet)),
		golden.Of("open stream: banned", result(n.OpenStream(ctx, banned.ID, "/x"))),
		golden.Of("ping: banned", result(n.Ping(ctx, banned.ID))),
		golden.Of("add persistent peers: banned", n.AddPersistentPeers(banned)),
	)
	mustNot(t, n.BanPeer(banned.ID, time.Time{}, ""))
	list = append(list, golden.Of("connect: banned for good, without a reason", n.Connect(ctx, banned)))
	golden.Check(t, "access", list, n.ID().String(), "SELF", byOption.String(), "ID", inSubnet.ID.String(), "OTHER")
}

// The texts of the methods about peers. Of a dial, the system's own words come
// last.
func TestGoldenPeers(t *testing.T) {
	n, other := bare(t), bare(t, WithListenAddrs("/ip4/127.0.0.1/tcp/0"))
	relayed, err := New(testContext(t), loopback(), WithAutoRelay(somePeer("1")))
	mustNot(t, err)
	defer mustClose(t, relayed)
	ctx := testContext(t)
	self, nobody := n.AddrInfo(), mustKeyID(t)
	noID, noAddr := peer.AddrInfo{Addrs: somePeer("1").Addrs}, peer.AddrInfo{ID: nobody}
	wrong := peer.AddrInfo{ID: nobody, Addrs: other.Host().Addrs()}
	var many []peer.AddrInfo
	for range 16 {
		many = append(many, peer.AddrInfo{ID: mustKeyID(t), Addrs: somePeer("1").Addrs})
	}
	many = append(many, relayed.cfg.autoRelays...)
	at := wrong.Addrs[0].String()
	golden.Check(t, "peers", []golden.Text{
		golden.Of("connect: no peer ID", n.Connect(ctx, noID)),
		golden.Of("connect: itself", n.Connect(ctx, self)),
		golden.Of("connect: no address", n.Connect(ctx, noAddr)),
		golden.Of("connect: somebody else is there", n.Connect(ctx, wrong)),
		golden.Of("ping: itself", result(n.Ping(ctx, n.ID()))),
		golden.Of("disconnect: no peer ID", n.Disconnect(ctx, "")),
		golden.Of("add bootstrap peers: itself", n.AddBootstrapPeers(self)),
		golden.Of("add bootstrap peers: none", n.AddBootstrapPeers()),
		golden.Of("add bootstrap peers: no ID, and no address", n.AddBootstrapPeers(noID, noAddr)),
		golden.Of("remove bootstrap peers: none of them", n.RemoveBootstrapPeers(nobody)),
		golden.Of("remove persistent peers: none of them", n.RemovePersistentPeers(nobody, other.ID())),
		golden.Of("add relays: without WithAutoRelay", n.AddRelays(somePeer("1"))),
		golden.Of("add relays: no address", relayed.AddRelays(noAddr)),
		golden.Of("add relays: too many", relayed.AddRelays(many...)),
		golden.Of("remove relays: none of them", relayed.RemoveRelays(nobody)),
		golden.Of("parse peers: two bad addresses", result(ParsePeers("x", someAddr, "/ip4/192.0.2.1/tcp/1"))),
	}, n.ID().String(), "SELF", nobody.String(), "ID", other.ID().String(), "OTHER", at, "ADDRESS")
}

// The texts of streams and of the protocols that are served.
func TestGoldenStreams(t *testing.T) {
	n, other := bare(t, WithListenAddrs("/ip4/127.0.0.1/tcp/0")), bare(t, WithListenAddrs("/ip4/127.0.0.1/tcp/0"))
	ctx := testContext(t)
	h := func(context.Context, network.Stream) error { return nil }
	mustNot(t, n.Handle("/handled", h))
	_, err := n.Listen("/listened")
	mustNot(t, err)
	n.Host().SetStreamHandler("/hosted", func(s network.Stream) { _ = s.Reset() })
	mustNot(t, n.Connect(ctx, other.AddrInfo()))
	unknown := result(n.OpenStream(ctx, other.ID(), "/unknown", "/neither"))
	spoken := fmt.Sprint(n.base.Protocols(other.ID()))
	any := HandleMatch(func(protocol.ID) bool { return true })
	var tooMany error
	for i := 0; tooMany == nil; i++ {
		tooMany = n.Handle(protocol.ID(fmt.Sprintf("/many/%0100d", i)), h)
	}
	golden.Check(t, "streams", []golden.Text{
		golden.Of("handle: no protocol ID", n.Handle("", h)),
		golden.Of("handle: no handler", n.Handle("/p", nil)),
		golden.Of("handle: of the node itself", n.Handle(ping.ID, h)),
		golden.Of("handle: handled", n.Handle("/handled", h)),
		golden.Of("handle: listened", n.Handle("/listened", h)),
		golden.Of("handle: set through Host", n.Handle("/hosted", h)),
		golden.Of("handle: no version", n.Handle("/p", h, HandleVersions())),
		golden.Of("handle: two options", n.Handle("/p/1.0.0", h, HandleVersions(), any)),
		golden.Of("handle: no function", n.Handle("/p", h, HandleMatch(nil))),
		golden.Of("handle: too many protocols", tooMany),
		golden.Of("listen: handled", result(n.Listen("/handled"))),
		golden.Of("unhandle: of the node itself", n.Unhandle(ping.ID)),
		golden.Of("unhandle: a listener's", n.Unhandle("/listened")),
		golden.Of("unhandle: not handled", n.Unhandle("/p")),
		golden.Of("open stream: no protocol", result(n.OpenStream(ctx, other.ID()))),
		golden.Of("open stream: itself", result(n.OpenStream(ctx, n.ID(), "/p"))),
		golden.Of("open stream: not spoken", unknown),
	}, spoken, "[PROTOCOLS]", n.ID().String(), "SELF", other.ID().String(), "OTHER")
}

// The texts of the DHT and of what uses it: values, content and rendezvous.
func TestGoldenDHT(t *testing.T) {
	lone := newNode(t, WithValidator("app", longest{}))
	one, two := newNode(t, WithNetwork("one"), WithMinPeers(1)), newNode(t, WithNetwork("two"))
	holder := newNode(t)
	keeps := newNode(t, via(holder), WithValidator("app", longest{}))
	hidden, err := New(testContext(t), WithoutListening(), via(two), WithNetwork("two"))
	mustNot(t, err)
	defer mustClose(t, hidden)
	ready(t, keeps, hidden)
	ctx := testContext(t)
	mustNot(t, one.Connect(ctx, two.AddrInfo()))
	id, c, value := mustKeyID(t), mustCID(t, "x"), []byte("v")
	notes := WithSignedRecords("notes")
	writer := newNode(t, via(newNode(t, notes)), notes)
	ready(t, writer)
	own := "/notes/" + writer.ID().String()
	mustNot(t, writer.PutSigned(ctx, own, value))
	first, err := writer.GetValue(ctx, own)
	mustNot(t, err)
	mustNot(t, writer.PutSigned(ctx, own, []byte("w")))
	foreign := someKey(t)
	foreignID, err := PeerID(foreign)
	mustNot(t, err)
	quoted := strconv.Quote(string(id)) // whose last byte may be a quotation mark
	golden.Check(t, "DHT", []golden.Text{
		golden.Of("find peer: no peer ID", result(lone.FindPeer(ctx, ""))),
		golden.Of("find peer: nobody to ask", result(lone.FindPeer(ended(), id))),
		golden.Of("find peer: nobody of the network to ask", result(one.FindPeer(ended(), id))),
		golden.Of("find peer: not found", result(keeps.FindPeer(ctx, id))),
		golden.Of("put value: no key", lone.PutValue(ctx, "x", value)),
		golden.Of("put value: no validator", lone.PutValue(ctx, "/other/x", value)),
		golden.Of("put value: empty", lone.PutValue(ctx, "/app/x", nil)),
		golden.Of("put value: too large", lone.PutValue(ctx, "/app/x", make([]byte, network.MessageSizeMax))),
		golden.Of("put value: refused by the validator", keeps.PutValue(ctx, "/app/x", []byte("bad"))),
		golden.Of("put value: nobody keeps it", keeps.PutValue(ctx, "/app/x", value)),
		golden.Of("put value: the key is too long", lone.PutValue(ctx, "/app/"+strings.Repeat("x", network.MessageSizeMax), value)),
		golden.Of("get value: no validator", result(lone.GetValue(ctx, "/other/x"))),
		golden.Of("get value: not found", result(holder.GetValue(ctx, "/pk/"+string(id)))),
		golden.Of("get value: a peer ID as text", result(holder.GetValue(ctx, "/pk/"+id.String()))),
		golden.Of("publish name: not a path", lone.PublishName(ctx, "/app/x")),
		golden.Of("publish name: a CID", lone.PublishName(ctx, "bafkqaaa")),
		golden.Of("publish name: nobody to ask", lone.PublishName(ended(), "/ipfs/bafkqaaa", SignKey(foreign))),
		golden.Of("publish name: the key is nil", lone.PublishName(ctx, "/ipfs/bafkqaaa", SignKey(nil), SignValidity(1), SignTTL(-1))),
		golden.Of("resolve name: DNS", result(lone.ResolveName(ctx, "docs.example"))),
		golden.Of("resolve name: not a name", result(lone.ResolveName(ctx, "x"))),
		golden.Of("resolve name: with a path", result(lone.ResolveName(ctx, "/ipns/"+id.String()+"/a"))),
		golden.Of("resolve name: not found", result(keeps.ResolveName(ctx, id.String()))),
		golden.Of("put signed: not of signed records", keeps.PutSigned(ctx, "/app/"+keeps.ID().String(), value)),
		golden.Of("put signed: no validator", lone.PutSigned(ctx, "/other/"+lone.ID().String(), value)),
		golden.Of("put signed: a TTL", writer.PutSigned(ctx, own, value, SignTTL(0))),
		golden.Of("put signed: another's key", writer.PutSigned(ctx, "/notes/"+id.String(), value)),
		golden.Of("put signed: no owner", writer.PutSigned(ctx, "/notes/x", value)),
		golden.Of("put signed: too large", writer.PutSigned(ctx, own, make([]byte, 1<<17))),
		golden.Of("put value: an older record", writer.PutValue(ctx, own, first)),
		golden.Of("get signed: no owner", result(writer.GetSigned(ctx, "/notes/x"))),
		golden.Of("provide: undefined", lone.Provide(ctx, cid.Undef)),
		golden.Of("provide: nobody to ask", lone.Provide(ended(), c)),
		golden.Of("provide: no address", hidden.Provide(ctx, c)),
		golden.Of("find providers: undefined", last(lone.FindProviders(ctx, cid.Undef))),
		golden.Of("find providers: nobody to ask", last(lone.FindProviders(ended(), c))),
		golden.Of("find providers: a bad limit", last(lone.FindProviders(ctx, c, FindLimit(0)))),
		golden.Of("advertise: no namespace", lone.Advertise(ctx, "")),
		golden.Of("advertise: too long", lone.Advertise(ctx, strings.Repeat("x", maxNamespace+1))),
		golden.Of("advertise: nobody to ask", lone.Advertise(ended(), "ro\x1bom")),
		golden.Of("find peers: no namespace", last(lone.FindPeers(ctx, ""))),
		golden.Of("find peers: nobody to ask", last(lone.FindPeers(ended(), "room"))),
		golden.Of("CID of: an unknown hash function", result(CIDOf(strings.NewReader(""), CIDHash(0x7777777)))),
	}, id.String(), "ID", writer.ID().String(), "WRITER", keeps.ID().String(), "KEEPS", lone.ID().String(), "LONE",
		strings.TrimPrefix(NameOf(foreignID), "/ipns/"), "NAME", quoted[1:len(quoted)-1], "BYTES")
}

// The texts of WaitReady. What peers are missing for is judged by internal/diag.
func TestGoldenWaitReady(t *testing.T) {
	lone, off := newNode(t), bare(t)
	mute, err := New(testContext(t), WithoutListening())
	mustNot(t, err)
	defer mustClose(t, mute)
	news := StageTopic("news")
	list := []golden.Text{
		golden.Of("a topic that is not joined", lone.WaitReady(ended(), news)),
		golden.Of("all that can be missing", lone.WaitReady(ended(), StageListening, StageConnected, StageRouting, StageReachable)),
		golden.Of("listening is off", mute.WaitReady(ended(), StageListening)),
		golden.Of("the DHT is off", off.WaitReady(ended(), StageRouting)),
		golden.Of("pubsub is off", off.WaitReady(ended(), news)),
		golden.Of("no stage", lone.WaitReady(ended(), "soon")),
		golden.Of("a topic without a name", lone.WaitReady(ended(), StageTopic(""))),
		golden.Of("a healthy topic without a name", lone.WaitReady(ended(), StageTopicHealthy(""))),
		golden.Of("a healthy topic, pubsub is off", off.WaitReady(ended(), StageTopicHealthy("news"))),
	}
	sub, err := lone.Subscribe(testContext(t), "news")
	mustNot(t, err)
	defer mustClose(t, sub)
	golden.Check(t, "wait ready", append(list,
		golden.Of("a topic without others", lone.WaitReady(ended(), news)),
		golden.Of("a healthy topic without others", lone.WaitReady(ended(), StageTopicHealthy("news")))))
}

func TestGoldenPubSub(t *testing.T) {
	n, off := newNode(t, WithMaxMessageSize(4096)), bare(t)
	strict := newNode(t, WithPubSubOptions(pubsub.WithMessageSignaturePolicy(pubsub.StrictSign)))
	ctx := testContext(t)
	nothing := func(context.Context, *Message) error { return nil }
	refused, err := n.Topic("refused", TopicValidator(func(context.Context, *Message) error { return errors.New("the message is empty") }))
	mustNot(t, err)
	defer mustClose(t, refused)
	gone, err := n.Topic("gone")
	mustNot(t, err)
	mustClose(t, gone)
	golden.Check(t, "pubsub", []golden.Text{
		golden.Of("publish: pubsub is off", off.Publish(ctx, "news", nil)),
		golden.Of("publish: too large", n.Publish(ctx, "news", make([]byte, 4096), PublishNow())),
		golden.Of("publish: nobody is there", n.Publish(ended(), "news", nil)),
		golden.Of("publish: no peers wanted", n.Publish(ctx, "news", nil, PublishMinPeers(0))),
		golden.Of("publish: no wait", n.Publish(ctx, "news", nil, PublishWait(0))),
		golden.Of("publish: two wanted", n.Publish(ended(), "news", nil, PublishMinPeers(2))),
		golden.Of("publish: refused", refused.Publish(ctx, nil, PublishNow())),
		golden.Of("publish: the handle is closed", gone.Publish(ctx, nil)),
		golden.Of("subscribe: a bad buffer", result(n.Subscribe(ctx, "news", SubscribeBuffer(0)))),
		golden.Of("subscribe: a bad buffer in bytes", result(n.Subscribe(ctx, "news", SubscribeBufferBytes(0)))),
		golden.Of("subscribe: no wait", result(n.Subscribe(ctx, "news", SubscribeWait(0)))),
		golden.Of("topic: pubsub is off", result(off.Topic("news"))),
		golden.Of("topic: the name is too long", result(n.Topic(strings.Repeat("x", 2000)))),
		golden.Of("topic: in use with signatures", result(n.Topic("refused", TopicAnonymous()))),
		golden.Of("topic: in use with another order", result(n.Topic("refused", TopicValidator(nothing, ValidatorInOrder())))),
		golden.Of("topic: no validator", result(n.Topic("news", TopicValidator(nil)))),
		golden.Of("topic: no message ID", result(n.Topic("news", TopicMessageID(nil)))),
		golden.Of("topic: a bad timeout", result(n.Topic("news", TopicValidator(nothing, ValidatorTimeout(-1))))),
		golden.Of("topic: a bad concurrency", result(n.Topic("news", TopicValidator(nothing, ValidatorConcurrency(0))))),
		golden.Of("topic: a policy of the application's", result(strict.Topic("news", TopicAnonymous()))),
	})
}

// The texts of keys, which hold no part of one.
func TestGoldenKeys(t *testing.T) {
	const text = "CAESQAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gebVWLo/mVPlAeLEIqOh00QH0XfuFI/cKEMy07PInBmQ=" // of TestKnownKey
	raw, err := base64.StdEncoding.DecodeString(text)
	mustNot(t, err)
	decode := func(b []byte) error { return result(DecodeKey(base64.StdEncoding.EncodeToString(b))) }
	swarm := func(text string) error { return result(DecodeSwarmKey([]byte(text))) }
	golden.Check(t, "keys", []golden.Text{
		golden.Of("decode key: nothing", result(DecodeKey(" \n"))),
		golden.Of("decode key: not base64", result(DecodeKey("!"+text))),
		golden.Of("decode key: half", result(DecodeKey(text[:len(text)/2]))),
		golden.Of("decode key: twice", result(DecodeKey(text+text))),
		golden.Of("decode key: huge", result(DecodeKey(strings.Repeat(text, 1000)))),
		golden.Of("decode key: a byte more", decode(append(bytes.Clone(raw), 0))),
		golden.Of("decode key: a byte less", decode(raw[:len(raw)-1])),
		golden.Of("decode key: something added", decode(append(bytes.Clone(raw), 0x18, 0))),
		golden.Of("decode key: another type", decode(append([]byte{8, 9}, raw[2:]...))),
		golden.Of("encode key: nil", result(EncodeKey(nil))),
		golden.Of("peer ID: nil", result(PeerID(nil))),
		golden.Of("generate RSA key: short", result(GenerateRSAKey(1024))),
		golden.Of("generate RSA key: long", result(GenerateRSAKey(8193))),
		golden.Of("generate key: no type", result(GenerateKey("rot13"))),
		golden.Of("encode swarm key: short", result(EncodeSwarmKey(raw[:31]))),
		golden.Of("decode swarm key: nothing", swarm("")),
		golden.Of("decode swarm key: the key alone", swarm(strings.Repeat("ab", 32))),
		golden.Of("decode swarm key: another encoding", swarm(swarmKeyHead+"\n/base32/\n"+strings.Repeat("ab", 32))),
		golden.Of("decode swarm key: no key", swarm(swarmKeyHead+"\n/base16/\n")),
		golden.Of("decode swarm key: not in its encoding", swarm(swarmKeyHead+"\n/base16/\nx"+strings.Repeat("ab", 32)[1:])),
		golden.Of("decode swarm key: short", swarm(swarmKeyHead+"\n/base16/\n"+strings.Repeat("ab", 31))),
		golden.Of("decode swarm key: long", swarm(swarmKeyHead+"\n/base16/\n"+strings.Repeat("ab", 33))),
		golden.Of("decode swarm key: huge", swarm(strings.Repeat("ab", 10_000))),
	})
}

// The texts of the parsers of the library's own formats.
func TestGoldenTextForms(t *testing.T) {
	var r Reachability
	golden.Check(t, "text forms", []golden.Text{
		golden.Of("unmarshal event: no type", result(UnmarshalEvent([]byte(`{"type":"nonsense"}`)))),
		golden.Of("reachability: none of the three", r.UnmarshalText([]byte("nonsense"))),
	})
}

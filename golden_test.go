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
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/access"
	"github.com/go-p2pnode/p2pnode/internal/golden"
)

// scrub takes out of a text what differs from run to run: the IDs of keys made
// for the test, and where its files are.
func scrub(text string, replace ...string) string {
	for i := 0; i < len(replace); i += 2 {
		text = strings.ReplaceAll(text, replace[i], replace[i+1])
	}
	return text
}

// said is an error under the name of its case.
type said struct {
	name string
	err  error
}

// checkErrors compares the texts of errors, one for each case, with a section of
// the file, after scrub.
func checkErrors(t *testing.T, section string, list []said, replace ...string) {
	t.Helper()
	var texts []golden.Text
	for _, s := range list {
		if s.err == nil {
			t.Errorf("%s: no error", s.name)
			continue
		}
		texts = append(texts, golden.Text{Name: s.name, Text: scrub(s.err.Error(), replace...)})
	}
	golden.Check(t, section, texts)
}

// result is the error of a call that also returns a value.
func result[T any](_ T, err error) error { return err }

// last is the error with which a search ends.
func last[T any](search iter.Seq2[T, error]) (err error) {
	for _, err = range search { // the last pair has it
	}
	return err
}

// bare starts a node that has neither the DHT nor pubsub, and listens nowhere
// unless the options say so.
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
				texts = append(texts, golden.Text{Name: row.name, Text: e.Error()})
			}
		}
	}
	one := WithValidator("a", longest{})
	for _, e := range OptionErrors(ValidateOptions(one, one)) {
		texts = append(texts, golden.Text{Name: e.Option + ", twice", Text: e.Error()})
	}
	golden.Check(t, "options", texts)
}

// The texts of the relations between options, as validate.go has them: the
// first line names the options involved.
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

// The texts of New for what only a start finds out.
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
		texts = append(texts, golden.Text{Name: row.name, Text: scrub(err.Error(), dir, "DIR", id.String(), "ID", taken, "PORT")})
	}
	if os.PathSeparator != '/' {
		t.Skip("paths and modes read differently here")
	}
	golden.Check(t, "start", texts)
}

// The warnings of Status about files that are of no use.
func TestGoldenWarnings(t *testing.T) {
	dir := t.TempDir()
	var texts []golden.Text
	for _, name := range []string{"bans", peersName} {
		mustNot(t, os.WriteFile(filepath.Join(dir, name), []byte("damage"), 0o600))
		n := bare(t, WithDataDir(dir))
		for _, w := range n.Status().Warnings {
			texts = append(texts, golden.Text{Name: name + ": damaged", Text: scrub(w, dir, "DIR")})
		}
		mustNot(t, n.Close())
	}
	if os.PathSeparator != '/' {
		t.Skip("paths read differently here")
	}
	golden.Check(t, "warnings", texts)
}

// The texts of bans, of the list of allowed peers, and of dialling those who are
// shut out.
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

	list := []said{
		{"ban: nothing", n.ban(access.Ban{})},
		{"ban: the past", n.BanPeer(banned.ID, time.Date(2001, 1, 2, 3, 4, 5, 0, time.UTC), "")},
		{"ban: a far year", n.BanPeer(banned.ID, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), "")},
		{"ban: itself", n.BanPeer(n.ID(), time.Time{}, "")},
		{"ban: no peer ID", n.BanPeer("nonsense", time.Time{}, "")},
		{"ban: half a subnet", n.BanSubnet(netip.PrefixFrom(netip.MustParseAddr("192.0.2.1"), 99), time.Time{}, "")},
		{"ban: IPv4 in IPv6", n.BanSubnet(netip.MustParsePrefix("::ffff:192.0.2.0/120"), time.Time{}, "")},
		{"ban: a long reason", n.BanPeer(banned.ID, time.Time{}, strings.Repeat("x", 501))},
		{"ban: a reason that is no text", n.BanPeer(banned.ID, time.Time{}, "\xff")},
		{"ban: too many", bansFull.BanPeer(banned.ID, time.Time{}, "")},
		{"unban: a peer that is not banned", n.UnbanPeer(banned.ID)},
		{"unban: a subnet that is not banned", n.UnbanSubnet(subnet)},
		{"allow: without a list", n.Allow(banned.ID)},
		{"allow: no peer", strict.Allow()},
		{"allow: no peer ID", strict.Allow("nonsense")},
		{"disallow: without a list", n.Disallow(banned.ID)},
		{"disallow: not allowed", strict.Disallow(banned.ID)},
		{"connect: not allowed", strict.Connect(ctx, banned)},
		{"add persistent peers: not allowed", strict.AddPersistentPeers(banned)},
	}
	mustNot(t, strict.BanPeer(banned.ID, time.Time{}, ""))
	mustNot(t, n.BanPeer(banned.ID, end, "spam"))
	mustNot(t, n.BanSubnet(subnet, time.Time{}, ""))
	list = append(list,
		said{"allow: banned", strict.Allow(banned.ID)},
		said{"connect: banned", n.Connect(ctx, banned)},
		said{"connect: banned by option", n.Connect(ctx, peer.AddrInfo{ID: byOption, Addrs: banned.Addrs})},
		said{"connect: a banned subnet", n.Connect(ctx, inSubnet)},
		said{"open stream: banned", result(n.OpenStream(ctx, banned.ID, "/x"))},
		said{"ping: banned", result(n.Ping(ctx, banned.ID))},
		said{"add persistent peers: banned", n.AddPersistentPeers(banned)},
	)
	mustNot(t, n.BanPeer(banned.ID, time.Time{}, ""))
	list = append(list, said{"connect: banned for good, without a reason", n.Connect(ctx, banned)})
	checkErrors(t, "access", list, n.ID().String(), "SELF", byOption.String(), "ID", inSubnet.ID.String(), "OTHER")
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
	checkErrors(t, "peers", []said{
		{"connect: no peer ID", n.Connect(ctx, noID)},
		{"connect: itself", n.Connect(ctx, self)},
		{"connect: no address", n.Connect(ctx, noAddr)},
		{"connect: somebody else is there", n.Connect(ctx, wrong)},
		{"ping: itself", result(n.Ping(ctx, n.ID()))},
		{"disconnect: no peer ID", n.Disconnect(ctx, "")},
		{"add bootstrap peers: itself", n.AddBootstrapPeers(self)},
		{"add bootstrap peers: none", n.AddBootstrapPeers()},
		{"add bootstrap peers: no ID, and no address", n.AddBootstrapPeers(noID, noAddr)},
		{"remove bootstrap peers: none of them", n.RemoveBootstrapPeers(nobody)},
		{"remove persistent peers: none of them", n.RemovePersistentPeers(nobody, other.ID())},
		{"add relays: without WithAutoRelay", n.AddRelays(somePeer("1"))},
		{"add relays: no address", relayed.AddRelays(noAddr)},
		{"add relays: too many", relayed.AddRelays(many...)},
		{"remove relays: none of them", relayed.RemoveRelays(nobody)},
		{"parse peers: two bad addresses", result(ParsePeers("x", someAddr, "/ip4/192.0.2.1/tcp/1"))},
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
	checkErrors(t, "streams", []said{
		{"handle: no protocol ID", n.Handle("", h)},
		{"handle: no handler", n.Handle("/p", nil)},
		{"handle: of the node itself", n.Handle(ping.ID, h)},
		{"handle: handled", n.Handle("/handled", h)},
		{"handle: listened", n.Handle("/listened", h)},
		{"handle: set through Host", n.Handle("/hosted", h)},
		{"handle: no version", n.Handle("/p", h, HandleVersions())},
		{"handle: two options", n.Handle("/p/1.0.0", h, HandleVersions(), any)},
		{"handle: no function", n.Handle("/p", h, HandleMatch(nil))},
		{"listen: handled", result(n.Listen("/handled"))},
		{"unhandle: of the node itself", n.Unhandle(ping.ID)},
		{"unhandle: a listener's", n.Unhandle("/listened")},
		{"unhandle: not handled", n.Unhandle("/p")},
		{"open stream: no protocol", result(n.OpenStream(ctx, other.ID()))},
		{"open stream: itself", result(n.OpenStream(ctx, n.ID(), "/p"))},
		{"open stream: not spoken", unknown},
	}, spoken, "[PROTOCOLS]", n.ID().String(), "SELF", other.ID().String(), "OTHER")
}

// The texts of the DHT and of what stands on it: values, content and rendezvous.
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
	checkErrors(t, "DHT", []said{
		{"find peer: no peer ID", result(lone.FindPeer(ctx, ""))},
		{"find peer: nobody to ask", result(lone.FindPeer(ended(), id))},
		{"find peer: nobody of the network to ask", result(one.FindPeer(ended(), id))},
		{"find peer: not found", result(keeps.FindPeer(ctx, id))},
		{"put value: no key", lone.PutValue(ctx, "x", value)},
		{"put value: no validator", lone.PutValue(ctx, "/other/x", value)},
		{"put value: empty", lone.PutValue(ctx, "/app/x", nil)},
		{"put value: too large", lone.PutValue(ctx, "/app/x", make([]byte, network.MessageSizeMax))},
		{"put value: refused by the validator", keeps.PutValue(ctx, "/app/x", []byte("bad"))},
		{"put value: nobody keeps it", keeps.PutValue(ctx, "/app/x", value)},
		{"put value: the key is too long", lone.PutValue(ctx, "/app/"+strings.Repeat("x", network.MessageSizeMax), value)},
		{"get value: no validator", result(lone.GetValue(ctx, "/other/x"))},
		{"get value: not found", result(holder.GetValue(ctx, "/pk/"+string(id)))},
		{"provide: undefined", lone.Provide(ctx, cid.Undef)},
		{"provide: nobody to ask", lone.Provide(ended(), c)},
		{"provide: no address", hidden.Provide(ctx, c)},
		{"find providers: undefined", last(lone.FindProviders(ctx, cid.Undef))},
		{"find providers: nobody to ask", last(lone.FindProviders(ended(), c))},
		{"find providers: a bad limit", last(lone.FindProviders(ctx, c, FindLimit(0)))},
		{"advertise: no namespace", lone.Advertise(ctx, "")},
		{"find peers: no namespace", last(lone.FindPeers(ctx, ""))},
		{"find peers: nobody to ask", last(lone.FindPeers(ended(), "room"))},
		{"CID of: an unknown hash function", result(CIDOf(strings.NewReader(""), CIDHash(0x7777777)))},
	}, id.String(), "ID", strings.Trim(fmt.Sprintf("%q", string(id)), `"`), "BYTES")
}

// The texts of WaitReady. What peers are missing for is judged by internal/diag.
func TestGoldenWaitReady(t *testing.T) {
	lone, off := newNode(t), bare(t)
	mute, err := New(testContext(t), WithoutListening())
	mustNot(t, err)
	defer mustClose(t, mute)
	news := StageTopic("news")
	list := []said{
		{"a topic that is not joined", lone.WaitReady(ended(), news)},
		{"all that can be missing", lone.WaitReady(ended(), StageListening, StageConnected, StageRouting, StageReachable)},
		{"listening is off", mute.WaitReady(ended(), StageListening)},
		{"the DHT is off", off.WaitReady(ended(), StageRouting)},
		{"pubsub is off", off.WaitReady(ended(), news)},
		{"no stage", lone.WaitReady(ended(), "soon")},
		{"a topic without a name", lone.WaitReady(ended(), StageTopic(""))},
	}
	sub, err := lone.Subscribe(testContext(t), "news")
	mustNot(t, err)
	defer mustClose(t, sub)
	checkErrors(t, "wait ready", append(list, said{"a topic without others", lone.WaitReady(ended(), news)}))
}

func TestGoldenPubSub(t *testing.T) {
	n, off := newNode(t, WithMaxMessageSize(4096)), bare(t)
	ctx := testContext(t)
	checkErrors(t, "pubsub", []said{
		{"publish: pubsub is off", off.Publish(ctx, "news", nil)},
		{"publish: too large", n.Publish(ctx, "news", make([]byte, 4096), PublishNow())},
		{"publish: nobody is there", n.Publish(ended(), "news", nil)},
		{"subscribe: a bad buffer", result(n.Subscribe(ctx, "news", SubscribeBuffer(0)))},
	})
}

// The texts of keys, which hold no part of one.
func TestGoldenKeys(t *testing.T) {
	const text = "CAESQAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gebVWLo/mVPlAeLEIqOh00QH0XfuFI/cKEMy07PInBmQ=" // of TestKnownKey
	raw, err := base64.StdEncoding.DecodeString(text)
	mustNot(t, err)
	decode := func(b []byte) error { return result(DecodeKey(base64.StdEncoding.EncodeToString(b))) }
	swarm := func(text string) error { return result(DecodeSwarmKey([]byte(text))) }
	checkErrors(t, "keys", []said{
		{"decode key: nothing", result(DecodeKey(" \n"))},
		{"decode key: not base64", result(DecodeKey("!" + text))},
		{"decode key: half", result(DecodeKey(text[:len(text)/2]))},
		{"decode key: twice", result(DecodeKey(text + text))},
		{"decode key: huge", result(DecodeKey(strings.Repeat(text, 1000)))},
		{"decode key: a byte more", decode(append(bytes.Clone(raw), 0))},
		{"decode key: a byte less", decode(raw[:len(raw)-1])},
		{"decode key: something added", decode(append(bytes.Clone(raw), 0x18, 0))},
		{"decode key: another type", decode(append([]byte{8, 9}, raw[2:]...))},
		{"encode key: nil", result(EncodeKey(nil))},
		{"peer ID: nil", result(PeerID(nil))},
		{"generate RSA key: short", result(GenerateRSAKey(1024))},
		{"generate RSA key: long", result(GenerateRSAKey(8193))},
		{"generate key: no type", result(GenerateKey("rot13"))},
		{"encode swarm key: short", result(EncodeSwarmKey(raw[:31]))},
		{"decode swarm key: nothing", swarm("")},
		{"decode swarm key: the key alone", swarm(strings.Repeat("ab", 32))},
		{"decode swarm key: another encoding", swarm(swarmKeyHead + "\n/base32/\n" + strings.Repeat("ab", 32))},
		{"decode swarm key: no key", swarm(swarmKeyHead + "\n/base16/\n")},
		{"decode swarm key: not in its encoding", swarm(swarmKeyHead + "\n/base16/\nx" + strings.Repeat("ab", 32)[1:])},
		{"decode swarm key: short", swarm(swarmKeyHead + "\n/base16/\n" + strings.Repeat("ab", 31))},
		{"decode swarm key: long", swarm(swarmKeyHead + "\n/base16/\n" + strings.Repeat("ab", 33))},
		{"decode swarm key: huge", swarm(strings.Repeat("ab", 10_000))},
	})
}

// The texts of what reads the library's own text forms.
func TestGoldenTextForms(t *testing.T) {
	var r Reachability
	checkErrors(t, "text forms", []said{
		{"unmarshal event: no type", result(UnmarshalEvent([]byte(`{"type":"nonsense"}`)))},
		{"reachability: none of the three", r.UnmarshalText([]byte("nonsense"))},
	})
}

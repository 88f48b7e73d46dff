package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/cli"
	"github.com/go-p2pnode/p2pnode/internal/clitest"
)

func TestMain(m *testing.M) { clitest.Main(m, main) }

func TestBootstrapKeepsItsIdentityAndServes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "boot.key")
	args := []string{"-identity", file, "-network", "test", "-listen", "/ip4/127.0.0.1/tcp/0"}
	first := clitest.Start(t, run, args...)
	id := first.Line("peer ID")
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	first.Line("stopping")

	server := clitest.Start(t, run, args...)
	if again := server.Line("peer ID"); again != id {
		t.Errorf("%s became %s", id, again)
	}
	n := join(t, server)
	server.Line("+", n.ID().String(), "127.0.0.1")
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	server.Line("-", n.ID().String())
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
}

// join starts a node as the server's output describes, with more options.
func join(t *testing.T, server *clitest.Program, opts ...p2pnode.Option) *p2pnode.Node {
	t.Helper()
	addr := strings.Split(server.Line("WithBootstrapAddrs"), `"`)[1]
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	n, err := p2pnode.New(ctx, append(opts, p2pnode.WithNetwork("test"), p2pnode.WithoutListening(), p2pnode.WithBootstrapAddrs(addr))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := n.WaitReady(ctx); err != nil {
		t.Error(err)
	}
	return n
}

// A ticket is enough to join: it has the network's name and the server's addresses.
func TestBootstrapPrintsATicket(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "swarm.key")
	for _, args := range [][]string{nil, {"-swarm-key", key}} {
		server := clitest.Start(t, run, append(args, "-identity", filepath.Join(dir, "boot.key"), "-network", "test", "-listen", "/ip4/127.0.0.1/tcp/0")...)
		text := strings.Split(server.Line("WithTicket"), `"`)[1]
		id := strings.Fields(server.Line("peer ID"))[2]
		ticket, err := p2pnode.ParseTicket(text)
		if err != nil {
			t.Fatal(err)
		}
		if ticket.Network() != "test" || ticket.HasKey() || len(ticket.Peers()) != 1 || ticket.Peers()[0].ID.String() != id {
			t.Errorf("%v; the server is %s", ticket, id)
		}
		opts := []p2pnode.Option{p2pnode.WithoutListening(), p2pnode.WithTicket(text)}
		if args != nil { // the key is not in it
			psk, err := p2pnode.LoadOrCreateSwarmKey(key)
			if err != nil {
				t.Fatal(err)
			}
			opts = append(opts, p2pnode.WithPrivateNetwork(psk))
		}
		n, err := p2pnode.New(t.Context(), opts...)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.WaitReady(t.Context(), p2pnode.StageRouting); err != nil {
			t.Error(err)
		}
		server.Line("+", n.ID().String())
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	}
}

func TestBootstrapRelays(t *testing.T) {
	server := clitest.Start(t, run, "-identity", filepath.Join(t.TempDir(), "boot.key"), "-network", "test", "-listen", "/ip4/127.0.0.1/tcp/0", "-relay")
	relay, err := p2pnode.ParsePeers(strings.Split(server.Line("WithBootstrapAddrs"), `"`)[1])
	if err != nil {
		t.Fatal(err)
	}
	server.Line("WithAutoRelay")
	hidden := join(t, server, p2pnode.WithAutoRelay(relay...))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events := hidden.Events(ctx)
	if len(hidden.Addrs()) == 0 {
		for range events {
			if len(hidden.Addrs()) > 0 {
				break
			}
		}
	}
	other := join(t, server)
	if err := other.Connect(ctx, hidden.AddrInfo()); err != nil {
		t.Error(err)
	}
}

func TestBootstrapEndsOnSIGTERM(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no SIGTERM")
	}
	self := clitest.Self(t)
	cmd := exec.CommandContext(t.Context(), self.File, "-identity", filepath.Join(t.TempDir(), "boot.key"), "-listen", "/ip4/127.0.0.1/tcp/0")
	cmd.Env = append(os.Environ(), self.Env...)
	shown := clitest.Start(t, func(_ context.Context, _ []string, out io.Writer) error {
		cmd.Stdout, cmd.Stderr = out, os.Stderr
		return cmd.Run()
	})
	shown.Line("WithBootstrapAddrs")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := shown.Wait(); err != nil { // exit code 0
		t.Error(err)
	}
	shown.Line("stopping")
}

func TestUsage(t *testing.T) {
	key := filepath.Join(t.TempDir(), "k")
	clitest.Usage(t, clitest.Self(t),
		[]string{"-identity"},
		[]string{"-high: ", "-identity", key, "-low", "10", "-high", "5"},
		[]string{"-announce: ", "-identity", key, "-announce", "example.com"},
		[]string{"-bootstrap: ", "-identity", key, "-bootstrap", "/ip4/192.0.2.1/tcp/1"},
		[]string{"-data: ", "-data", "/dev/null/data"},
		[]string{"-swarm-key: ", "-identity", key, "-swarm-key", "/dev/null/swarm.key"},
		[]string{"-listen", "-identity", key, "-swarm-key", filepath.Join(t.TempDir(), "s"), "-listen", "/ip4/127.0.0.1/udp/0/quic-v1"},
		[]string{"-network: ", "-identity", key, "-network", "a b"},
		[]string{"-listen: ", "-identity", key, "-listen", "/ip4/127.0.0.1/tcp/0,4001"},
		[]string{"-identity: ", "-identity", "/no/such/directory/key"})
}

func TestBootstrapTellsHowItIs(t *testing.T) {
	server := clitest.Start(t, run, "-identity", filepath.Join(t.TempDir(), "boot.key"), "-network", "test", "-listen", "/ip4/127.0.0.1/tcp/0", "-admin", "127.0.0.1:0")
	base, ok := strings.CutSuffix(strings.Fields(server.Line("admin: http://"))[1], "/health")
	if !ok {
		t.Fatal("no address of /health is printed")
	}
	join(t, server)
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int, string) {
		t.Helper()
		r, err := client.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(body)
	}
	for path, parts := range map[string][]string{
		"/health":  {`"listening":true`, `"peers":1`, `"findings":`},
		"/status":  {`"network":"/test"`, `"listenAddrs":["/ip4/127.0.0.1/tcp/`},
		"/metrics": {"p2pnode_peers{peer_id=", "p2pnode_sent_bytes_total"},
	} {
		code, body := get(path)
		if code != http.StatusOK {
			t.Errorf("%s: status %d", path, code)
		}
		for _, part := range parts {
			if !strings.Contains(body, part) {
				t.Errorf("%s lacks %s:\n%s", path, part, body)
			}
		}
	}
	var answer strings.Builder
	check := []string{"-check", strings.TrimPrefix(base, "http://")}
	if err := run(t.Context(), check, &answer); err != nil || !strings.Contains(answer.String(), `"peers":1`) {
		t.Errorf("-check: %v, %s", err, answer.String())
	}
	if code, _ := get("/nothing"); code != http.StatusNotFound {
		t.Errorf("/nothing: status %d", code)
	}
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := client.Get(base + "/health"); err == nil {
		t.Error("it still answers after the end")
	}
	if err := run(t.Context(), check, io.Discard); err == nil || errors.Is(err, cli.ErrUsage) {
		t.Errorf("-check after the end: %v", err)
	}
}

// TestBootstrapServersAreOneNetwork starts a second server with the address of
// the first. It connects, and does so again after a restart without the address.
// A web page whose name resolves to the server gets nothing.
func TestAttackAdminPortRefusesForeignHosts(t *testing.T) {
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for host, want := range map[string]int{
		"evil.example:4080": http.StatusMisdirectedRequest, "evil.example": http.StatusMisdirectedRequest, "": http.StatusMisdirectedRequest,
		"127.0.0.1:4080": http.StatusNoContent, "[::1]:4080": http.StatusNoContent, "[::1]": http.StatusNoContent, "10.1.2.3": http.StatusNoContent,
		"localhost:4080": http.StatusNoContent, "Boot:4080": http.StatusNoContent,
	} {
		r := httptest.NewRequest(http.MethodGet, "/status", nil)
		r.Host = host
		w := httptest.NewRecorder()
		if byAddress("boot:4080", next).ServeHTTP(w, r); w.Code != want {
			t.Errorf("%q: %d", host, w.Code)
		}
	}
}

func TestBootstrapServersAreOneNetwork(t *testing.T) {
	first := clitest.Start(t, run, "-data", t.TempDir(), "-network", "test", "-listen", "/ip4/127.0.0.1/tcp/0")
	id := strings.Fields(first.Line("peer ID"))[2]
	addr := strings.Split(first.Line("WithBootstrapAddrs"), `"`)[1]
	args := []string{"-data", t.TempDir(), "-network", "test", "-listen", "/ip4/127.0.0.1/tcp/0"}
	second := clitest.Start(t, run, append(args, "-bootstrap", addr)...)
	second.Line("+", id)
	first.Line("+")
	if err := second.Stop(); err != nil {
		t.Fatal(err)
	}
	first.Line("-")
	again := clitest.Start(t, run, args...)
	again.Line("+", id)
	for _, p := range []*clitest.Program{again, first} {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}
}

// TestBootstrapPrivateAndAnnounced starts a server with a swarm key and addresses
// to announce.
func TestBootstrapPrivateAndAnnounced(t *testing.T) {
	dir := t.TempDir()
	server := clitest.Start(t, run, "-data", dir, "-swarm-key", filepath.Join(dir, "swarm.key"), "-network", "test",
		"-listen", "/ip4/127.0.0.1/tcp/0", "-announce", "/dns4/boot.example.com/tcp/4001")
	server.Line("/dns4/boot.example.com/tcp/4001/p2p/")
	server.Line("its fingerprint is")
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "swarm.key")); err != nil {
		t.Error(err)
	}
}

func TestBootstrapAdminAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = run(t.Context(), []string{"-identity", filepath.Join(t.TempDir(), "boot.key"), "-listen", "/ip4/127.0.0.1/tcp/0", "-admin", l.Addr().String()}, io.Discard)
	if !errors.Is(err, cli.ErrUsage) || !strings.Contains(err.Error(), "-admin") {
		t.Errorf("%v", err)
	}
}

// The systemd unit and the container file use only flags that exist.
func TestBootstrapServiceFilesNameFlagsThatExist(t *testing.T) {
	var help strings.Builder
	if err := run(t.Context(), []string{"-h"}, &help); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	for file, start := range map[string]string{"p2pnode-bootstrap.service": "ExecStart=", "Containerfile": "ENTRYPOINT"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		flags := 0
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, start) {
				continue
			}
			for _, word := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \",[]\n", r) }) {
				if !strings.HasPrefix(word, "-") {
					continue
				}
				flags++
				if !strings.Contains(help.String(), "\n  "+word+" ") && !strings.Contains(help.String(), "\n  "+word+"\n") {
					t.Errorf("%s has the flag %s, which the program lacks:\n%s", file, word, help.String())
				}
			}
		}
		if flags < 2 {
			t.Errorf("%s has %d flags", file, flags)
		}
	}
}

// With a certificate, the server listens for WebSocket with TLS too, and with
// -browsers for browsers.
func TestBootstrapServesBrowsers(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	web := httptest.NewTLSServer(nil) // it has a certificate for 127.0.0.1
	defer web.Close()
	pair := web.TLS.Certificates[0]
	secret, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server := clitest.Start(t, run, "-identity", filepath.Join(dir, "boot.key"), "-network", "test", "-browsers", "-tls-cert", cert, "-tls-key", key,
		"-listen", "/ip4/127.0.0.1/tcp/0/tls/ws,/ip4/127.0.0.1/udp/0/quic-v1")
	for _, want := range []string{"/tls/ws/p2p/", "/quic-v1/p2p/", "/webtransport/certhash/", "/webrtc-direct/certhash/"} {
		server.Line("WithBootstrapAddrs", want)
	}
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
	// A certificate without its key is a mistake in the command.
	err = run(t.Context(), []string{"-identity", filepath.Join(dir, "boot.key"), "-tls-cert", cert}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "-tls-cert") {
		t.Errorf("without -tls-key: %v", err)
	}
}

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/clitest"
)

func TestMain(m *testing.M) { clitest.Main(m, main) }

var onLoopback = []string{"-listen", "/ip4/127.0.0.1/tcp/0"}

// provider serves a file and returns the CID and its address.
func provider(t *testing.T, file string, args ...string) (p *clitest.Program, cid, addr string) {
	t.Helper()
	p = clitest.Start(t, run, append(append([]string{"-provide", file}, onLoopback...), args...)...)
	words := strings.Fields(p.Line("-bootstrap"))
	return p, words[2], words[6]
}

func fetcher(t *testing.T, cid, to, addr string, args ...string) *clitest.Program {
	t.Helper()
	args = append([]string{"-fetch", cid, "-o", to, "-bootstrap", addr}, args...)
	return clitest.Start(t, run, append(args, onLoopback...)...)
}

func writeFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// nothingLeft checks that no temporary file remains.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if left, _ := filepath.Glob(filepath.Join(dir, ".fetch-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestProvideAndFetch(t *testing.T) {
	dir := t.TempDir()
	want := bytes.Repeat([]byte("content "), 1<<16)
	file := writeFile(t, filepath.Join(dir, "original"), want)
	to := filepath.Join(dir, "copy")
	server, cid, addr := provider(t, file)

	// The client queries another peer, which holds the provider record.
	other, _, otherAddr := provider(t, writeFile(t, filepath.Join(dir, "another"), nil), "-bootstrap", addr)
	server.Line("provided:")
	other.Line("provided:")

	client := fetcher(t, cid, to, otherAddr)
	if err := client.Wait(); err != nil {
		t.Fatalf("%v, after\n%s", err, client.Text())
	}
	client.Line("fetched and verified")
	server.Line("sent 524288 bytes")
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, want) {
		t.Errorf("fetched %d bytes, %v; want %d", len(got), err, len(want))
	}
	nothingLeft(t, dir)
	for _, p := range []*clitest.Program{server, other} {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}
}

// TestTwoPeers has no third peer: the client is the first peer that could hold
// the provider's record.
func TestTwoPeers(t *testing.T) {
	dir := t.TempDir()
	server, cid, addr := provider(t, writeFile(t, filepath.Join(dir, "original"), []byte("x")))
	client := fetcher(t, cid, filepath.Join(dir, "copy"), addr)
	if err := client.Wait(); err != nil {
		t.Errorf("%v, after\n%s", err, client.Text())
	}
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
}

func TestWhatNobodyHas(t *testing.T) {
	dir := t.TempDir()
	server, _, addr := provider(t, writeFile(t, filepath.Join(dir, "original"), []byte("x")))
	client := fetcher(t, "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", filepath.Join(dir, "copy"), addr, "-search", "0s")
	if err := client.Wait(); err == nil || !strings.Contains(err.Error(), "no peer of the network provides") {
		t.Errorf("%v", err)
	}
	nothingLeft(t, dir)
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
}

// TestALiar fetches from a peer that provides one thing and sends another.
func TestALiar(t *testing.T) {
	dir := t.TempDir()
	to := filepath.Join(dir, "copy")
	server, c, addr := provider(t, writeFile(t, filepath.Join(dir, "original"), []byte("true")))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	liar, err := p2pnode.New(ctx, p2pnode.WithNetwork("example"), p2pnode.WithListenAddrs(onLoopback[1]), p2pnode.WithBootstrapAddrs(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer liar.Close()
	err = liar.Handle(fetchProtocol, func(_ context.Context, s network.Stream) error {
		_, err := io.WriteString(s, "lie")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	key, err := cid.Decode("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")
	if err != nil {
		t.Fatal(err)
	}
	if err := liar.Provide(ctx, key); err != nil {
		t.Fatal(err)
	}
	client := fetcher(t, key.String(), to, addr)
	if err := client.Wait(); err == nil || !strings.Contains(err.Error(), "sent something else") {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(to); err == nil {
		t.Error("a lie was written")
	}
	nothingLeft(t, dir)

	// The honest provider is found in spite of the liar.
	if key, err = cid.Decode(c); err != nil {
		t.Fatal(err)
	}
	if err := liar.Provide(ctx, key); err != nil {
		t.Fatal(err)
	}
	server.Line("provided:")
	client = fetcher(t, c, to, addr)
	if err := client.Wait(); err != nil {
		t.Errorf("%v, after\n%s", err, client.Text())
	}
	if got, err := os.ReadFile(to); err != nil || string(got) != "true" {
		t.Errorf("fetched %q, %v", got, err)
	}
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	const someCID = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
	dir := t.TempDir()
	there, missing := writeFile(t, filepath.Join(dir, "there"), nil), filepath.Join(dir, "missing")
	clitest.Usage(t, run,
		[]string{"-provide FILE"},
		[]string{"-provide FILE", "-provide", there, "-fetch", someCID},
		[]string{"not a CID", "-fetch", "x", "-o", missing, "-bootstrap", "x"},
		[]string{"plain file", "-fetch", "QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n", "-o", missing, "-bootstrap", "x"},
		[]string{"-o FILE", "-fetch", someCID},
		[]string{"-o: ", "-fetch", someCID, "-o", there, "-bootstrap", "x"},
		[]string{"-o: ", "-fetch", someCID, "-o", filepath.Join(missing, "copy"), "-bootstrap", "x"},
		[]string{"-bootstrap: ", "-fetch", someCID, "-o", missing, "-bootstrap", "x"},
		[]string{"-network: ", "-provide", there, "-network", "a b"},
		[]string{"-provide: ", "-provide", dir},
		[]string{"-provide: ", "-provide", missing})
	nothingLeft(t, dir)
}

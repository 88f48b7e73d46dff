package p2pnode

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
)

func TestSwarmKeyFileIsCreatedOnceAndReused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "swarm.key")
	psk, err := LoadOrCreateSwarmKey(file)
	mustNot(t, err)
	again, err := LoadOrCreateSwarmKey(file)
	mustNot(t, err)
	if !bytes.Equal(psk, again) {
		t.Error("the second load returned another key")
	}
	fi, err := os.Stat(file)
	mustNot(t, err)
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
	// What libp2p itself reads from the file is the same key.
	f, err := os.Open(file)
	mustNot(t, err)
	defer f.Close()
	if theirs, err := pnet.DecodeV1PSK(f); err != nil || !bytes.Equal(theirs, psk) {
		t.Errorf("libp2p reads another key, %v", err)
	}
}

func TestPitfall32BrokenSwarmKeyIsAnErrorAndStays(t *testing.T) {
	secret := hex.EncodeToString(bytes.Repeat([]byte{0xab, 0xcd}, 16))
	for _, content := range []string{
		"", secret, swarmKeyHead, swarmKeyHead + "\n/base16/\n", swarmKeyHead + "\n/base16/\n" + secret[2:],
		swarmKeyHead + "\n/base16/\n" + secret + "00", swarmKeyHead + "\n/base16/\nx" + secret[1:],
		swarmKeyHead + "\n/base32/\n" + secret, swarmKeyHead + "\n/bin/\n" + secret,
	} {
		file := filepath.Join(t.TempDir(), "swarm.key")
		mustNot(t, os.WriteFile(file, []byte(content), 0o600))
		psk, err := LoadOrCreateSwarmKey(file)
		if err == nil || psk != nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v", content, err)
			continue
		}
		if strings.Contains(err.Error(), "abcd") {
			t.Errorf("a part of the key stands in %q", err)
		}
		if b, _ := os.ReadFile(file); string(b) != content {
			t.Errorf("%q became %q", content, b)
		}
	}
}

func FuzzDecodeSwarmKey(f *testing.F) {
	psk := bytes.Repeat([]byte{7}, pskSize)
	text, _ := EncodeSwarmKey(psk)
	f.Add([]byte(text))
	f.Add([]byte(swarmKeyHead + "\n/base64/\n" + base64.StdEncoding.EncodeToString(psk)))
	f.Add([]byte(swarmKeyHead + "\n/bin/\n" + string(psk)))
	f.Fuzz(func(t *testing.T, b []byte) {
		psk, err := DecodeSwarmKey(b)
		if err != nil {
			return
		}
		text, err := EncodeSwarmKey(psk)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := DecodeSwarmKey([]byte(text)); err != nil || !bytes.Equal(again, psk) {
			t.Errorf("a key became another one, %v", err)
		}
	})
}

// A node with another key, or with none, gets no connection; one with the key
// does. Status names the network by a fingerprint that is not the key.
func TestPrivateNetworkFingerprint(t *testing.T) {
	t.Parallel()
	psk := bytes.Repeat([]byte{7}, pskSize)
	other := bytes.Repeat([]byte{8}, pskSize)
	tcp := WithListenAddrs("/ip4/127.0.0.1/tcp/0")
	inside := newNode(t, tcp, WithPrivateNetwork(psk))
	to := peer.AddrInfo{ID: inside.ID(), Addrs: inside.Host().Addrs()}
	for name, n := range map[string]*Node{"another key": newNode(t, tcp, shortDials, WithPrivateNetwork(other)), "no key": newNode(t, tcp, shortDials)} {
		if err := n.Connect(testContext(t), to); err == nil {
			t.Errorf("a node with %s got in", name)
		}
		if len(inside.Peers()) != 0 || len(n.Peers()) != 0 {
			t.Errorf("a node with %s became a peer", name)
		}
	}
	friend := newNode(t, tcp, WithPrivateNetwork(psk))
	mustNot(t, friend.Connect(testContext(t), to))
	fp := inside.Status().PrivateNetwork
	if len(fp) != 16 || fp != friend.Status().PrivateNetwork || fp == fingerprint(other) || strings.Contains(hex.EncodeToString(psk), fp) {
		t.Errorf("fingerprint %q", fp)
	}
	if fp := newNode(t, tcp).Status().PrivateNetwork; fp != "" {
		t.Errorf("a node without a key has the fingerprint %q", fp)
	}
}

package p2pnode

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/go-p2pnode/p2pnode/internal/keyfile"
)

func TestKeysOfEveryTypeSurviveEncoding(t *testing.T) {
	for kind, want := range map[KeyType]string{KeyEd25519: "Ed25519", KeyRSA: "RSA", KeySecp256k1: "Secp256k1", KeyECDSA: "ECDSA"} {
		key, err := GenerateKey(kind)
		mustNot(t, err)
		if got := key.Type().String(); got != want {
			t.Errorf("%s: a key of type %s", kind, got)
		}
		text, err := EncodeKey(key)
		mustNot(t, err)
		back, err := DecodeKey("\n " + text + "\n")
		if err != nil || !back.Equals(key) {
			t.Errorf("%s: decoded to another key, %v", kind, err)
		}
		id, err := PeerID(key)
		mustNot(t, err)
		n, err := New(testContext(t), WithoutListening(), WithIdentityString(text))
		mustNot(t, err)
		if n.ID() != id {
			t.Errorf("%s: the node is %s, not %s", kind, n.ID(), id)
		}
		mustNot(t, n.Close())
	}
}

// The text of a key is the form of kubo's Identity.PrivKey: the protobuf of
// type and data, in base64. This one is the key made of the bytes 1 to 32.
func TestKnownKey(t *testing.T) {
	const text = "CAESQAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gebVWLo/mVPlAeLEIqOh00QH0XfuFI/cKEMy07PInBmQ="
	key, err := DecodeKey(text)
	mustNot(t, err)
	raw, err := key.Raw()
	mustNot(t, err)
	for i := range 32 {
		if raw[i] != byte(i+1) {
			t.Fatalf("the seed starts with %x", raw[:4])
		}
	}
	again, err := EncodeKey(key)
	if err != nil || again != text {
		t.Errorf("encoded to another text, %v", err)
	}
}

func TestBadKeysAreRefusedWithoutBeingQuoted(t *testing.T) {
	good, err := EncodeKey(someKey(t))
	mustNot(t, err)
	b, err := base64.StdEncoding.DecodeString(good)
	mustNot(t, err)
	for name, text := range map[string]string{
		"nothing": "", "spaces": " \n", "not base64": "!" + good, "half": good[:len(good)/2], "twice": good + good,
		"a byte more":  base64.StdEncoding.EncodeToString(append(bytes.Clone(b), 0)),
		"a byte less":  base64.StdEncoding.EncodeToString(b[:len(b)-1]),
		"another type": base64.StdEncoding.EncodeToString(append([]byte{8, 9}, b[2:]...)),
		"huge":         strings.Repeat(good, 1000),
	} {
		_, err := DecodeKey(text)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for i := 0; i+8 <= len(good); i++ {
			if strings.Contains(err.Error(), good[i:i+8]) {
				t.Errorf("%s: the error quotes the key: %v", name, err)
				break
			}
		}
	}
	if _, err := EncodeKey(nil); err == nil {
		t.Error("EncodeKey(nil)")
	}
	if _, err := PeerID(nil); err == nil {
		t.Error("PeerID(nil)")
	}
	for _, bits := range []int{0, 1024, 2047, 8193} {
		if _, err := GenerateRSAKey(bits); err == nil || !strings.Contains(err.Error(), fmt.Sprint(bits)) {
			t.Errorf("an RSA key of %d bits: %v", bits, err)
		}
	}
	if _, err := GenerateKey("rot13"); err == nil || !strings.Contains(err.Error(), `"rot13"`) {
		t.Errorf("an unknown type: %v", err)
	}
}

func FuzzDecodeKey(f *testing.F) {
	for _, kind := range []KeyType{KeyEd25519, KeySecp256k1, KeyECDSA} {
		key, err := GenerateKey(kind)
		mustNot(f, err)
		text, err := EncodeKey(key)
		mustNot(f, err)
		f.Add(text)
		f.Add(text[:len(text)/2])
	}
	f.Add("")
	f.Add("CAES")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := DecodeKey(text)
		if err != nil {
			return
		}
		again, err := EncodeKey(key)
		if err != nil || again != strings.TrimSpace(text) {
			t.Errorf("%q was accepted, but encodes to %q, %v", text, again, err)
		}
		if _, err := PeerID(key); err != nil {
			t.Error(err)
		}
	})
}

func TestIdentityFileIsCreatedOnceAndReused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node.key")
	var ids []string
	for range 2 {
		n, err := New(testContext(t), WithoutListening(), WithIdentityFile(file))
		mustNot(t, err)
		ids = append(ids, n.ID().String())
		mustNot(t, n.Close())
	}
	if ids[0] != ids[1] {
		t.Errorf("%s became %s", ids[0], ids[1])
	}
	info, err := os.Stat(file)
	mustNot(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

// The error for an unusable file has a way out, and the file stays unchanged
// (pitfall 39).
func TestPitfall39BadIdentityFileStaysUntouched(t *testing.T) {
	key := someKey(t)
	text, err := EncodeKey(key)
	mustNot(t, err)
	marshaled, err := crypto.MarshalPrivateKey(key)
	mustNot(t, err)
	type verdict int
	const (
		accepted verdict = iota
		refused
		exposed
	)
	for name, row := range map[string]struct {
		content []byte
		mode    os.FileMode
		want    verdict
	}{
		"text":               {[]byte(text + "\n"), 0o600, accepted},
		"text, read-only":    {[]byte(text), 0o400, accepted},
		"marshaled":          {marshaled, 0o600, accepted},
		"empty":              {nil, 0o600, refused},
		"truncated text":     {[]byte(text[:len(text)-9]), 0o600, refused},
		"truncated":          {marshaled[:len(marshaled)-1], 0o600, refused},
		"foreign":            {[]byte("-----BEGIN PRIVATE KEY-----\n"), 0o600, refused},
		"too large":          {bytes.Repeat([]byte("x"), 1<<20), 0o600, refused},
		"readable by others": {[]byte(text), 0o644, exposed},
		"readable by group":  {[]byte(text), 0o640, exposed},
	} {
		file := filepath.Join(t.TempDir(), "node.key")
		mustNot(t, os.WriteFile(file, row.content, row.mode))
		mustNot(t, os.Chmod(file, row.mode))
		n, err := New(testContext(t), WithoutListening(), WithIdentityFile(file))
		switch {
		case row.want == accepted:
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if !n.key.Equals(key) {
				t.Errorf("%s: another key", name)
			}
			mustNot(t, n.Close())
		default:
			var oe *OptionError
			if !errors.As(err, &oe) || oe.Option != "WithIdentityFile" || errors.Is(err, keyfile.ErrExposed) != (row.want == exposed) || !strings.Contains(err.Error(), file) {
				t.Errorf("%s: %v", name, err)
			}
		}
		after, err := os.ReadFile(file)
		info, serr := os.Stat(file)
		if err != nil || serr != nil || !bytes.Equal(after, row.content) || info.Mode().Perm() != row.mode {
			t.Errorf("%s: the file was touched", name)
		}
	}
	missing := filepath.Join(t.TempDir(), "no", "such")
	if _, err := New(testContext(t), WithIdentityFile(filepath.Join(missing, "key"))); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), fmt.Sprintf("%q", missing)) {
		t.Errorf("a missing directory: %v", err)
	}
}

// Nodes and processes that start concurrently get the same key.
func TestIdentityFileRace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node.key")
	ids := make([]string, 24)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			if i%3 == 0 { // another process
				cmd := exec.Command(os.Args[0], "-test.run=^TestIdentityProcess$", "-test.v")
				cmd.Env = append(os.Environ(), "P2PNODE_TEST_IDENTITY="+file)
				out, err := cmd.Output()
				if err != nil {
					t.Errorf("a process failed: %v\n%s", err, out)
				}
				_, after, _ := strings.Cut(string(out), "peer ID ")
				ids[i], _, _ = strings.Cut(after, "\n")
				return
			}
			key, _, err := loadOrCreateIdentity(file)
			if err != nil {
				t.Error(err)
				return
			}
			id, err := PeerID(key)
			if err != nil {
				t.Error(err)
			}
			ids[i] = id.String()
		})
	}
	wg.Wait()
	for i, id := range ids {
		if id == "" || id != ids[0] {
			t.Errorf("start %d has the identity %q, the first %q", i, id, ids[0])
		}
	}
}

// TestIdentityProcess is the other process of TestIdentityFileRace.
func TestIdentityProcess(t *testing.T) {
	file := os.Getenv("P2PNODE_TEST_IDENTITY")
	if file == "" {
		return
	}
	key, _, err := loadOrCreateIdentity(file)
	mustNot(t, err)
	id, err := PeerID(key)
	mustNot(t, err)
	fmt.Printf("peer ID %s\n", id)
}

// Neither logs nor Status hold the key.
func TestKeysAreNotLogged(t *testing.T) {
	var l log
	n := newNode(t, l.option())
	text, err := EncodeKey(n.key)
	mustNot(t, err)
	raw, err := n.key.Raw()
	mustNot(t, err)
	everything := l.String() + fmt.Sprintf("%+v %v", n.Status(), n)
	for _, secret := range []string{text[8:], fmt.Sprintf("%x", raw[:32]), fmt.Sprint(raw[:32])} {
		if strings.Contains(everything, secret) {
			t.Error("the private key shows")
		}
	}
}

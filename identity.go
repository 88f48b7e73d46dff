package p2pnode

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/keyfile"
)

// KeyType names a kind of private key.
type KeyType string

// The key types of [GenerateKey].
const (
	// KeyEd25519 ("ed25519") is the default everywhere: its keys are small and
	// fast, and the peer ID contains the public key.
	KeyEd25519 KeyType = "ed25519"
	// KeyRSA ("rsa") has 2048 bits; [GenerateRSAKey] makes longer keys.
	KeyRSA KeyType = "rsa"
	// KeySecp256k1 ("secp256k1") is on the curve of that name.
	KeySecp256k1 KeyType = "secp256k1"
	// KeyECDSA ("ecdsa") is on the curve P-256.
	KeyECDSA KeyType = "ecdsa"
)

// The sizes of RSA keys in bits: smaller ones are not safe, and other peers
// refuse larger ones.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// maxKeyText bounds the text of a key, in bytes; that of the largest RSA key has
// about 6,300.
const maxKeyText = keyfile.MaxSize

// GenerateKey makes a new private key from the system's random source. An RSA
// key has 2048 bits and takes tens of milliseconds, the others microseconds. An
// unknown type is an error.
func GenerateKey(t KeyType) (crypto.PrivKey, error) {
	var key crypto.PrivKey
	var err error
	switch t {
	case KeyEd25519:
		key, _, err = crypto.GenerateEd25519Key(rand.Reader)
	case KeyRSA:
		return GenerateRSAKey(minRSABits)
	case KeySecp256k1:
		key, _, err = crypto.GenerateSecp256k1Key(rand.Reader)
	case KeyECDSA:
		key, _, err = crypto.GenerateECDSAKeyPair(rand.Reader)
	default:
		return nil, fmt.Errorf("p2pnode: generate key: %q is not a key type: choose from %s", string(t), quoteAll([]KeyType{KeyEd25519, KeyRSA, KeySecp256k1, KeyECDSA}))
	}
	if err != nil {
		return nil, fmt.Errorf("p2pnode: generate key: %w", err)
	}
	return key, nil
}

// GenerateRSAKey makes a new RSA key of 2048 to 8192 bits. Another size is an
// error.
func GenerateRSAKey(bits int) (crypto.PrivKey, error) {
	if bits < minRSABits || bits > maxRSABits {
		return nil, fmt.Errorf("p2pnode: generate RSA key: %d bits: it must be %d to %d", bits, minRSABits, maxRSABits)
	}
	key, _, err := crypto.GenerateRSAKeyPair(bits, rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("p2pnode: generate RSA key: %w", err)
	}
	return key, nil
}

// EncodeKey returns the text of a private key: the base64 of its marshaled
// form, as go-libp2p programs and kubo (Identity.PrivKey) store it.
// [WithIdentityString] and [DecodeKey] read it. The text is as secret as the
// key.
func EncodeKey(key crypto.PrivKey) (string, error) {
	if _, err := peerID(key); err != nil {
		return "", fmt.Errorf("p2pnode: encode key: %w", err)
	}
	b, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return "", errors.New("p2pnode: encode key: the key cannot be marshaled")
	}
	return base64.StdEncoding.EncodeToString(b), nil
}

// DecodeKey reads the text that [EncodeKey] returns, ignoring white space
// around it. Its errors contain no part of the text.
func DecodeKey(s string) (crypto.PrivKey, error) {
	key, err := decodeKey(s)
	if err != nil {
		return nil, fmt.Errorf("p2pnode: decode key: %w", err)
	}
	return key, nil
}

func decodeKey(s string) (crypto.PrivKey, error) {
	if len(s) > maxKeyText {
		return nil, fmt.Errorf("the text has %d characters, too many for a key", len(s))
	}
	s = strings.TrimSpace(s)
	if s == "" {
		return nil, errors.New("the text is empty")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		// The error of package base64 gives away no more than a position.
		return nil, fmt.Errorf("the text is not the base64 of a private key: %w", err)
	}
	return unmarshalKey(b)
}

// unmarshalKey reads a marshaled key and checks that it is complete: it marshals
// to the same bytes, and has a usable public key.
func unmarshalKey(b []byte) (crypto.PrivKey, error) {
	// The libraries' errors may quote the key, so they are dropped.
	key, err := crypto.UnmarshalPrivateKey(b)
	if err != nil {
		return nil, errors.New("it is not a complete private key in libp2p's format")
	}
	if again, err := crypto.MarshalPrivateKey(key); err != nil || !bytes.Equal(again, b) {
		return nil, errors.New("it is a private key with something missing or added")
	}
	if _, err := peerID(key); err != nil {
		return nil, errors.New("it is a private key without a usable public key")
	}
	return key, nil
}

// PeerID returns the peer ID of a private key. A nil or unusable key is an
// error. Specification:
// github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md.
func PeerID(key crypto.PrivKey) (peer.ID, error) {
	id, err := peerID(key)
	if err != nil {
		return "", fmt.Errorf("p2pnode: peer ID: %w", err)
	}
	return id, nil
}

func peerID(key crypto.PrivKey) (peer.ID, error) {
	if isNil(key) {
		return "", errors.New("the key is nil")
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return "", errors.New("the key has no usable public key") // err may quote it
	}
	return id, nil
}

// loadOrCreateIdentity reads the key at path, or creates the file with a new
// Ed25519 key. It holds what [EncodeKey] returns and a newline.
func loadOrCreateIdentity(path string) (key crypto.PrivKey, created bool, err error) {
	generate := func() ([]byte, error) {
		k, err := GenerateKey(KeyEd25519)
		if err != nil {
			return nil, err
		}
		text, err := EncodeKey(k)
		return []byte(text + "\n"), err
	}
	check := func(b []byte) (err error) {
		key, err = parseKeyFile(b)
		return err
	}
	_, created, err = keyfile.LoadOrCreate(path, generate, check)
	switch {
	case errors.Is(err, keyfile.ErrExposed):
		return nil, false, fmt.Errorf("%w (where that is impossible, read the file and give its text to WithIdentityString)", err)
	case err != nil:
		return nil, false, err
	}
	return key, created, nil
}

// parseKeyFile reads the content of a key file: the text, or the marshaled
// bytes, which other programs write. Those start with 0x08 and the key's type,
// which no text does.
func parseKeyFile(b []byte) (crypto.PrivKey, error) {
	if len(b) > 0 && b[0] == 0x08 {
		return unmarshalKey(b)
	}
	return decodeKey(string(b))
}

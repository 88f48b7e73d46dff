package p2pnode

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/go-p2pnode/p2pnode/internal/keyfile"
)

// swarmKeyHead is the first line of a swarm.key file.
const swarmKeyHead = "/key/swarm/psk/1.0.0/"

const pskSize = 32

// LoadOrCreateSwarmKey returns the key in the swarm.key file at path, for
// [WithPrivateNetwork]. If there is no file, it creates one with a new random
// key and mode 0600. Kubo and other implementations read the same format. An
// existing file is never changed: one that is damaged, or that others may read,
// is an error. It is safe for concurrent use, also by several processes: all
// get the same key. Errors contain no part of the key.
func LoadOrCreateSwarmKey(path string) ([]byte, error) {
	var psk []byte
	generate := func() ([]byte, error) {
		fresh := make([]byte, pskSize)
		rand.Read(fresh) // never fails
		text, err := EncodeSwarmKey(fresh)
		return []byte(text), err
	}
	check := func(b []byte) (err error) {
		psk, err = decodeSwarmKey(b)
		return err
	}
	if _, _, err := keyfile.LoadOrCreate(path, generate, check); err != nil {
		return nil, fmt.Errorf("p2pnode: swarm key: %w", err)
	}
	return psk, nil
}

// EncodeSwarmKey returns the content of a swarm.key file for a key of 32 bytes.
// It is as secret as the key. Another length is an error.
func EncodeSwarmKey(psk []byte) (string, error) {
	if len(psk) != pskSize {
		return "", fmt.Errorf("p2pnode: encode swarm key: %d bytes, not %d", len(psk), pskSize)
	}
	return swarmKeyHead + "\n/base16/\n" + hex.EncodeToString(psk) + "\n", nil
}

// DecodeSwarmKey returns the key in the content of a swarm.key file, encoded in
// base16, base64 or as raw bytes (/bin/). Errors contain no part of the key.
func DecodeSwarmKey(content []byte) ([]byte, error) {
	psk, err := decodeSwarmKey(content)
	if err != nil {
		return nil, fmt.Errorf("p2pnode: decode swarm key: %w", err)
	}
	return psk, nil
}

func decodeSwarmKey(b []byte) ([]byte, error) {
	if len(b) > keyfile.MaxSize {
		return nil, fmt.Errorf("it has %d bytes, too many for a key", len(b))
	}
	head, rest, _ := bytes.Cut(b, []byte("\n"))
	if string(bytes.TrimSpace(head)) != swarmKeyHead {
		return nil, fmt.Errorf("its first line is not %s", swarmKeyHead)
	}
	codec, rest, _ := bytes.Cut(rest, []byte("\n"))
	var psk []byte
	var err error
	// The decoders' errors may quote the key, so they are dropped.
	switch string(bytes.TrimSpace(codec)) {
	case "/base16/":
		psk, err = hex.DecodeString(string(bytes.TrimSpace(rest)))
	case "/base64/":
		psk, err = base64.StdEncoding.Strict().DecodeString(string(bytes.TrimSpace(rest)))
	case "/bin/":
		psk = bytes.Clone(rest)
	default:
		return nil, errors.New("its second line is not /base16/, /base64/ or /bin/")
	}
	if err != nil {
		return nil, errors.New("the key is not in the encoding that its second line names")
	}
	if len(psk) != pskSize {
		return nil, fmt.Errorf("the key has %d bytes, not %d", len(psk), pskSize)
	}
	return psk, nil
}

// checkKey checks the key of a private network.
func checkKey(psk []byte) error {
	if len(psk) != pskSize {
		return fmt.Errorf("the key has %d bytes, not %d; LoadOrCreateSwarmKey reads a swarm.key file, and DecodeSwarmKey its content", len(psk), pskSize)
	}
	if !slices.ContainsFunc(psk, func(b byte) bool { return b != 0 }) {
		return errors.New("every byte of the key is 0: it was never filled in")
	}
	return nil
}

// fingerprint identifies a private network without giving away its key.
func fingerprint(psk []byte) string {
	if psk == nil {
		return ""
	}
	sum := sha256.Sum256(append([]byte("p2pnode private network\n"), psk...))
	return hex.EncodeToString(sum[:8])
}

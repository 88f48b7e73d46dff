package p2pnode

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/multiformats/go-multistream"
)

// answer is a connection on which everything is said already.
type answer struct{ io.Reader }

func (answer) Write(p []byte) (int, error) { return len(p), nil }
func (answer) Close() error                { return nil }

// Whatever bytes another key makes of a handshake, they are taken for it.
func TestEveryGarbledHandshakeIsKnown(t *testing.T) {
	source := rand.NewChaCha8([32]byte{1})
	seen := make(map[string]int)
	for range 100_000 {
		reply := make([]byte, 2048)
		_, _ = source.Read(reply)
		if source.Uint64()%4 == 0 { // a small length is rare, and so is a newline at the end
			length := 1 + source.Uint64()%100
			reply[0], reply[length] = byte(length), '\n'
		}
		_, err := multistream.SelectOneOf([]string{"/noise", "/tls/1.0.0"}, answer{bytes.NewReader(reply)})
		garbled, _ := brokenHandshakes([]DialFailure{{Err: fmt.Errorf("failed to negotiate security protocol: %w", err)}})
		if !garbled {
			t.Fatalf("not known: %v", err)
		}
		seen[err.Error()]++
	}
	if len(seen) < 5 {
		t.Errorf("only these came up: %v", seen)
	}
}

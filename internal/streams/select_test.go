package streams

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// answers is a remote side with fixed replies, whatever it receives.
type answers struct{ io.Reader }

func (answers) Write(p []byte) (int, error) { return len(p), nil }

// selectOne speaks with upstream's own.
func TestSelectOneIsUnderstood(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0") // a net.Pipe has no room for what is written first
	must(t, err)
	defer l.Close()
	long := protocol.ID("/" + strings.Repeat("long", 100))
	for _, c := range []struct {
		served, asked []protocol.ID
		want          protocol.ID
	}{
		{[]protocol.ID{"/a"}, []protocol.ID{"/a"}, "/a"},
		{[]protocol.ID{"/a", "/b"}, []protocol.ID{"/b", "/a"}, "/b"},
		{[]protocol.ID{"/a"}, []protocol.ID{"/x", "/y", "/a"}, "/a"},
		{[]protocol.ID{long}, []protocol.ID{"/x", long}, long},
		{[]protocol.ID{"/a"}, []protocol.ID{"/x", "/y"}, ""},
	} {
		near, err := net.Dial("tcp4", l.Addr().String())
		must(t, err)
		far, err := l.Accept()
		must(t, err)
		mux := multistream.NewMultistreamMuxer[protocol.ID]()
		for _, p := range c.served {
			mux.AddHandler(p, nil)
		}
		agreed := make(chan protocol.ID, 1)
		go func() {
			p, _, _ := mux.Negotiate(far) // an error is no protocol
			agreed <- p
		}()
		got, err := selectOne(near, c.asked)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q of %q: %q, %v", c.asked, c.served, got, err)
		}
		if c.want == "" && !errors.Is(err, multistream.ErrNotSupported[protocol.ID]{}) {
			t.Errorf("%q of %q: %v", c.asked, c.served, err)
		}
		_ = near.Close()
		if p := <-agreed; p != c.want {
			t.Errorf("%q of %q: the other side has %q", c.asked, c.served, p)
		}
		_ = far.Close()
	}
}

func FuzzSelectOne(f *testing.F) {
	hello := string(appendToken(nil, multistream.ProtocolID))
	for _, answer := range []string{
		"", hello, hello + "\x03/a\n", hello + "\x03na\n\x03/b\n", hello + "\x03na\n\x03na\n", hello + "\x03/c\n",
		"\x00", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "\x80\x80\x80\x80\x00", hello + "\x03/a.", hello + "\x7fx",
	} {
		f.Add([]byte(answer + "rest"))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		r := bytes.NewReader(answer)
		p, err := selectOne(answers{r}, []protocol.ID{"/a", "/b"})
		switch {
		case err != nil && p != "":
			t.Errorf("%q beside %v", p, err)
		case err == nil:
			read := answer[:len(answer)-r.Len()]
			if !bytes.HasSuffix(read, appendToken(nil, string(p))) {
				t.Errorf("%q of %q", p, read)
			}
		}
	})
}

// What the other side ended is a reset over every transport, and nothing else
// that callers look for.
func TestEndErrors(t *testing.T) {
	remote := func(code network.StreamErrorCode) error { return &network.StreamError{ErrorCode: code, Remote: true} }
	conn := func(code network.ConnErrorCode) error { return &network.ConnError{ErrorCode: code, Remote: true} }
	for _, c := range []struct {
		err   error
		limit bool
		words string
	}{
		{remote(0), false, ""},
		{remote(network.StreamResourceLimitExceeded), true, "reached a limit"},
		{remote(network.StreamRateLimited), true, "reached a limit"},
		{remote(network.StreamGated), false, "banned"},
		{remote(network.StreamShutdown), false, "closing"},
		{remote(network.StreamProtocolNegotiationFailed), false, "negotiation"},
		{remote(network.StreamProtocolViolation), false, "violated"},
		{&network.StreamError{ErrorCode: network.StreamResourceLimitExceeded}, false, ""}, // by this side
		{conn(network.ConnResourceLimitExceeded), true, "reached a limit"},
		{conn(network.ConnGarbageCollected), false, "too many connections"},
		{conn(network.ConnGated), false, "banned"},
		{conn(network.ConnShutdown), false, "closing"},
		{fmt.Errorf("connection closed: %w", io.EOF), false, ""},
		{fmt.Errorf("timeout: %w", context.DeadlineExceeded), false, ""},
		{&net.OpError{Err: net.ErrClosed}, false, ""},
	} {
		err := ended(c.err)
		if !errors.Is(err, network.ErrReset) || errors.Is(err, errs.ErrLimit) != c.limit || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%v became %v", c.err, err)
		}
		if c.words == "" && err.Error() != c.err.Error() {
			t.Errorf("%v became %v", c.err, err)
		}
		for _, no := range []error{net.ErrClosed, io.EOF, context.DeadlineExceeded, errs.ErrClosed} {
			if errors.Is(err, no) {
				t.Errorf("%v is %v", err, no)
			}
		}
		if _, ok := errors.AsType[net.Error](err); ok {
			t.Errorf("%v is a net.Error", err)
		}
	}
	if se, ok := errors.AsType[*network.StreamError](ended(remote(5))); !ok || se.ErrorCode != 5 {
		t.Errorf("libp2p's error is lost: %v", se)
	}
}

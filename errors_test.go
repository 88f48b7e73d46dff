package p2pnode

import (
	"errors"
	"net"
	"strings"
	"testing"
)

func TestErrorKinds(t *testing.T) {
	if !errors.Is(ErrClosed, net.ErrClosed) || errors.Is(ErrDisabled, net.ErrClosed) {
		t.Error("ErrClosed should be net.ErrClosed, and no other should")
	}
	cause := errors.New("cause")
	for _, err := range []error{&OptionError{"WithX", cause}, &StartError{"host", cause}, &ListenError{ma4("/ip4/127.0.0.1/tcp/1"), cause}} {
		if !errors.Is(err, cause) || !strings.Contains(err.Error(), "cause") {
			t.Errorf("%T: %v", err, err)
		}
	}
}

// The errors of methods whose part is off name the option.
func TestDisabledPartsSaySo(t *testing.T) {
	n := newNode(t, WithoutDHT(), WithoutPubSub())
	ctx := testContext(t)
	calls := blockedCallsClosed(t, n)
	for _, name := range []string{"Provide", "FindProviders", "FindPeer", "PutValue", "GetValue", "Advertise", "FindPeers"} {
		if err := calls[name](); !errors.Is(err, ErrDisabled) || !strings.Contains(err.Error(), "WithoutDHT") {
			t.Errorf("%s = %v", name, err)
		}
	}
	for _, name := range []string{"Publish", "Subscribe"} {
		if err := calls[name](); !errors.Is(err, ErrDisabled) || !strings.Contains(err.Error(), "WithoutPubSub") {
			t.Errorf("%s = %v", name, err)
		}
	}
	if s := n.Status(); s.DHT != nil || s.Topics != nil {
		t.Errorf("Status has %+v and %+v", s.DHT, s.Topics)
	}
	mustNot(t, n.WaitReady(ctx))
}

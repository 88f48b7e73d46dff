package watch

import (
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/record"
)

func TestOrder(t *testing.T) {
	type said struct {
		after  time.Duration // the one before
		of     peer.ID
		protos []protocol.ID
		record string
		leaves bool
	}
	for name, row := range map[string]struct {
		said []said
		want []peer.ID // a moment later
	}{
		"once": {[]said{{of: "a"}}, nil},
		"the same twice": {[]said{
			{of: "a", protos: []protocol.ID{"/x", "/y"}, record: "1"},
			{of: "a", protos: []protocol.ID{"/y", "/x"}, record: "1"},
		}, nil},
		"other protocols":    {[]said{{of: "a"}, {of: "a", protos: []protocol.ID{"/x"}}}, []peer.ID{"a"}},
		"joined protocols":   {[]said{{of: "a", protos: []protocol.ID{"/x", "/y"}}, {of: "a", protos: []protocol.ID{"/x/y"}}}, []peer.ID{"a"}},
		"other addresses":    {[]said{{of: "a", record: "1"}, {of: "a", record: "2"}}, []peer.ID{"a"}},
		"there and back":     {[]said{{of: "a", record: "1"}, {of: "a", record: "2"}, {of: "a", record: "1"}}, []peer.ID{"a"}},
		"far apart":          {[]said{{of: "a"}, {after: together + 1, of: "a", protos: []protocol.ID{"/x"}}}, nil},
		"of two peers":       {[]said{{of: "a"}, {of: "b", record: "1"}}, nil},
		"both of two":        {[]said{{of: "a"}, {of: "b"}, {of: "a", record: "1"}, {of: "b", record: "1"}}, []peer.ID{"a", "b"}},
		"a peer that left":   {[]said{{of: "a"}, {of: "a", record: "1"}, {of: "a", leaves: true}}, nil},
		"one that came back": {[]said{{of: "a"}, {of: "a", leaves: true}, {of: "a", record: "1"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			o, now := newOrder(), time.Unix(0, 0)
			defer o.timer.Stop()
			for _, s := range row.said {
				if s.leaves {
					o.forget(s.of)
					continue
				}
				now = now.Add(s.after)
				ev := event.EvtPeerIdentificationCompleted{Peer: s.of, Protocols: s.protos}
				if s.record != "" {
					ev.SignedPeerRecord = &record.Envelope{RawPayload: []byte(s.record)}
				}
				o.heard(ev, now)
			}
			if early := o.ripe(now.Add(settle - 1)); len(early) != 0 {
				t.Errorf("%s are asked too early", early)
			}
			got := o.ripe(now.Add(settle))
			slices.Sort(got)
			if !slices.Equal(got, row.want) {
				t.Errorf("%s are asked; want %s", got, row.want)
			}
			if again := o.ripe(now.Add(time.Hour)); len(again) != 0 {
				t.Errorf("%s are asked twice", again)
			}
		})
	}
}

// endless has a peer send messages that all differ, for 10 seconds, and returns how
// often it is asked.
func endless(o *order, now time.Time, answers bool) (asked int) {
	for i := range 100 {
		now = now.Add(settle / 10)
		o.heard(event.EvtPeerIdentificationCompleted{Peer: "a", Protocols: make([]protocol.ID, i)}, now)
		for _, id := range o.ripe(now) {
			asked++
			if answers {
				o.answered(id)
			}
		}
	}
	return asked
}

// A peer whose messages never end is asked all the same.
func TestOrderIsNotPutOffForever(t *testing.T) {
	o := newOrder()
	defer o.timer.Stop()
	if asked := endless(&o, time.Unix(0, 0), true); asked != 9 {
		t.Errorf("asked %d times in 10 seconds", asked)
	}
}

// A peer that pushes and does not answer has one question at a time, and the next one
// once that has ended.
func TestOrderWaitsForAnAnswer(t *testing.T) {
	o, begun := newOrder(), time.Unix(0, 0)
	defer o.timer.Stop()
	if asked := endless(&o, begun, false); asked != 1 {
		t.Errorf("asked %d times without an answer", asked)
	}
	o.answered("a")
	if got := o.ripe(begun.Add(time.Minute)); !slices.Equal(got, []peer.ID{"a"}) {
		t.Errorf("%s are asked after the answer", got)
	}
}

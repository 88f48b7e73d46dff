package main

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/natlab"
)

// said counts the messages of a test.
var said atomic.Int64

// hears publishes until a message arrives.
func hears(from, to *driven, topic string) promise {
	return promise{fmt.Sprintf("a message from %s to %s", from.name, to.name), 30 * time.Second, func() error {
		text := fmt.Sprint("message ", said.Add(1))
		_, err := from.call(Command{Do: "publish", Topic: topic, Text: text, Timeout: attempt})
		if err != nil {
			return err
		}
		arrived := func() bool {
			return len(to.find(func(r Reply) bool { return r.Type == "message" && r.Text == text })) > 0
		}
		for end := time.Now().Add(time.Second); time.Now().Before(end); {
			to.mu.Lock()
			grown := to.grown
			to.mu.Unlock()
			if arrived() {
				return nil
			}
			select {
			case <-grown:
			case <-time.After(time.Second):
			}
		}
		return fmt.Errorf("%q has not arrived", text)
	}}
}

// A router that forgets its mappings, and one that gets another address: the node behind
// it does not notice by its own addresses. Messages flow again, and others reach it.
func TestForgetfulRouter(t *testing.T) {
	waits(t)
	lab := natlab.New(t)
	servers := startPublic(t, lab, 4, Options{})
	o := Options{Bootstrap: servers, Traversal: true}
	for _, tt := range []struct {
		name   string
		a, b   natlab.Kind
		forget func(*natlab.Site) error
	}{
		{"forgets", natlab.PortRestricted, natlab.PortRestricted, (*natlab.Site).Forget},
		{"forgets ports", natlab.Symmetric, natlab.FullCone, (*natlab.Site).Forget},
		{"has another address", natlab.PortRestricted, natlab.PortRestricted, (*natlab.Site).Renumber},
	} {
		t.Run(tt.name, func(t *testing.T) {
			site := must(lab.Site(tt.name, natlab.Network{Kind: tt.a}))(t)
			a := start(t, must(site.Host("a"))(t), o)
			b := startBehind(t, lab, tt.name+" b", natlab.Network{Kind: tt.b}, o)
			stranger := startBehind(t, lab, tt.name+" stranger", natlab.Network{Kind: natlab.PortRestricted}, o)
			for _, p := range []*driven{a, b, stranger} {
				p.mustAwait("relay", homed)
			}
			for _, p := range []*driven{a, b} {
				p.must(Command{Do: "subscribe", Topic: tt.name})
			}
			// A hole is not always punched at the first attempt.
			keep(t, time.Now(), promise{"connected before", 30 * time.Second, func() error {
				err := talk(b, a)
				if err == nil {
					err = errors.Join(hears(a, b, tt.name).try(), hears(b, a, tt.name).try())
				}
				if err != nil {
					b.must(Command{Do: "disconnect", Peer: a.id})
				}
				return err
			}})

			if err := tt.forget(site); err != nil {
				t.Fatal(err)
			}
			forgot := time.Now()
			keep(t, forgot, hears(a, b, tt.name), hears(b, a, tt.name))
			keep(t, forgot,
				promise{"reached by a stranger", 30 * time.Second, func() error { return talk(stranger, a) }},
				promise{"reached by a peer that was connected", 30 * time.Second, func() error { return talk(b, a) }},
				promise{"reservation", 30 * time.Second, func() error { return hasReservation(a) }})
		})
	}
}

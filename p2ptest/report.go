package p2ptest

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
)

// reportLines is how many peers a failed wait describes; its file has all.
const reportLines = 8

// fail ends the test with the condition, the peers concerned (all, if they are
// not known) and the path of the file.
func (w Waiter) fail(what string, err error, concerned ...*member) {
	n := w.net
	n.tb.Helper()
	everyone := n.everyone()
	if len(concerned) == 0 {
		concerned = everyone
	}
	var b strings.Builder
	fmt.Fprintf(&b, "p2ptest: %s: not within %v: %v\n", what, w.limit, err)
	for _, m := range concerned[:min(len(concerned), reportLines)] {
		fmt.Fprintf(&b, "\t%s\n", n.line(m))
	}
	if more := len(concerned) - reportLines; more > 0 {
		fmt.Fprintf(&b, "\t… and %d more\n", more)
	}
	path, fileErr := n.writeReport(failure{Test: n.tb.Name(), Seed: n.seed, WaitedFor: what, Limit: w.limit.String(), Missing: err.Error()}, everyone)
	if fileErr != nil {
		fmt.Fprintf(&b, "the status of all %d peers could not be written: %v", len(everyone), fileErr)
	} else {
		fmt.Fprintf(&b, "the status of all %d peers is in %s", len(everyone), path)
	}
	n.tb.Fatalf("%s", b.String())
}

// Report describes the given peers, or without any all peers, in a line each.
func (n *Network) Report(who ...Selector) string {
	n.tb.Helper()
	list := n.everyone()
	if len(who) > 0 {
		list = n.pick("Report", everybody, who...)
	}
	var b strings.Builder
	for _, m := range list {
		fmt.Fprintln(&b, n.line(m))
	}
	return b.String()
}

// everyone returns all peers, including those that have not started.
func (n *Network) everyone() []*member {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.order)
}

// id returns a member's ID, even while it starts.
func (n *Network) id(m *member) peer.ID {
	n.mu.Lock()
	defer n.mu.Unlock()
	return m.id
}

// state describes the state of a member in a word.
func (n *Network) state(m *member) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case m.raw != nil:
		return "not of the library"
	case m.node.Load() == nil:
		return "not started"
	case m.gone:
		return "crashed"
	default:
		return "running"
	}
}

// line describes a peer in one line.
func (n *Network) line(m *member) string {
	state := n.state(m)
	head := fmt.Sprintf("%s (%s at %s): ", m.name, n.id(m), m.at().IP())
	switch {
	case m.raw != nil:
		return fmt.Sprintf("%s%s, %d peers", head, state, len(m.raw.Network().Peers()))
	case state != "running":
		return head + state
	}
	s := m.node.Load().Status()
	parts := []string{fmt.Sprintf("%d peers", len(s.Peers))}
	if s.Closed {
		parts = append([]string{"closed"}, parts...)
	}
	if s.DHT != nil {
		parts = append(parts, fmt.Sprintf("%d in the routing table", s.DHT.Peers))
	}
	for _, t := range s.Topics {
		parts = append(parts, fmt.Sprintf("topic %q with %d peers", t.Name, len(t.Peers)))
	}
	if s.Bootstrap != nil {
		parts = append(parts, fmt.Sprintf("last bootstrap round: %d connected, %d failed", len(s.Bootstrap.Connected), len(s.Bootstrap.Failed)))
	}
	return head + strings.Join(parts, ", ")
}

// failure is the content of a failed wait's file.
type failure struct {
	Test      string       `json:"test"`
	Seed      uint64       `json:"seed"`
	WaitedFor string       `json:"waitedFor"`
	Limit     string       `json:"limit"`
	Missing   string       `json:"missing"`
	Peers     []peerReport `json:"peers"`
}

type peerReport struct {
	Name   string          `json:"name"`
	ID     peer.ID         `json:"id"`
	Addr   string          `json:"addr"`
	State  string          `json:"state"`
	Status *p2pnode.Status `json:"status,omitempty"` // of a running node
}

// writeReport writes the Status of all peers to a file that outlives the test:
// in the directory of its artifacts, with go test -artifacts, or in the one for
// temporary files.
func (n *Network) writeReport(f failure, list []*member) (path string, err error) {
	for _, m := range list {
		r := peerReport{Name: m.name, ID: n.id(m), Addr: m.at().IP().String(), State: n.state(m)}
		if r.State == "running" {
			s := m.node.Load().Status()
			r.Status = &s
		}
		f.Peers = append(f.Peers, r)
	}
	text, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return "", err
	}
	dir := ""
	if kept := flag.Lookup("test.artifacts"); kept != nil && kept.Value.String() == "true" {
		dir = n.tb.ArtifactDir()
	}
	file, err := os.CreateTemp(dir, "p2ptest-*.json")
	if err != nil {
		return "", err
	}
	if _, err := file.Write(append(text, '\n')); err != nil {
		_ = file.Close() // the error is the one above
		return "", err
	}
	return file.Name(), file.Close()
}

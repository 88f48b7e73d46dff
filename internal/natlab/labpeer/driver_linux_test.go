package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/natlab"
	"github.com/go-p2pnode/p2pnode/internal/raced"
)

// patience ends a test that waits in vain. It does not assert speed.
const patience = 2 * time.Minute

// asPeer in the environment makes the test binary a peer.
const asPeer = "P2PNODE_LAB_PEER"

var long = flag.Bool("long", os.Getenv("CI") != "", "run the tests that wait for peers and routers; on in CI")

// waits skips a test that takes from 5 seconds to a minute, most of which it waits for
// peers and routers, unless it is asked for.
func waits(t *testing.T) {
	t.Helper()
	if testing.Short() || !*long {
		t.Skip("it waits for peers and routers: run with -long")
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(asPeer) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// driven is a peer in the laboratory.
type driven struct {
	t    testing.TB
	name string
	id   peer.ID
	in   *os.File
	done chan struct{} // closed when the process has ended

	started time.Time // when the node was up

	mu      sync.Mutex
	next    int                // guarded by mu
	replies map[int]chan Reply // guarded by mu
	events  []Reply            // guarded by mu
	grown   chan struct{}      // closed at the next event; guarded by mu
}

// start starts a peer on a host. It ends with the test.
func start(t testing.TB, h *natlab.Host, o Options) *driven {
	t.Helper()
	p := &driven{t: t, name: h.Name, done: make(chan struct{}), replies: map[int]chan Reply{}, grown: make(chan struct{})}
	stdin, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in = in
	log, err := os.CreateTemp(t.TempDir(), "peer")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asPeer+"=1", "GOMAXPROCS=1", "GORACE=exitcode=0")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, log
	process, err := h.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	stdout.Close()
	go func() {
		defer close(p.done)
		p.read(bufio.NewScanner(out))
		out.Close()
	}()
	t.Cleanup(func() {
		in.Close() // it ends at the end of its input
		kill := time.AfterFunc(patience, func() {
			t.Errorf("%s does not end", p.name)
			process.Kill()
		})
		defer kill.Stop()
		err := process.Wait()
		<-p.done
		text, err2 := os.ReadFile(log.Name())
		if err != nil || err2 != nil {
			t.Errorf("%s: %v\n%s", p.name, errors.Join(err, err2), text)
		}
		for _, report := range raced.Reports(string(text)) {
			t.Errorf("%s: %s", p.name, report)
		}
		log.Close()
	})
	r := p.must(Command{Do: "start", Options: o})
	p.id, p.started = r.Peer, r.At
	return p
}

func (p *driven) read(lines *bufio.Scanner) {
	lines.Buffer(nil, 1<<22)
	for lines.Scan() {
		var r Reply
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			p.t.Errorf("%s printed %q: %v", p.name, lines.Text(), err)
			return
		}
		p.mu.Lock()
		if c := p.replies[r.ID]; c != nil {
			delete(p.replies, r.ID)
			c <- r // which has room
		} else {
			p.events = append(p.events, r)
			close(p.grown)
			p.grown = make(chan struct{})
		}
		p.mu.Unlock()
	}
}

// call gives a command, and waits for the reply.
func (p *driven) call(c Command) (Reply, error) {
	answer := make(chan Reply, 1)
	p.mu.Lock()
	p.next++
	c.ID = p.next
	p.replies[c.ID] = answer
	line, err := json.Marshal(c)
	if err == nil {
		_, err = p.in.Write(append(line, '\n'))
	}
	p.mu.Unlock()
	if err != nil {
		return Reply{}, fmt.Errorf("%s: %w", p.name, err)
	}
	select {
	case r := <-answer:
		if r.Error != "" {
			return r, fmt.Errorf("%s: %s: %s", p.name, c.Do, r.Error)
		}
		return r, nil
	case <-p.done:
		return Reply{}, fmt.Errorf("%s: %s: it has ended", p.name, c.Do)
	case <-time.After(patience):
		return Reply{}, fmt.Errorf("%s: %s: no answer", p.name, c.Do)
	}
}

func (p *driven) must(c Command) Reply {
	p.t.Helper()
	r, err := p.call(c)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// await returns the first event that fits, past or future.
func (p *driven) await(fits func(Reply) bool) (Reply, error) {
	deadline := time.After(patience)
	for seen := 0; ; {
		p.mu.Lock()
		events, grown := p.events, p.grown
		p.mu.Unlock()
		for ; seen < len(events); seen++ {
			if fits(events[seen]) {
				return events[seen], nil
			}
		}
		select {
		case <-grown:
		case <-p.done:
			return Reply{}, errors.New("the process has ended")
		case <-deadline:
			return Reply{}, errors.New("it did not happen")
		}
	}
}

// mustAwait is await for an event that must come.
func (p *driven) mustAwait(what string, fits func(Reply) bool) Reply {
	p.t.Helper()
	r, err := p.await(fits)
	if err != nil {
		p.t.Fatalf("%s: %s: %v", p.name, what, err)
	}
	return r
}

// find returns the events so far that fit.
func (p *driven) find(fits func(Reply) bool) []Reply {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []Reply
	for _, r := range p.events {
		if fits(r) {
			list = append(list, r)
		}
	}
	return list
}

// opened fits connections to a peer that were opened, relayed ones or direct ones.
func opened(id peer.ID, relayed bool) func(Reply) bool {
	return func(r Reply) bool { return r.Opened && r.Peer == id && (r.Path == "relayed") == relayed }
}

// closedDirect fits direct connections to a peer that were closed.
func closedDirect(id peer.ID) func(Reply) bool {
	return func(r Reply) bool { return r.Closed && r.Peer == id && r.Path != "relayed" }
}

// addrs returns the addresses of a peer that contain a text.
func (p *driven) addrs(part string) []string {
	p.t.Helper()
	return slices.DeleteFunc(p.must(Command{Do: "addrs"}).Addrs, func(a string) bool { return !strings.Contains(a, part) })
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

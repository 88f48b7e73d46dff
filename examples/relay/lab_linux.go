package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/cli"
	"github.com/go-p2pnode/p2pnode/internal/natlab"
)

// laboratory is the role lab: this program in its other roles, as processes on hosts
// of network namespaces, a listener and a dialer behind a router of each kind.
func laboratory(ctx context.Context, f *flags, out io.Writer) error {
	kinds, err := parseKinds(*f.kinds)
	if err != nil {
		return err
	}
	if err := natlab.Missing(); err != nil {
		return fmt.Errorf("relay lab: it needs Linux, root, iproute2 and nftables: %w", err)
	}
	net, err := natlab.Open()
	if err != nil {
		return err
	}
	l := &lab{Lab: net}
	err = l.run(ctx, kinds, out)
	l.stop()
	if ctx.Err() != nil { // it was interrupted, and so were its processes
		err = nil
	}
	return errors.Join(err, net.Close())
}

// parseKinds returns the kinds of routers with the given names, in which - stands for
// a space.
func parseKinds(names string) ([]natlab.Kind, error) {
	if names == "" {
		return natlab.Kinds(), nil
	}
	var list []natlab.Kind
	spaced := func(s string) string { return strings.ReplaceAll(s, " ", "-") }
next:
	for name := range strings.SplitSeq(names, ",") {
		for _, k := range natlab.Kinds() {
			if strings.EqualFold(spaced(string(k)), spaced(strings.TrimSpace(name))) {
				list = append(list, k)
				continue next
			}
		}
		var all []string
		for _, k := range natlab.Kinds() {
			all = append(all, spaced(string(k)))
		}
		return nil, cli.Usagef("relay: -kinds: %q is none of %s", name, strings.Join(all, ", "))
	}
	return list, nil
}

// lab is the laboratory with the processes in it.
type lab struct {
	*natlab.Lab

	mu        sync.Mutex
	processes []*process // guarded by mu
}

// process is this program in one of its roles.
type process struct {
	*natlab.Process
	name  string
	lines *bufio.Scanner
	out   *os.File
}

// start starts a role on a host.
func (l *lab) start(h *natlab.Host, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, args...) // it is stopped by stop
	cmd.Stdout, cmd.Stderr = w, w
	p := &process{name: h.Name, lines: bufio.NewScanner(r), out: r}
	p.Process, err = h.Start(cmd)
	w.Close()
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.processes = append(l.processes, p)
	return p, nil
}

// stop ends all processes.
func (l *lab) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.processes {
		_ = p.Signal(syscall.SIGTERM) // it may have ended
	}
	for _, p := range l.processes {
		_, _ = io.Copy(io.Discard, p.out)
		_ = p.Wait() // what it had to say has been read
		p.out.Close()
	}
}

// line returns the rest of the first line that contains a text. Lines up to that one
// are passed to each.
func (p *process) line(text string, each func(string)) (string, error) {
	last := ""
	for p.lines.Scan() {
		last = p.lines.Text()
		if each != nil {
			each(last)
		}
		if _, rest, ok := strings.Cut(last, text); ok {
			return rest, nil
		}
	}
	return "", fmt.Errorf("%s ended: %s", p.name, last)
}

// behind is what a listener finds out.
type behind struct{ verdict, verdictAfter, reachableAfter string }

func (l *lab) run(ctx context.Context, kinds []natlab.Kind, out io.Writer) error {
	// Ctrl-C ends the processes, and so the waits for their lines.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stopped := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, p := range l.processes {
			_ = p.Signal(syscall.SIGTERM)
		}
	})
	defer stopped()

	begun := time.Now()
	var join []string
	for i := range 4 {
		h, err := l.Host(fmt.Sprint("relay ", i))
		if err != nil {
			return err
		}
		p, err := l.start(h, append([]string{"relay"}, join...)...)
		if err != nil {
			return err
		}
		ticket, err := p.line("relay listen -join ", nil)
		if err != nil {
			return err
		}
		join = append(join, "-join", ticket)
	}
	fmt.Fprintf(out, "4 public relays, and a listener and a dialer behind a router of each kind: %d processes\n", 4+2*len(kinds))

	each := func(side string, run func(i int, h *natlab.Host) error) error {
		errs := make([]error, len(kinds))
		var wg sync.WaitGroup
		for i, k := range kinds {
			wg.Go(func() {
				name := fmt.Sprint(side, " behind ", k)
				site, err := l.Site(name, natlab.Network{Kind: k})
				if err == nil {
					var h *natlab.Host
					if h, err = site.Host(name); err == nil {
						err = run(i, h)
					}
				}
				errs[i] = err
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}

	found, ids := make([]behind, len(kinds)), make([]string, len(kinds))
	err := each("listener", func(i int, h *natlab.Host) error {
		p, err := l.start(h, append([]string{"listen"}, join...)...)
		if err != nil {
			return err
		}
		_, err = p.line("reachable; next", func(line string) {
			word, verdict, isVerdict := strings.Cut(line, "reachability: ")
			word = strings.TrimSpace(word)
			switch {
			case isVerdict && verdict != "unknown":
				found[i].verdict, found[i].verdictAfter = verdict, word
				if verdict == "public" && found[i].reachableAfter == "" {
					found[i].reachableAfter = word
				}
			case strings.Contains(line, "reservation at ") && found[i].reachableAfter == "":
				found[i].reachableAfter = strings.Fields(line)[0]
			}
		})
		if err != nil {
			return err
		}
		ids[i], err = p.line(" -peer ", nil)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprint(out, "\n| behind | verdict | after | reachable after |\n|---|---|---|---|\n")
	for i, b := range found {
		fmt.Fprintf(out, "| %s | %s | %s | %s |\n", kinds[i], b.verdict, b.verdictAfter, b.reachableAfter)
	}

	cells := make([][]string, len(kinds))
	err = each("dialer", func(i int, h *natlab.Host) error {
		cells[i] = make([]string, len(kinds))
		p, err := l.start(h, append([]string{"dial", "-peer", strings.Join(ids, ",")}, join...)...)
		if err != nil {
			return err
		}
		for range kinds {
			result, err := p.line("result: ", nil)
			if err != nil {
				return err
			}
			id, path, _ := strings.Cut(result, " ")
			for j := range ids {
				if ids[j] == id {
					cells[i][j] = path
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Fprint(out, "\n| dialer, listener |")
	for _, k := range kinds {
		fmt.Fprintf(out, " %s |", k)
	}
	fmt.Fprintf(out, "\n|%s\n", strings.Repeat("---|", len(kinds)+1))
	var missed []string
	for i, k := range kinds {
		fmt.Fprintf(out, "| %s | %s |\n", k, strings.Join(cells[i], " | "))
		for j, other := range kinds {
			if cells[i][j] == relayed && natlab.Punchable(k, other, natlab.UDP) {
				missed = append(missed, fmt.Sprintf("%s × %s", k, other))
			}
		}
	}
	fmt.Fprintf(out, "\nin %s", time.Since(begun).Round(time.Second))
	if len(missed) > 0 {
		fmt.Fprintf(out, "; relayed, though a hole could be punched over UDP: %s", strings.Join(missed, ", "))
	}
	fmt.Fprintln(out)
	return nil
}

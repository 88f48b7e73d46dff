package natlab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace: an open file. It lives until the file is
// closed and no process is in it.
type namespace struct {
	name string
	file *os.File
}

// onThread runs fn on a thread of its own, which ends afterwards: it may belong
// to another namespace than the rest of the process.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the thread is not used again
		done <- fn()
	}()
	return <-done
}

func newNamespace(name string) (*namespace, error) {
	ns := &namespace{name: name}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("a network namespace: %w", err)
		}
		ns.file, err = os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		return set(map[string]string{
			// All of this is inherited by interfaces that come later.
			"net/ipv4/ip_forward":                 "0",
			"net/ipv4/conf/all/rp_filter":         "0",
			"net/ipv4/conf/default/rp_filter":     "0",
			"net/ipv6/conf/all/disable_ipv6":      "0",
			"net/ipv6/conf/default/disable_ipv6":  "0",
			"net/ipv6/conf/default/accept_dad":    "0", // addresses work at once
			"net/ipv6/conf/default/accept_ra":     "0",
			"net/ipv6/conf/default/dad_transmits": "0",
		})
	})
	if err == nil {
		err = ns.ip("link set lo up")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), ns.close())
	}
	return ns, nil
}

func (ns *namespace) close() error {
	if ns.file == nil {
		return nil
	}
	return ns.file.Close()
}

// do runs fn on a thread in the namespace. Sockets that it opens remain there.
func (ns *namespace) do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("%s: %w", ns.name, err)
		}
		return fn()
	})
}

// set sets sysctls of the namespace of this thread.
func set(values map[string]string) error {
	for name, value := range values {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// forward makes the namespace a router.
func (ns *namespace) forward() error {
	return ns.do(func() error {
		return set(map[string]string{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"})
	})
}

// ip runs commands of the program ip. Other namespaces are named /proc/self/fd/3
// and so on there.
func (ns *namespace) ip(commands string, others ...*namespace) error {
	return ns.run(commands, others, "ip", "-batch", "-")
}

func (ns *namespace) nft(rules string) error { return ns.run(rules, nil, "nft", "-f", "-") }

func (ns *namespace) run(input string, others []*namespace, name string, args ...string) error {
	_, err := ns.output(input, others, name, args...)
	return err
}

// output runs a program, and returns what it prints.
func (ns *namespace) output(input string, others []*namespace, name string, args ...string) (out []byte, err error) {
	err = ns.do(func() error {
		cmd := exec.Command(name, args...) //nolint:noctx // it ends by itself, and with this process
		cmd.Env = []string{"PATH=" + path}
		cmd.Path = lookPath(name)
		cmd.Stdin = strings.NewReader(input)
		for _, o := range others {
			cmd.ExtraFiles = append(cmd.ExtraFiles, o.file)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		var err error
		if out, err = cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %s %s: %w\n%s\n%s", ns.name, name, strings.Join(args, " "), err, bytes.TrimSpace(out), input)
		}
		return nil
	})
	return out, err
}

// start is Start of Host.
func (ns *namespace) start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{done: make(chan struct{})}
	started := make(chan error, 1)
	// The kernel kills the process when the thread ends that started it: the thread
	// waits for it.
	go func() {
		defer close(p.done)
		err := ns.do(func() error {
			if cmd.SysProcAttr == nil {
				cmd.SysProcAttr = &syscall.SysProcAttr{}
			}
			cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
			if err := cmd.Start(); err != nil {
				return err
			}
			p.Process = cmd.Process
			started <- nil
			p.err = cmd.Wait()
			return nil
		})
		if err != nil {
			started <- err
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", ns.name, err)
	}
	return p, nil
}

// path is where ip, nft and miniupnpd are.
const path = "/usr/sbin:/usr/bin:/sbin:/bin"

// lookPath returns the path of a program, or its name if it is nowhere.
func lookPath(name string) string {
	for dir := range strings.SplitSeq(path, ":") {
		if _, err := os.Stat(dir + "/" + name); err == nil {
			return dir + "/" + name
		}
	}
	return name
}

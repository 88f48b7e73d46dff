package natlab

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// owner in the environment makes the test binary open a lab and wait to be
// killed.
const owner = "P2PNODE_NATLAB_OWNER"

func TestMain(m *testing.M) {
	if os.Getenv(owner) != "" {
		if err := own(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// own opens a lab with a process on a host, connects a namespace of each sort to
// the one of file 3, and prints the process ID.
func own() error {
	lab, err := Open()
	if err != nil {
		return err
	}
	site, err := lab.Site("home", Network{Kind: PortRestricted})
	if err != nil {
		return err
	}
	h, err := site.Host("host")
	if err != nil {
		return err
	}
	witness := &namespace{"witness", os.NewFile(3, "witness")}
	for i, ns := range []*namespace{lab.core, site.router, h.ns} {
		if err := ns.ip(fmt.Sprintf("link add w%d type veth peer name w%[1]d netns /proc/self/fd/3", i), witness); err != nil {
			return err
		}
	}
	p, err := h.Start(exec.Command("sleep", "1000"))
	if err != nil {
		return err
	}
	fmt.Println(p.Pid)
	return p.Wait()
}

// A lab leaves nothing behind when its process is killed: no process, and no
// namespace, which shows by the far ends of its interfaces.
func TestNothingRemainsOfAKilledLab(t *testing.T) {
	New(t)
	witness := must(newNamespace("witness"))(t)
	defer witness.close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), owner+"=1")
	cmd.ExtraFiles = []*os.File{witness.file}
	out := must(cmd.StdoutPipe())(t)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	pid := 0
	if !lines.Scan() {
		t.Fatal("it printed nothing")
	}
	if _, err := fmt.Sscan(lines.Text(), &pid); err != nil {
		t.Fatal(lines.Text())
	}
	process := must(unix.PidfdOpen(pid, 0))(t)
	defer unix.Close(process)

	changes := -1
	var names []string
	list := func() error {
		all, err := net.Interfaces()
		names = nil
		for _, i := range all {
			names = append(names, i.Name)
		}
		return err
	}
	err := witness.do(func() (err error) {
		changes, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		if err := unix.Bind(changes, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
			return err
		}
		return list()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(changes)
	if len(names) != 4 {
		t.Fatalf("interfaces before: %q", names)
	}

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("it ended by itself: %v", err)
	}
	// ended waits until a file is readable.
	wait := func(fd int, what string) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds()))
			if n == 1 {
				return
			}
			if err != unix.EINTR {
				t.Fatalf("%s (%v)", what, err)
			}
		}
	}
	wait(process, "the process on the host is alive")
	for b := make([]byte, 1<<16); len(names) > 1; {
		wait(changes, fmt.Sprintf("interfaces remain: %q", names))
		if _, err := unix.Read(changes, b); err != nil {
			t.Fatal(err)
		}
		if err := witness.do(list); err != nil {
			t.Fatal(err)
		}
	}
}

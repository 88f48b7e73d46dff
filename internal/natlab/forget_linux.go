package natlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Forget makes the router forget who talks to whom, as one does that is switched off
// and on again, or that has to track too much.
func (s *Site) Forget() error {
	if s.net.Kind.translates() {
		var b strings.Builder
		for _, l4 := range []string{"udp", "tcp"} {
			fmt.Fprintf(&b, "flush map ip nat %[1]s_inside\nflush set ip nat %[1]s_sent\n", l4)
		}
		if err := s.router.nft(b.String()); err != nil {
			return err
		}
	}
	return s.router.do(flushConntrack)
}

// Renumber gives the router another address on the public network, as providers do
// after a reconnection, and makes it forget. It is for routers with a single NAT and
// IPv4.
func (s *Site) Renumber() error {
	if s.net.Kind == DoubleNAT || !s.net.Kind.translates() || s.net.Stack != IPv4 {
		return errors.New("only the router's own address of IPv4 can change")
	}
	s.lab.mu.Lock()
	s.lab.customers++
	n := s.lab.customers
	s.lab.mu.Unlock()
	if n > 250 {
		return errors.New("the public network is full")
	}
	was := s.at
	s.at = customerOf(n)
	err := s.lab.core.ip(fmt.Sprintf("addr add %s/30 dev c%d\naddr del %s/30 dev c%[2]d\n", s.at.gateway4, was.n, was.gateway4))
	if err != nil {
		return err
	}
	s.at.n = was.n // the name of the interface
	err = s.router.ip(fmt.Sprintf("addr add %s/30 dev wan\naddr del %s/30 dev wan\nroute replace default via %s\n", s.at.outer4, was.outer4, s.at.gateway4))
	if err != nil {
		return err
	}
	s.Outer4 = s.at.outer4
	rules := "delete table ip nat\ndelete table inet filter\n" + s.net.Kind.rules(s.Outer4.String(), s.net.Hairpin)
	if err := s.router.nft(rules); err != nil {
		return err
	}
	return s.router.do(flushConntrack)
}

// flushConntrack empties the connection tracking of this thread's namespace.
func flushConntrack() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // it is read to the end
	const ctDelete = 2   // IPCTNL_MSG_CT_DELETE; without attributes: all
	b := make([]byte, 0, 20)
	b = binary.NativeEndian.AppendUint32(b, 20) // length
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_CTNETLINK<<8|ctDelete)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = binary.NativeEndian.AppendUint32(b, 1) // sequence number
	b = binary.NativeEndian.AppendUint32(b, 0) // of the kernel's choice
	b = append(b, unix.AF_UNSPEC, 0, 0, 0)     // struct nfgenmsg
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 1<<10)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < 20 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("connection tracking: no acknowledgment")
	}
	if code := int32(binary.NativeEndian.Uint32(answer[16:])); code != 0 {
		return fmt.Errorf("flushing the connection tracking: %w", unix.Errno(-code))
	}
	return nil
}

package natlab

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// NeedMiniupnpd skips a test, or fails it in CI, where miniupnpd is not installed.
func NeedMiniupnpd(t testing.TB) {
	t.Helper()
	_, err := os.Stat(lookPath("miniupnpd"))
	switch {
	case err == nil:
	case os.Getenv("CI") != "": //nolint:forbidigo // as the other tests do
		t.Fatal("the program miniupnpd is not installed: install miniupnpd-nftables")
	default:
		t.Skip("the program miniupnpd is not installed: install miniupnpd-nftables")
	}
}

// PortMapping is how a router maps ports for its hosts.
type PortMapping struct {
	// UPnP and PMP are the protocols that it speaks: UPnP IGD; NAT-PMP and PCP.
	UPnP, PMP bool
	// Claims is the outer address that it tells; if invalid, its own.
	Claims netip.Addr
}

// PortMapper is the program that maps ports on a router: miniupnpd. It is not safe
// for concurrent use.
type PortMapper struct {
	site    *Site
	cfg     PortMapping
	dir     string // with its files
	process *Process
}

// The tables of miniupnpd are its own. What it maps comes before what the router
// itself makes of a packet.
const mapperTables = `table inet miniupnpd {
chain prerouting { type nat hook prerouting priority dstnat - 1; iifname wan jump prerouting_miniupnpd; }
chain postrouting { type nat hook postrouting priority srcnat - 1; oifname wan jump postrouting_miniupnpd; }
chain miniupnpd { }
chain prerouting_miniupnpd { }
chain postrouting_miniupnpd { }
}
`

// MapPorts starts the program on the site's router. Dir is for its files. It ends
// with Stop or with this process.
func (s *Site) MapPorts(dir string, cfg PortMapping) (*PortMapper, error) {
	m := &PortMapper{site: s, cfg: cfg, dir: dir}
	if err := s.router.nft(mapperTables); err != nil {
		return nil, err
	}
	return m, m.Start()
}

// Start starts the program again, after Stop.
func (m *PortMapper) Start() error {
	word := map[bool]string{true: "yes", false: "no"}
	var b strings.Builder
	fmt.Fprintf(&b, "ext_ifname=wan\nlistening_ip=lan\nhttp_port=0\nenable_upnp=%s\nenable_natpmp=%s\n", word[m.cfg.UPnP], word[m.cfg.PMP])
	fmt.Fprintf(&b, "secure_mode=yes\nmin_lifetime=20\nmax_lifetime=3600\nuuid=ba371243-2ce9-423b-ad50-c2d471886580\n")
	fmt.Fprintf(&b, "upnp_table_name=miniupnpd\nupnp_nat_table_name=miniupnpd\n")
	fmt.Fprintf(&b, "allow 1024-65535 %s 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n", m.site.lan4)
	if m.cfg.Claims.IsValid() {
		fmt.Fprintf(&b, "ext_ip=%s\n", m.cfg.Claims)
	}
	file := filepath.Join(m.dir, "miniupnpd.conf")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		return err
	}
	log, err := os.Create(m.Log())
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(lookPath("miniupnpd"), "-d", "-f", file, "-P", filepath.Join(m.dir, "pid")) //nolint:noctx // Stop ends it
	cmd.Env = []string{"PATH=" + path}
	cmd.Stdout, cmd.Stderr = log, log
	m.process, err = m.site.router.start(cmd)
	return err
}

// Log is the file with what the program says.
func (m *PortMapper) Log() string { return filepath.Join(m.dir, "miniupnpd.log") }

// Stop ends the program, with all mappings, as when the router is switched off.
func (m *PortMapper) Stop() error {
	var errs []error
	if m.process != nil {
		errs = append(errs, m.process.Signal(syscall.SIGKILL))
		_ = m.process.Wait() // it was killed
		m.process = nil
	}
	return errors.Join(append(errs, m.Forget())...)
}

// Forget drops the mappings behind the back of the program, which goes on to say that
// there are some.
func (m *PortMapper) Forget() error {
	return m.site.router.nft("flush chain inet miniupnpd prerouting_miniupnpd\nflush chain inet miniupnpd postrouting_miniupnpd\nflush chain inet miniupnpd miniupnpd\n")
}

// Deceive makes the router forward nothing of what the program maps, now or later.
func (m *PortMapper) Deceive() error {
	return m.site.router.nft("flush chain inet miniupnpd prerouting\n")
}

// Mapping is a port that a router forwards.
type Mapping struct {
	Protocol string // "udp" or "tcp"
	Outer    uint16 // the port
	Inner    netip.AddrPort
}

// Mappings returns what the router forwards, sorted.
func (m *PortMapper) Mappings() ([]Mapping, error) {
	out, err := m.site.router.output("", nil, "nft", "-j", "list", "chain", "inet", "miniupnpd", "prerouting_miniupnpd")
	if err != nil {
		return nil, err
	}
	var listed struct {
		Tables []struct {
			Rule struct {
				Expr []struct {
					Match struct {
						Left struct {
							Payload struct{ Field string }
						}
						Right any
					}
					DNAT struct {
						Addr string
						Port uint16
					}
				}
			}
		} `json:"nftables"`
	}
	if err := json.Unmarshal(out, &listed); err != nil {
		return nil, err
	}
	var list []Mapping
	for _, t := range listed.Tables {
		var one Mapping
		for _, e := range t.Rule.Expr {
			number, _ := e.Match.Right.(float64)
			switch {
			case e.DNAT.Addr != "":
				ip, err := netip.ParseAddr(e.DNAT.Addr)
				if err != nil {
					return nil, err
				}
				one.Inner = netip.AddrPortFrom(ip, e.DNAT.Port)
			case e.Match.Left.Payload.Field == "dport":
				one.Outer = uint16(number)
			case number == unix.IPPROTO_TCP:
				one.Protocol = "tcp"
			case number == unix.IPPROTO_UDP:
				one.Protocol = "udp"
			}
		}
		if one.Inner.IsValid() {
			list = append(list, one)
		}
	}
	slices.SortFunc(list, func(a, b Mapping) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Outer, b.Outer))
	})
	return list, nil
}

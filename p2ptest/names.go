package p2ptest

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
)

// names is the DNS of a network. It has only the records of SetDNS, so that no
// node asks the real DNS.
type names struct {
	network.MultiaddrDNSResolver

	mu  sync.Mutex
	ips map[string][]net.IPAddr // guarded by mu
	txt map[string][]string     // guarded by mu
}

func newNames() (*names, error) {
	n := &names{ips: make(map[string][]net.IPAddr), txt: make(map[string][]string)}
	r, err := madns.NewResolver(madns.WithDefaultResolver(n))
	if err != nil {
		return nil, err
	}
	n.MultiaddrDNSResolver = swarm.ResolverFromMaDNS{Resolver: r}
	return n, nil
}

func (n *names) set(name string, values []string) error {
	var ips []net.IPAddr
	var txt []string
	for _, v := range values {
		if ip := net.ParseIP(v); ip != nil {
			ips = append(ips, net.IPAddr{IP: ip})
			continue
		}
		a, err := ma.NewMultiaddr(v)
		if err != nil {
			return fmt.Errorf("%q is neither an IP address nor a multiaddr: %w", v, err)
		}
		txt = append(txt, "dnsaddr="+a.String())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ips[name], n.txt["_dnsaddr."+name] = ips, txt
	return nil
}

// LookupIPAddr and LookupTXT are the resolver's backend.
func (n *names) LookupIPAddr(_ context.Context, name string) ([]net.IPAddr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return found(n.ips, name)
}

func (n *names) LookupTXT(_ context.Context, name string) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return found(n.txt, name)
}

func found[T any](table map[string][]T, name string) ([]T, error) {
	name = strings.TrimSuffix(name, ".")
	if v := table[name]; len(v) > 0 {
		return v, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

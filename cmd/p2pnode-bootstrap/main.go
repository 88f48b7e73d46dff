// P2pnode-bootstrap is a bootstrap server: the first peer of the other nodes of a
// network, and a server of its DHT. It saves its key, so that its addresses stay
// the same, and its peers, so that it finds them again after a restart. It serves
// its health and metrics over HTTP, and comes with a systemd unit and a container
// file.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/cli"
)

func main() { cli.Main(run) }

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("bootstrap", flag.ContinueOnError)
	data := fs.String("data", "", "directory for the node's key, its saved peers and blocks; created if missing")
	identity := fs.String("identity", "", "file with the node's key, instead of the one in -data; created if missing")
	network := fs.String("network", "example", "name of the network, as in WithNetwork")
	key := fs.String("swarm-key", "", "file with the key of a private network, created if missing; only peers with the key can connect, and only over TCP and WebSocket")
	listen := fs.String("listen", "", "addresses to listen on, separated by commas (default port 4001 on all IPv4 interfaces)")
	announce := fs.String("announce", "", "addresses to announce instead, separated by commas: those of the host if in a container, or a name such as /dns4/boot.example.com/tcp/4001")
	cert := fs.String("tls-cert", "", "file with a certificate for WebSocket with TLS, which may be replaced while the server runs; adds it to the default port")
	certKey := fs.String("tls-key", "", "file with the key of -tls-cert")
	browsers := fs.Bool("browsers", false, "also listen for browsers, over WebTransport and WebRTC, on the UDP ports of QUIC")
	bootstrap := fs.String("bootstrap", "", "addresses of the network's other bootstrap servers, separated by commas")
	relay := fs.Bool("relay", false, "also be a relay, for peers that cannot be dialed")
	admin := fs.String("admin", "", "address for /health, /status and /metrics over HTTP, such as 127.0.0.1:4080; without access control, and without secrets; requests must be for an IP address, localhost, or the name given here")
	check := fs.String("check", "", "query /health at this -admin address of a running server, and exit, with status 0 if it is healthy")
	low := fs.Int("low", 800, "connections down to which the server trims")
	high := fs.Int("high", 1000, "connections at which trimming starts")
	if err := cli.Parse(fs, args, out, "bootstrap is a bootstrap server for the other nodes of a network. It ends on an interrupt or SIGTERM."); err != nil {
		return err
	}
	if *check != "" {
		return askHealth(ctx, *check, out)
	}
	if *data == "" && *identity == "" {
		return cli.Usagef("bootstrap: give -data DIR or -identity FILE: without a saved key the addresses change at every start")
	}
	opts := []p2pnode.Option{
		p2pnode.WithNetwork(*network),
		cli.Bootstrap(*bootstrap),
		// A bootstrap server must serve the DHT whatever its reachability.
		p2pnode.WithDHTMode(p2pnode.DHTModeServer),
		p2pnode.WithConnLimits(*low, *high),
	}
	if *data != "" {
		opts = append(opts, p2pnode.WithDataDir(*data))
	}
	if *identity != "" {
		opts = append(opts, p2pnode.WithIdentityFile(*identity))
	}
	if *listen == "" {
		*listen = "/ip4/0.0.0.0/tcp/4001,/ip4/0.0.0.0/udp/4001/quic-v1"
		if *key != "" {
			*listen = "/ip4/0.0.0.0/tcp/4001"
		}
		switch {
		case *cert != "" && *key != "": // with a key they do not share a port
			*listen += ",/ip4/0.0.0.0/tcp/4002/tls/ws"
		case *cert != "":
			*listen += ",/ip4/0.0.0.0/tcp/4001/tls/ws"
		}
	}
	if *cert != "" || *certKey != "" {
		opts = append(opts, p2pnode.WithTLSFiles(*cert, *certKey))
	}
	if *browsers {
		opts = append(opts, p2pnode.WithBrowserTransports())
	}
	opts = append(opts, cli.Listen(*listen))
	if *announce != "" {
		opts = append(opts, p2pnode.WithAnnounceAddrs(strings.Split(*announce, ",")...))
	}
	if *key != "" {
		psk, err := p2pnode.LoadOrCreateSwarmKey(*key)
		if err != nil {
			return cli.Usagef("bootstrap: -swarm-key: %v", err)
		}
		opts = append(opts, p2pnode.WithPrivateNetwork(psk))
	}
	registry := prometheus.NewRegistry()
	if *admin != "" {
		opts = append(opts, p2pnode.WithMetrics(registry))
	}
	if *relay {
		opts = append(opts, p2pnode.WithRelayService())
	}
	n, err := p2pnode.New(ctx, opts...)
	if err != nil {
		return cli.Explain(fs, err)
	}
	defer n.Close() // if a step below fails; otherwise it is already closed
	if *admin != "" {
		stop, addr, err := serveAdmin(*admin, n, registry)
		if err != nil {
			return cli.Usagef("bootstrap: -admin: %v", err)
		}
		defer stop()
		fmt.Fprintf(out, "admin: http://%s/health\n", addr)
	}
	events := n.Events(ctx) // before printing the addresses, to miss no peer
	fmt.Fprintf(out, "peer ID %s\n", n.ID())
	if ticket, err := n.Ticket(); err != nil {
		fmt.Fprintf(out, "warning: %v\n", err)
	} else {
		fmt.Fprintf(out, "Others join with its ticket:\n  WithTicket(%q)\n", ticket.Text())
	}
	fmt.Fprintf(out, "or with WithNetwork(%q) and one or more of:\n", *network)
	for _, a := range n.Addrs() {
		fmt.Fprintf(out, "  WithBootstrapAddrs(%q)\n", a)
	}
	if fp := n.Status().PrivateNetwork; fp != "" {
		fmt.Fprintf(out, "They also need a copy of the key in %s, for LoadOrCreateSwarmKey and WithPrivateNetwork; its fingerprint is %s.\n", *key, fp)
	}
	for _, w := range n.Status().Warnings {
		fmt.Fprintf(out, "warning: %s\n", w)
	}
	if *relay {
		fmt.Fprintln(out, "It is also a relay: for WithAutoRelay, parse these addresses with ParsePeers.")
	}
	for ev := range events { // until ctx ends
		switch ev := ev.(type) {
		case p2pnode.EventPeerConnected:
			// Quoted, because peers choose their user agent.
			fmt.Fprintf(out, "+ %s %q from %s\n", ev.Peer.ID, ev.Peer.Agent, ev.Peer.Addr)
		case p2pnode.EventPeerDisconnected:
			fmt.Fprintf(out, "- %s\n", ev.ID)
		case p2pnode.EventsLost:
			fmt.Fprintf(out, "  (%d events not shown)\n", ev.Count)
		}
	}
	fmt.Fprintln(out, "stopping")
	return n.Close()
}

// serveAdmin serves HTTP until stop is called.
func serveAdmin(addr string, n *p2pnode.Node, registry *prometheus.Registry) (stop func(), at net.Addr, err error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, n.Status())
	})
	turn := make(chan struct{}, 1) // Diagnose dials peers: once at a time
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		case <-r.Context().Done():
			return
		}
		code, text := health(r.Context(), n)
		writeJSON(w, code, text)
	})
	l = netutil.LimitListener(l, maxAdmin)
	server := &http.Server{Handler: byAddress(addr, mux), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // until stop
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			_ = server.Close() // it had 5 seconds
		}
		<-done
	}, l.Addr(), nil
}

// maxAdmin bounds the connections to the HTTP server: they are files, which peers
// need.
const maxAdmin = 64

// byAddress refuses requests for a host that is neither an IP address nor the one
// of -admin: a web page can make a browser send them, by a name of its own that
// resolves to the server, and read the responses.
func byAddress(admin string, next http.Handler) http.Handler {
	own, _, _ := net.SplitHostPort(admin) // it is listened on
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		_, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if err != nil && host != "localhost" && (own == "" || !strings.EqualFold(host, own)) {
			http.Error(w, "use an IP address, or the name that -admin has", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// askHealth queries /health, for containers without another HTTP client.
func askHealth(ctx context.Context, addr string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/health", nil)
	if err != nil {
		return cli.Usagef("bootstrap: -check: %v", err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("bootstrap: -check: %w", err)
	}
	defer answer.Body.Close()
	if _, err := io.Copy(out, io.LimitReader(answer.Body, 1<<20)); err != nil {
		return fmt.Errorf("bootstrap: -check: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("bootstrap: -check: %s", answer.Status)
	}
	return nil
}

// health returns status 200 while the node listens, and 503 otherwise, with the
// findings of Diagnose. Findings do not change the status: a server that waits
// for its first peer should not be restarted.
func health(ctx context.Context, n *p2pnode.Node) (int, any) {
	type answer struct {
		Listening bool              `json:"listening"`
		Peers     int               `json:"peers"`
		Findings  []p2pnode.Finding `json:"findings"`
	}
	// A silent peer must not delay the response.
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	findings, err := n.Diagnose(ctx)
	if errors.Is(err, p2pnode.ErrClosed) {
		return http.StatusServiceUnavailable, answer{}
	}
	a := answer{Listening: len(n.Status().ListenAddrs) > 0, Peers: len(n.Peers()), Findings: findings}
	if !a.Listening {
		return http.StatusServiceUnavailable, a
	}
	return http.StatusOK, a
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // fails only if the client has disconnected
}

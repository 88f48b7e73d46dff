package p2pnode

import (
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-p2pnode/p2pnode/internal/gossip"
	"github.com/go-p2pnode/p2pnode/internal/relays"
)

// collector reads a node's metrics when they are collected. Libp2p's own
// collectors are process-wide and would add up the nodes of a process, so none
// of them is used: these belong to one node and carry its peer ID.
type collector struct {
	node  *Node
	descs map[string]*prometheus.Desc
}

// metric is one metric of the collector.
type metric struct {
	name, help string
	kind       prometheus.ValueType
	read       func(*Node) float64
}

var nodeMetrics = []metric{
	{"peers", "Connected peers.", prometheus.GaugeValue, func(n *Node) float64 { return float64(n.base.PeerCount()) }},
	{"connections", "Open connections; a peer may have several.", prometheus.GaugeValue, func(n *Node) float64 { return float64(n.base.ConnCount()) }},
	{"connections_refused_total", "Connections and streams refused by a limit.", prometheus.CounterValue, func(n *Node) float64 { return float64(refusedOf(n).Total()) }},
	{"handshakes_failed_total", "Incoming connections that failed in their handshake.", prometheus.CounterValue, func(n *Node) float64 { return float64(handshakesFailed(n)) }},
	{"stream_handlers_failed_total", "Stream handlers that returned an error or panicked, of streams that their peer had not ended.", prometheus.CounterValue, func(n *Node) float64 { return float64(n.streams.Failures()) }},
	{"received_bytes_total", "Bytes received in streams.", prometheus.CounterValue, func(n *Node) float64 { return float64(n.bandwidth.GetBandwidthTotals().TotalIn) }},
	{"sent_bytes_total", "Bytes sent in streams.", prometheus.CounterValue, func(n *Node) float64 { return float64(n.bandwidth.GetBandwidthTotals().TotalOut) }},
	{"dht_routing_table_peers", "Peers in the DHT's routing table.", prometheus.GaugeValue, func(n *Node) float64 {
		if n.dht == nil {
			return 0
		}
		return float64(n.dht.Size())
	}},
	{"dht_advertised_namespaces", "Namespaces that the node advertises.", prometheus.GaugeValue, func(n *Node) float64 {
		if n.dht == nil {
			return 0
		}
		all, _ := n.dht.Adverts()
		return float64(all)
	}},
	{"bootstrap_rounds_total", "Rounds of dialing bootstrap and saved peers.", prometheus.CounterValue, func(n *Node) float64 { return float64(n.rounds.Load()) }},
	{"addresses_reachable", "Addresses that peers have dialed, as AutoNAT found out.", prometheus.GaugeValue, addressesThatAre(network.ReachabilityPublic)},
	{"addresses_unreachable", "Addresses that peers could not dial, as AutoNAT found out.", prometheus.GaugeValue, addressesThatAre(network.ReachabilityPrivate)},
	{"relay_reservations", "Reservations held at relays.", prometheus.GaugeValue, func(n *Node) float64 {
		held := 0
		for _, r := range n.relay.States() {
			if r.Reserved {
				held++
			}
		}
		return float64(held)
	}},
	{"relay_service_reservations", "Reservations that others hold at this relay.", prometheus.GaugeValue, relayCount(func(c relays.Counts) float64 { return float64(c.Reservations) })},
	{"relay_service_circuits", "Relayed connections that are open at this relay.", prometheus.GaugeValue, relayCount(func(c relays.Counts) float64 { return float64(c.Circuits) })},
	{"relay_service_bytes_total", "Bytes that this relay has relayed.", prometheus.CounterValue, relayCount(func(c relays.Counts) float64 { return float64(c.Bytes) })},
	{"relay_service_refused_total", "Reservations and relayed connections that this relay has refused.", prometheus.CounterValue, relayCount(func(c relays.Counts) (sum float64) {
		for _, count := range c.Refused {
			sum += float64(count)
		}
		return sum
	})},
	{"pubsub_published_total", "Messages sent by Publish.", prometheus.CounterValue, pubsubCount(func(c gossip.Counts) uint64 { return c.Published })},
	{"pubsub_delivered_total", "Messages that arrived on subscribed topics, including the node's own.", prometheus.CounterValue, pubsubCount(func(c gossip.Counts) uint64 { return c.Delivered })},
	{"pubsub_dropped_total", "Messages dropped because a subscription's reader was too slow.", prometheus.CounterValue, pubsubCount(func(c gossip.Counts) uint64 { return c.Dropped })},
	{"pubsub_unsent_total", "Messages not sent to a peer because its queue was full.", prometheus.CounterValue, pubsubCount(func(c gossip.Counts) uint64 { return c.Unsent })},
	{"pubsub_overrun_total", "Incoming messages dropped unvalidated because too many arrived at once.", prometheus.CounterValue, pubsubCount(func(c gossip.Counts) uint64 { return c.Overrun })},
	{"pubsub_graylisted_peers", "Connected peers that are graylisted for their pubsub score.", prometheus.GaugeValue, func(n *Node) float64 {
		gray := 0
		for _, s := range scoresOf(n.pubsub) {
			if s.Graylisted {
				gray++
			}
		}
		return float64(gray)
	}},
}

// addressesThatAre counts the node's addresses of a reachability.
func addressesThatAre(r network.Reachability) func(*Node) float64 {
	return func(n *Node) float64 {
		count := 0
		for _, a := range addrReachability(n) {
			if a.Reachability == reachabilityOf(r) {
				count++
			}
		}
		return float64(count)
	}
}

func pubsubCount(of func(gossip.Counts) uint64) func(*Node) float64 {
	return func(n *Node) float64 {
		if n.pubsub == nil {
			return 0
		}
		return float64(of(n.pubsub.Counts()))
	}
}

func relayCount(of func(relays.Counts) float64) func(*Node) float64 {
	return func(n *Node) float64 {
		if n.relayService == nil {
			return 0
		}
		return of(n.relayService.Counts())
	}
}

func newCollector(n *Node) *collector {
	c := &collector{node: n, descs: make(map[string]*prometheus.Desc)}
	for _, m := range nodeMetrics {
		c.descs[m.name] = prometheus.NewDesc("p2pnode_"+m.name, m.help, nil, prometheus.Labels{"peer_id": n.id.String()})
	}
	return c
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range nodeMetrics {
		ch <- c.descs[m.name]
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	for _, m := range nodeMetrics {
		ch <- prometheus.MustNewConstMetric(c.descs[m.name], m.kind, m.read(c.node))
	}
}

func startMetrics(n *Node) error {
	if n.cfg.metrics == nil {
		return nil
	}
	c := newCollector(n)
	if err := n.cfg.metrics.Register(c); err != nil {
		return &OptionError{Option: "WithMetrics", Err: err}
	}
	n.stack.Push("metrics", closeBudget, func() error {
		n.cfg.metrics.Unregister(c)
		return nil
	})
	return nil
}

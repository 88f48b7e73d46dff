package p2pnode

import (
	"fmt"
	"slices"
	"strings"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/gossip"
)

// Scoring is what an operator knows of a network. The parameters of gossipsub's
// peer scores are computed from it: see [Scoring.Params] and docs/scoring.md. The
// zero value is [ScoringSmall].
type Scoring struct {
	// Nodes is how many nodes the network is expected to have; default 20.
	Nodes int `json:"nodes,omitempty"`
	// Rate is how many messages per second a topic is expected to have; default 1.
	// [TopicRate] sets that of one topic.
	Rate float64 `json:"rate,omitempty"`
	// PeersPerIP is how many peers one public address may have before they all lose
	// points for it; 0 for any number. With the default of [Limits].ConnsPerIP, 8, a
	// value of at least 2 graylists nobody for it.
	PeersPerIP int `json:"peersPerIP,omitempty"`
	// PeerExchange makes the node tell peers that it prunes from a mesh of up to 16
	// others, and dial those that a peer with a score of at least 10 tells it of.
	// Bootstrap and persistent peers have that from the start.
	PeerExchange bool `json:"peerExchange,omitempty"`
}

// ScoringSmall returns what suits private networks of 2 to 20 nodes: any
// number of nodes may share an address, and peers learn of each other from the DHT
// alone.
func ScoringSmall() Scoring { return Scoring{Nodes: 20, Rate: 1} }

// ScoringLarge returns what suits networks of hundreds of nodes and more: a mesh
// whose members have few merits looks for better ones, pruned peers learn of
// others, and more than 5 peers on one public address lose points.
func ScoringLarge() Scoring {
	return Scoring{Nodes: 1000, Rate: 1, PeersPerIP: 5, PeerExchange: true}
}

func (s Scoring) check() error {
	switch {
	case s.Nodes < 0:
		return fmt.Errorf("%d nodes: the number is negative", s.Nodes)
	case !gossip.ValidRate(s.Rate):
		return fmt.Errorf("a rate of %v: it must be 0 to 1,000,000 messages per second", s.Rate)
	case s.PeersPerIP < 0:
		return fmt.Errorf("%d peers per address: the number is negative", s.PeersPerIP)
	default:
		return nil
	}
}

func (s Scoring) inner() gossip.Scoring {
	small := ScoringSmall()
	if s.Nodes == 0 {
		s.Nodes = small.Nodes
	}
	if s.Rate == 0 {
		s.Rate = small.Rate
	}
	return gossip.Scoring{Nodes: s.Nodes, Rate: s.Rate, PeersPerIP: s.PeersPerIP, PeerExchange: s.PeerExchange}
}

// ScoringParams are upstream's parameters of peer scores.
type ScoringParams struct {
	// Peer has what all topics share, without topics and AppSpecificScore, with which
	// the node adds what it holds against a peer itself.
	Peer *pubsub.PeerScoreParams
	// Thresholds say from which score on what happens.
	Thresholds *pubsub.PeerScoreThresholds
	// Topic is for a topic with the expected Rate.
	Topic *pubsub.TopicScoreParams
}

// Params returns the parameters that the node gives gossipsub, computed anew. Use
// them as a start for your own, with pubsub.WithPeerScore in [WithPubSubOptions].
func (s Scoring) Params() ScoringParams {
	in := s.inner()
	return ScoringParams{Peer: in.Peer(nil), Thresholds: in.Thresholds(), Topic: in.Topic(in.Rate)}
}

// PeerScore is the pubsub score of a connected peer.
type PeerScore struct {
	ID    peer.ID `json:"id"`
	Score float64 `json:"score"`
	// Graylisted is true while the score is below -100.
	Graylisted bool `json:"graylisted,omitempty"`
}

func scoresOf(r *gossip.Router) []PeerScore {
	if r == nil {
		return nil
	}
	var list []PeerScore
	for _, s := range r.Scores() {
		list = append(list, PeerScore(s))
	}
	slices.SortFunc(list, func(a, b PeerScore) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return list
}

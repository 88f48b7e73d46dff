package p2pnode

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/go-p2pnode/p2pnode/internal/gossip"
)

// Stage identifies something that [Node.WaitReady] can wait for.
type Stage string

// The stages of [Node.WaitReady]; [StageTopic] and [StageTopicHealthy] return more.
const (
	// StageListening ("listening"): the node listens on an address.
	StageListening Stage = "listening"
	// StageConnected ("connected"): as many peers are connected as
	// [WithMinPeers] asks for, at least one.
	StageConnected Stage = "connected"
	// StageRouting ("routing"): the DHT's routing table is not empty.
	StageRouting Stage = "routing"
	// StageReachable ("reachable"): others can dial the node, directly or
	// through a relay at which it has a reservation.
	StageReachable Stage = "reachable"
)

// topicStage begins the stages of [StageTopic].
const topicStage = "topic:"

// StageTopic returns the stage in which the node has joined a topic and at
// least one other peer is subscribed to it: "topic:" and the topic's name.
func StageTopic(topic string) Stage { return Stage(topicStage + topic) }

// healthStage begins the stages of [StageTopicHealthy].
const healthStage = "topic-health:"

// StageTopicHealthy returns the stage in which the node is connected well on a
// topic, see [TopicHealthGood]: "topic-health:" and the topic's name.
func StageTopicHealthy(topic string) Stage { return Stage(healthStage + topic) }

// MissingStage is a [Stage] that was not reached.
type MissingStage struct {
	Stage Stage `json:"stage"`
	// Why it was not reached, for people.
	Why string `json:"why"`
}

// NotReadyError is returned by [Node.WaitReady] when its ctx ends first. It
// matches [ErrNotReady] and ctx's error.
type NotReadyError struct {
	// Missing holds the stages that were not reached, at least one.
	Missing []MissingStage
	// Err is ctx's error.
	Err error
}

// Error lists the missing stages and why each was not reached.
func (e *NotReadyError) Error() string {
	var list []string
	for _, m := range e.Missing {
		list = append(list, string(m.Stage)+": "+m.Why)
	}
	return fmt.Sprintf("p2pnode: %v (%v): %s", ErrNotReady, e.Err, strings.Join(list, "; "))
}

// Unwrap returns [ErrNotReady] and Err.
func (e *NotReadyError) Unwrap() []error { return []error{ErrNotReady, e.Err} }

// WaitReady waits until the node is useful: it listens (unless
// [WithoutListening] is given), as many peers are connected as [WithMinPeers]
// asks for, and with bootstrap peers, persistent peers or mDNS the DHT's
// routing table is not empty. A node without any of those is ready when it
// listens. With stages it waits for all of those instead.
//
// It returns a [*NotReadyError], with what is missing in each stage, when ctx
// ends first; [ErrDisabled] at once for a stage whose part is off; and
// [ErrClosed] when the node is closed.
func (n *Node) WaitReady(ctx context.Context, stages ...Stage) error {
	for _, s := range stages {
		if err := checkStage(n, s); err != nil {
			return fmt.Errorf("p2pnode: wait ready: %w", err)
		}
	}
	want := minPeers(n)
	if len(stages) == 0 {
		stages = defaultStages(n)
	} else {
		want = max(want, 1)
	}
	missing := func() (list []MissingStage) {
		for _, s := range stages {
			if why := missingFor(n, s, want); why != "" {
				list = append(list, MissingStage{Stage: s, Why: why})
			}
		}
		return list
	}
	for {
		if n.closed() {
			return ErrClosed
		}
		change := n.watch.change.Wait()
		list := missing()
		if len(list) == 0 {
			return nil
		}
		select {
		case <-change:
		case <-n.ctx.Done():
			return ErrClosed
		case <-ctx.Done():
			if now := missing(); len(now) > 0 {
				list = now
			}
			return &NotReadyError{Missing: list, Err: ctx.Err()}
		}
	}
}

// defaultStages returns the stages of a WaitReady without stages.
func defaultStages(n *Node) []Stage {
	stages := []Stage{StageListening, StageConnected, StageRouting}
	return slices.DeleteFunc(stages, func(s Stage) bool {
		return s == StageListening && n.cfg.noListen || s == StageRouting && (n.dht == nil || !looksForPeers(n))
	})
}

// checkStage rejects a stage that can never be reached.
func checkStage(n *Node, s Stage) error {
	topic, isTopic := topicOf(s)
	switch {
	case s == StageListening && n.cfg.noListen:
		return fmt.Errorf("%s: %w", s, off("listening", "leave WithoutListening out"))
	case s == StageRouting && n.dht == nil:
		return fmt.Errorf("%s: %w", s, off("the DHT", "leave WithoutDHT out"))
	case isTopic && topic != "" && n.pubsub == nil:
		return fmt.Errorf("%s: %w", s, off("pubsub", "leave WithoutPubSub out"))
	case s == StageListening, s == StageRouting, s == StageConnected, s == StageReachable, isTopic && topic != "":
		return nil
	default:
		return fmt.Errorf("there is no stage %q; use a Stage constant or StageTopic", s)
	}
}

// missingFor returns what keeps the node from a stage, "" if nothing does.
// StageConnected wants the given number of peers.
func missingFor(n *Node, s Stage, peers int) string {
	switch s {
	case StageListening:
		if len(n.base.ListenAddrs()) == 0 {
			return "the node does not listen"
		}
	case StageConnected:
		if n.base.PeerCount() < peers {
			return companyOf(n).Few(peers)
		}
	case StageRouting:
		if n.dht.Size() == 0 {
			return companyOf(n).NoRoutes()
		}
	case StageReachable:
		return reachOf(n).Unreachable()
	default:
		topic, _ := topicOf(s)
		return missingOnTopic(n, topic, strings.HasPrefix(string(s), healthStage))
	}
	return ""
}

// topicOf returns the topic of a stage, if it has one.
func topicOf(s Stage) (topic string, ok bool) {
	if topic, ok := strings.CutPrefix(string(s), healthStage); ok {
		return topic, true
	}
	return strings.CutPrefix(string(s), topicStage)
}

// missingOnTopic returns what keeps the node from having a peer on a topic, or
// from being connected well.
func missingOnTopic(n *Node, name string, well bool) string {
	t, joined := n.pubsub.Topic(name)
	switch {
	case !joined:
		return "the node has not joined the topic; call Subscribe or Publish"
	case len(t.Peers) == 0:
		return "nobody else is known to be subscribed to the topic"
	case well && t.Health != gossip.HealthGood:
		return fmt.Sprintf("the mesh has %d of the topic's %d known peers", len(t.Mesh), len(t.Peers))
	default:
		return ""
	}
}

// hasEnough reports whether the keeper may rest: the node has its minimum of
// peers, and its routing table is not empty.
func (n *Node) hasEnough() bool {
	return n.base.PeerCount() >= minPeers(n) && (n.dht == nil || n.dht.Size() > 0)
}

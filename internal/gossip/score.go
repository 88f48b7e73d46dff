package gossip

import (
	"errors"
	"math"
	"net"
	"reflect"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Scoring is what an operator knows of a network. Gossipsub's parameters of peer
// scores are computed from it; docs/scoring.md explains each.
type Scoring struct {
	Nodes        int     // expected in the network
	Rate         float64 // expected messages per second on a topic
	PeersPerIP   int     // more on one public address count against all of them; 0 for no bound
	PeerExchange bool    // tell pruned peers of others, and believe peers with a good score

	// Trusted reports whether the application has named a peer, whose word on other
	// peers is taken at once. Nil for nobody.
	Trusted func(peer.ID) bool
}

// The thresholds. A peer that is graylisted is neither heard nor sent anything.
const (
	graylistThreshold = -100
	gossipThreshold   = -20
	exchangeThreshold = 10
	graftThreshold    = 1
)

const (
	scoreInterval = time.Second
	decayToZero   = 0.01
	// retainScore is how long a score outlives the connection: it does not decay
	// meanwhile, and a new identity is free, so that longer would cost memory only.
	retainScore = 10 * time.Second
	topicCap    = 20 // of all topics together, so that no merit outweighs an attack
	firstMax    = 10 // for delivering twice one's share of messages first
	meshMax     = 0.5
	trustBonus  = exchangeThreshold

	firstDecay   = 100 * time.Second
	invalidDecay = 10 * time.Minute
	behaveDecay  = 30 * time.Second
	// behaveFree is more than an honest peer collects that breaks a promise each
	// second, because its link is slow.
	behaveFree = 10
	// largeNetwork is from how many nodes on a mesh has a choice of peers.
	largeNetwork = 20
	meshDegree   = 6
	// followUp is how long a peer may take to send a message that it has announced;
	// gossipsub's 3 seconds are less than a slow link takes.
	followUp = 10 * time.Second
	// unsubscribeBackoff is after how long a node that has left a topic may come
	// back: gossipsub's 10 seconds are more than a restart takes.
	unsubscribeBackoff = time.Second
)

func decay(d time.Duration) float64 {
	return pubsub.ScoreParameterDecayWithBase(d, scoreInterval, decayToZero)
}

// Peer returns the parameters that are the same for all topics.
func (s Scoring) Peer(app func(peer.ID) float64) *pubsub.PeerScoreParams {
	p := &pubsub.PeerScoreParams{
		Topics:        make(map[string]*pubsub.TopicScoreParams),
		TopicScoreCap: topicCap,

		AppSpecificScore: app, AppSpecificWeight: 1,

		BehaviourPenaltyWeight: -1, BehaviourPenaltyThreshold: behaveFree, BehaviourPenaltyDecay: decay(behaveDecay),

		DecayInterval: scoreInterval, DecayToZero: decayToZero, RetainScore: retainScore,
	}
	if s.PeersPerIP > 0 {
		p.IPColocationFactorWeight, p.IPColocationFactorThreshold = -2, s.PeersPerIP
		p.IPColocationFactorWhitelist = notPublic()
	}
	return p
}

// Thresholds returns from which score on what happens.
func (s Scoring) Thresholds() *pubsub.PeerScoreThresholds {
	t := &pubsub.PeerScoreThresholds{
		GossipThreshold: gossipThreshold, PublishThreshold: graylistThreshold, GraylistThreshold: graylistThreshold,
		AcceptPXThreshold: exchangeThreshold,
	}
	if s.Nodes > largeNetwork {
		t.OpportunisticGraftThreshold = graftThreshold
	}
	return t
}

// Topic returns the parameters of a topic with so many messages per second.
func (s Scoring) Topic(rate float64) *pubsub.TopicScoreParams {
	first := decay(firstDecay)
	share := rate / float64(max(1, min(meshDegree, s.Nodes-1))) // of one of the mesh
	firstCap := max(1, 2*share/(1-first))
	return &pubsub.TopicScoreParams{
		TopicWeight:      1,
		TimeInMeshWeight: meshMax / 300, TimeInMeshQuantum: time.Second, TimeInMeshCap: 300,
		FirstMessageDeliveriesWeight: firstMax / firstCap, FirstMessageDeliveriesDecay: first, FirstMessageDeliveriesCap: firstCap,
		// P3 and P3b stay off: a topic that falls silent would make everybody in its
		// mesh look lazy.
		MeshMessageDeliveriesDecay: first, MeshFailurePenaltyDecay: first,
		InvalidMessageDeliveriesWeight: -1, InvalidMessageDeliveriesDecay: decay(invalidDecay),
	}
}

// notPublic returns the ranges in which many peers share an address for no bad
// reason.
func notPublic() (list []*net.IPNet) {
	for _, s := range []string{
		"127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10",
		"::1/128", "fc00::/7", "fe80::/10",
	} {
		_, n, err := net.ParseCIDR(s)
		if err == nil { // always
			list = append(list, n)
		}
	}
	return list
}

// Points are what the router itself holds against a peer, in addition to what
// gossipsub does. They halve in 10 seconds, as long as there is a score.
const (
	pointsDecay = 0.933
	pointsMax   = 2000
	// Soft points are for what nodes of another version or configuration may do. They
	// cost at most a place in the mesh.
	softDecay = 0.9885 // halves in a minute
	softEach  = 0.1
	softMax   = 10

	malformedPoints = 5
	forgedPoints    = 10
	refusedPoints   = 0.02 // of a topic, or of a change of topics
	idPoints        = 0.005
	graftPoints     = 1
	wastePoints     = 0.05

	// wasteBurst is how many useless messages may come at once: as many as wait in a
	// full queue for a link that was cut.
	wasteBurst = 30_000
	wasteRate  = 200
)

// score is what the points of a peer add to its score. Gossipsub calls it with
// its own lock.
func (r *Router) score(id peer.ID) float64 {
	var bonus float64
	if s := r.cfg.Scoring; s != nil && s.Trusted != nil && s.Trusted(id) {
		bonus = trustBonus
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.accounts[id]; a != nil {
		return bonus - min(softMax, a.soft*softEach) - a.points
	}
	return bonus
}

// scored takes the scores of a second: it lets points decay, and graylists peers.
func (r *Router) scored(scores map[peer.ID]float64) {
	var grown []*topic
	r.mu.Lock()
	delivered := r.delivered.Load()
	rate := float64(delivered - r.ticked)
	r.ticked = delivered
	var expected float64
	for _, t := range r.topics {
		expected += t.rate
	}
	free := wasteRate + 4*max(rate, expected)
	now := make(map[peer.ID]float64)
	for id, a := range r.accounts {
		a.decay(free)
		if _, scored := scores[id]; !r.links[id] && !scored && a.points > -graylistThreshold {
			now[id] = -a.points // see unscored
		}
	}
	for id, score := range scores {
		if r.links[id] {
			now[id] = score
		}
	}
	for id := range r.gray {
		if _, ok := now[id]; !ok {
			now[id] = 0 // gone
		}
	}
	r.scores = now
	for id, score := range now {
		if gray := score < graylistThreshold; gray != r.gray[id] {
			grown = append(grown, r.graylistLocked(id, gray, score)...)
		}
	}
	r.mu.Unlock()
	for _, t := range grown {
		t.came.Notify()
	}
}

// unscored holds a forged message against a peer that refuses the node's stream:
// gossipsub keeps no score of it, although it hears it.
func (r *Router) unscored(id peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.scoring && !r.links[id] {
		r.accountLocked(id).points += forgedPoints
	}
}

// decay lets a second pass, in which a peer may send so many useless messages.
func (a *account) decay(free float64) {
	a.points = min(a.points, pointsMax) * pointsDecay
	a.soft *= softDecay
	a.wasted = max(0, a.wasted-free)
	if over := a.wasted - wasteBurst; over > 0 {
		a.points += over * wastePoints
		a.wasted = wasteBurst
	}
}

// graylistLocked records that a peer is graylisted, or no longer, and returns the
// topics that have more peers therefore.
func (r *Router) graylistLocked(id peer.ID, gray bool, score float64) (grown []*topic) {
	kind := peerForgiven
	if gray {
		r.gray[id] = true
		kind = peerGraylisted
	} else {
		delete(r.gray, id)
	}
	for _, t := range r.topics {
		if _, member := t.members[id]; member && r.markLocked(t, id, r.reachedLocked(id)) {
			grown = append(grown, t)
		}
	}
	r.addNewsLocked(news{kind: kind, id: id, score: score})
	return grown
}

// reachedLocked reports whether messages reach a peer on a topic of its.
func (r *Router) reachedLocked(id peer.ID) bool { return r.links[id] && !r.gray[id] }

// PeerScore is the score of a connected peer.
type PeerScore struct {
	ID         peer.ID
	Score      float64
	Graylisted bool
}

// Scores returns those of the connected peers, in no order, a second old at most.
func (r *Router) Scores() []PeerScore {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []PeerScore
	for id, s := range r.scores {
		if r.links[id] || r.gray[id] {
			list = append(list, PeerScore{id, s, r.gray[id]})
		}
	}
	return list
}

// setRate makes the scores of a topic those of a rate; 0 is for the default. The
// last of several counts.
func (r *Router) setRate(t *topic, rate float64) error {
	if !r.scoring {
		return nil
	}
	if rate == 0 {
		rate = r.cfg.Scoring.Rate
	}
	r.mu.Lock()
	t.rate = rate
	r.mu.Unlock()
	return t.up.SetScoreParams(r.cfg.Scoring.Topic(rate))
}

// Errors of options that do not go together with scoring.
var (
	ErrOwnScore   = errors.New("WithPubSubOptions has its own WithPeerScore; drop one of the two")
	errOwnInspect = errors.New("WithPeerScoreInspect: the node inspects the scores itself; read Status().Scores, or give your own WithPeerScore")
)

// ownScore reports whether the options of the application have replaced the
// scores, or inspect them. There is no other way to learn it.
func ownScore(router *pubsub.GossipSubRouter, params *pubsub.PeerScoreParams) (score, inspect bool) {
	field := reflect.ValueOf(router).Elem().FieldByName("score")
	if field.IsNil() {
		return false, false
	}
	field = field.Elem()
	score = field.FieldByName("params").Pointer() != reflect.ValueOf(params).Pointer()
	return score, !score && (!field.FieldByName("inspect").IsNil() || !field.FieldByName("inspectEx").IsNil())
}

// ValidRate reports whether messages per second are a rate.
func ValidRate(rate float64) bool { return rate >= 0 && rate <= 1e6 && !math.IsNaN(rate) }

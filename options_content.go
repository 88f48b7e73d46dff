package p2pnode

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-datastore"
	record "github.com/libp2p/go-libp2p-record"
)

// The DHT.

// WithDHTMode sets the mode of the DHT, overriding the default of
// [DHTModeAutoServer]. With [WithIPFS] the default is [DHTModeAuto]: the public
// network asks nodes not to serve before they know that they are reachable.
func WithDHTMode(mode DHTMode) Option {
	return option{"WithDHTMode", func(c *config) error {
		if !slices.Contains(allDHTModes, mode) {
			return fmt.Errorf("%q is not a mode: choose from %s", string(mode), quoteAll(allDHTModes))
		}
		c.dhtMode = mode
		return nil
	}}
}

// WithoutDHT switches the DHT off. The methods for content, records and
// rendezvous then return [ErrDisabled]. It conflicts with the options that
// configure the DHT.
func WithoutDHT() Option { return toggle("WithoutDHT", func(c *config) { c.noDHT = true }) }

// WithAcceleratedDHT makes the node crawl the public DHT once an hour, and announce
// without lookups: it then knows which servers are closest to any key. Off by
// default: a crawl asks every server 16 questions, with some 10,000 servers 160,000 in
// an hour. A lookup asks about 30, and [Node.ProvideMany] takes one for all CIDs of
// a region. So it pays for those who call [Node.Provide] thousands of times an hour,
// and for those to whom the delay of a lookup matters more than its cost.
//
// The first crawl begins when the node has peers; until it ends, and whenever the
// last one is more than an hour old, found fewer than 20 servers or far fewer than the
// one before, or was given up after 45 minutes or 65,536 peers, the node looks peers up as it does without.
// Status().DHT.Accelerated tells. A crawl connects to 100 servers at a time,
// and closes the connections that nothing else uses when they have answered. Searches
// take lookups as before.
//
// It needs [WithIPFS], and conflicts with [WithoutDHT].
func WithAcceleratedDHT() Option {
	return toggle("WithAcceleratedDHT", func(c *config) { c.accelerated = true })
}

// WithValidator adds a validator for DHT records whose keys start with
// /<namespace>/, in addition to those for /pk and /ipns. Records of a namespace
// without a validator are refused. All nodes of the network need the same ones.
// The network "ipfs" accepts no others. For records that only their owner can write,
// there is [WithSignedRecords].
func WithValidator(namespace string, v record.Validator) Option {
	return option{"WithValidator", func(c *config) error {
		if err := checkNamespace(c, namespace); err != nil {
			return err
		}
		if isNil(v) {
			return fmt.Errorf("the validator of %q is nil", namespace)
		}
		if c.validators == nil {
			c.validators = make(map[string]record.Validator)
		}
		c.validators[namespace] = v
		return nil
	}}
}

// WithSignedRecords adds a namespace of signed records, for [Node.PutSigned] and
// [Node.GetSigned]: under a key /<namespace>/<peer ID> only that peer can write.
// It comes with the validator, which checks the signature, the expiry and the size,
// and prefers the highest sequence number. All nodes of the network need the same
// namespaces. Like [WithValidator], it is not for the network "ipfs".
func WithSignedRecords(namespace string) Option {
	return option{"WithSignedRecords", func(c *config) error {
		if err := checkNamespace(c, namespace); err != nil {
			return err
		}
		c.signed = append(c.signed, namespace)
		return nil
	}}
}

// checkNamespace checks a namespace of DHT records that an option adds.
func checkNamespace(c *config, namespace string) error {
	switch {
	case namespace == "" || strings.ContainsRune(namespace, '/'):
		return fmt.Errorf("%q is not a namespace: for keys like /app/name use \"app\"", namespace)
	case namespace == "pk" || namespace == "ipns":
		return fmt.Errorf("%q has a built-in validator, which cannot be replaced", namespace)
	case c.validators[namespace] != nil || slices.Contains(c.signed, namespace):
		return fmt.Errorf("%q already has a validator", namespace)
	}
	return nil
}

// WithDatastore sets where the DHT keeps the records it holds for others and what
// the node itself provides, puts and advertises, overriding the default of memory. The caller owns the
// store: close it after the node.
func WithDatastore(ds datastore.Batching) Option {
	return option{"WithDatastore", func(c *config) error {
		if isNil(ds) {
			return errors.New("the datastore is nil; leave the option out for one in memory")
		}
		c.datastore = ds
		return nil
	}}
}

// WithReprovideInterval sets how often what is provided is announced again,
// overriding the default of 22 hours: at least a minute, and less than
// [WithRecordLifetime], or 48 hours, less an eighth for delays.
func WithReprovideInterval(interval time.Duration) Option {
	return option{"WithReprovideInterval", func(c *config) error {
		if interval < time.Minute {
			return fmt.Errorf("%v: the interval must be at least a minute", interval)
		}
		c.reprovideInterval = interval
		return nil
	}}
}

// WithRecordLifetime sets how long the node keeps the provider records of other
// peers, overriding the default of 48 hours: at least a minute. The nodes of a
// network should agree on it. The public network does: it conflicts with
// [WithIPFS].
func WithRecordLifetime(lifetime time.Duration) Option {
	return option{"WithRecordLifetime", func(c *config) error {
		if lifetime < time.Minute {
			return fmt.Errorf("%v: the lifetime must be at least a minute", lifetime)
		}
		c.recordLifetime = lifetime
		return nil
	}}
}

// WithRendezvous adds a namespace under which the node looks for peers: it
// advertises itself, as [Node.Advertise] does, searches for others that do, and
// keeps n of them connected, chosen by chance among all, whoever is connected
// already. By default there is none. One that is lost is replaced, and every 10
// minutes one is exchanged for another. While there are fewer than n it searches
// again, after 5 seconds at first and 2 minutes at most. It begins when the node has
// DHT peers, for instance those of [WithBootstrapPeers].
//
// The peers are protected from trimming; together they may be no more than the
// lower of [WithConnLimits]. [Node.StopAdvertising] does not end it, and it does not
// outlast the node's run, also with a data directory. Peers that [Node.Disconnect]
// has hung up on are left alone until [Node.Connect]. Each peer that is found and not
// connected is reported by [EventPeerFound]. [TopicDiscovery] does the same for the
// members of a topic.
func WithRendezvous(namespace string, n int) Option {
	return option{"WithRendezvous", func(c *config) error {
		switch {
		case checkRoom(namespace) != nil:
			return checkRoom(namespace)
		case n < 1 || n > maxMeet:
			return fmt.Errorf("%d peers for %s: it must be 1 to %d", n, quoted(namespace), maxMeet)
		case slices.ContainsFunc(c.rendezvous, func(r Rendezvous) bool { return r.Namespace == namespace }):
			return fmt.Errorf("the namespace %s is given twice", quoted(namespace))
		}
		c.rendezvous = append(slices.Clip(c.rendezvous), Rendezvous{namespace, n})
		return nil
	}}
}

// PubSub.

// WithoutPubSub switches pubsub off: [Node.Publish] and [Node.Subscribe] return
// [ErrDisabled]. It conflicts with [WithMaxMessageSize], [WithPeerScoring] and
// [WithPubSubOptions].
func WithoutPubSub() Option { return toggle("WithoutPubSub", func(c *config) { c.noPubSub = true }) }

// WithMaxMessageSize sets how many bytes a pubsub message may take on the wire,
// overriding the default of 1 MiB. The message's data may take 1 KiB less (a
// little more than that with an RSA identity of 4096 bits), and the topic's name less. All
// nodes of the network need the same limit: a peer that receives a larger
// message resets the stream.
func WithMaxMessageSize(n int) Option {
	return option{"WithMaxMessageSize", func(c *config) error {
		if n < 2*messageOverhead || n > 1<<30 {
			return fmt.Errorf("%d bytes: it must be %d to %d", n, 2*messageOverhead, 1<<30)
		}
		c.maxMessageSize = n
		return nil
	}}
}

// WithRelayedPubSub lets topics use relayed connections with limits, for messages
// that take up to maxBytes on the wire, of which a message takes 1 KiB besides its
// data. Larger ones are not sent over them: [Node.Publish] returns [ErrTooLarge] if
// they would reach too few peers otherwise, and those sent on for others are counted
// as unsent. By default topics do not use such connections at all, as in
// gossipsub, because a relay ends them after 128 KiB or 2 minutes, by default, and
// counts what topics say about themselves too. Both sides need the option. Relayed
// connections without limits carry all messages in any case.
func WithRelayedPubSub(maxBytes int) Option {
	return option{"WithRelayedPubSub", func(c *config) error {
		if maxBytes < messageOverhead {
			return fmt.Errorf("%d bytes: it must be at least %d, which a message takes besides its data", maxBytes, messageOverhead)
		}
		c.relayedPubSub = maxBytes
		return nil
	}}
}

// WithPeerScoring makes the node score its pubsub peers, overriding the default of
// not; bounds on what a peer may send hold in any case. Peers lose points for invalid
// signatures, floods of control messages, topics beyond the bounds, malformed and
// oversized messages, and floods of repetitions, and gain some for messages that
// they deliver first. A peer with less than 0 leaves the mesh, and one with less
// than -100 is graylisted: the node ignores what it sends, and sends it nothing,
// until its score recovers. See [Status].Scores, [EventPeerGraylisted] and
// [FindingGraylisted].
//
// It conflicts with pubsub.WithPeerScore in [WithPubSubOptions].
func WithPeerScoring(s Scoring) Option {
	return option{"WithPeerScoring", func(c *config) error {
		if err := s.check(); err != nil {
			return err
		}
		c.scoring = &s
		return nil
	}}
}

// WithPubSubTrace writes an account of what pubsub does to w, overriding the default
// of none: a line of JSON for each message that is published, received, sent,
// rejected or delivered, and each change of the mesh, in the form of gossipsub's
// JSON tracer. It is for finding out why a message did not arrive; the lines name
// peers and topics, and hold no data of messages. Writing does not hold up messages: when
// 16,384 lines wait for w, the oldest are dropped, and a line says how many. The
// first error ends the trace, with a warning in the log.
func WithPubSubTrace(w io.Writer) Option {
	return option{"WithPubSubTrace", func(c *config) error {
		if isNil(w) {
			return errors.New("the writer is nil; leave the option out for no trace")
		}
		c.pubsubTrace = w
		return nil
	}}
}

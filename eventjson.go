package p2pnode

import (
	"encoding/json"
	"fmt"
	"time"
)

// UnmarshalEvent reads the JSON form of an [Event]. Errors in it come back as
// their texts only. An unknown type is an error.
func UnmarshalEvent(data []byte) (Event, error) {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("p2pnode: unmarshal event: %w", err)
	}
	read := eventReaders[head.Type]
	if read == nil {
		return nil, fmt.Errorf("p2pnode: unmarshal event: unknown type %q", head.Type)
	}
	ev, err := read(data)
	if err != nil {
		return nil, fmt.Errorf("p2pnode: unmarshal event: %w", err)
	}
	return ev, nil
}

// eventReaders holds the events by the "type" of their JSON form.
var eventReaders = map[string]func([]byte) (Event, error){
	"peer-connected":            readEvent[EventPeerConnected],
	"peer-disconnected":         readEvent[EventPeerDisconnected],
	"path-changed":              readEvent[EventPathChanged],
	"peer-found":                readEvent[EventPeerFound],
	"addrs-changed":             readEvent[EventAddrsChanged],
	"reachability-changed":      readEvent[EventReachabilityChanged],
	"addr-reachability-changed": readEvent[EventAddrReachabilityChanged],
	"port-mapped":               readEvent[EventPortMapped],
	"port-unmapped":             readEvent[EventPortUnmapped],
	"dht-mode-changed":          readEvent[EventDHTModeChanged],
	"bootstrap-round":           readEvent[EventBootstrapRound],
	"relay-reserved":            readEvent[EventRelayReserved],
	"relay-lost":                readEvent[EventRelayLost],
	"hole-punched":              readEvent[EventHolePunched],
	"provided":                  readEvent[EventProvided],
	"provide-progress":          readEvent[EventProvideProgress],
	"topic-peer-joined":         readEvent[EventTopicPeerJoined],
	"topic-peer-left":           readEvent[EventTopicPeerLeft],
	"topic-health":              readEvent[EventTopicHealth],
	"peer-deaf":                 readEvent[EventPeerDeaf],
	"peer-graylisted":           readEvent[EventPeerGraylisted],
	"peer-forgiven":             readEvent[EventPeerForgiven],
	"limit-reached":             readEvent[EventLimitReached],
	"banned":                    readEvent[EventBanned],
	"unbanned":                  readEvent[EventUnbanned],
	"events-lost":               readEvent[EventsLost],
}

func readEvent[E Event](data []byte) (Event, error) {
	var ev E
	err := json.Unmarshal(data, &ev)
	return ev, err
}

// typed marshals an event with its type in front. An event always has a time, so
// something follows the type.
func typed(name string, ev any) ([]byte, error) {
	data, err := json.Marshal(ev)
	if err != nil {
		return nil, err
	}
	return append(fmt.Appendf(nil, `{"type":%q,`, name), data[1:]...), nil
}

// MarshalJSON implements [json.Marshaler].
func (e EventPeerConnected) MarshalJSON() ([]byte, error) {
	type plain EventPeerConnected
	return typed("peer-connected", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventPeerDisconnected) MarshalJSON() ([]byte, error) {
	type plain EventPeerDisconnected
	return typed("peer-disconnected", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventPathChanged) MarshalJSON() ([]byte, error) {
	type plain EventPathChanged
	return typed("path-changed", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventPeerFound) MarshalJSON() ([]byte, error) {
	type plain EventPeerFound
	return typed("peer-found", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventAddrsChanged) MarshalJSON() ([]byte, error) {
	type plain EventAddrsChanged
	return typed("addrs-changed", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventReachabilityChanged) MarshalJSON() ([]byte, error) {
	type plain EventReachabilityChanged
	return typed("reachability-changed", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventAddrReachabilityChanged) MarshalJSON() ([]byte, error) {
	type plain EventAddrReachabilityChanged
	return typed("addr-reachability-changed", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventPortMapped) MarshalJSON() ([]byte, error) {
	type plain EventPortMapped
	return typed("port-mapped", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventPortUnmapped) MarshalJSON() ([]byte, error) {
	type plain EventPortUnmapped
	return typed("port-unmapped", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventDHTModeChanged) MarshalJSON() ([]byte, error) {
	type plain EventDHTModeChanged
	return typed("dht-mode-changed", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventBootstrapRound) MarshalJSON() ([]byte, error) {
	type plain EventBootstrapRound
	return typed("bootstrap-round", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventRelayReserved) MarshalJSON() ([]byte, error) {
	type plain EventRelayReserved
	return typed("relay-reserved", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventRelayLost) MarshalJSON() ([]byte, error) {
	type plain EventRelayLost
	return typed("relay-lost", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventHolePunched) MarshalJSON() ([]byte, error) {
	type plain EventHolePunched
	return typed("hole-punched", struct {
		plain
		Err string `json:"err,omitempty"`
	}{plain(e), errorText(e.Err)})
}

// MarshalJSON implements [json.Marshaler].
func (e EventProvided) MarshalJSON() ([]byte, error) {
	type plain EventProvided
	return typed("provided", struct {
		plain
		Err string `json:"err,omitempty"`
	}{plain(e), errorText(e.Err)})
}

// MarshalJSON implements [json.Marshaler].
func (e EventProvideProgress) MarshalJSON() ([]byte, error) {
	type plain EventProvideProgress
	return typed("provide-progress", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventTopicPeerJoined) MarshalJSON() ([]byte, error) {
	type plain EventTopicPeerJoined
	return typed("topic-peer-joined", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventTopicPeerLeft) MarshalJSON() ([]byte, error) {
	type plain EventTopicPeerLeft
	return typed("topic-peer-left", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventTopicHealth) MarshalJSON() ([]byte, error) {
	type plain EventTopicHealth
	return typed("topic-health", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventPeerDeaf) MarshalJSON() ([]byte, error) {
	type plain EventPeerDeaf
	return typed("peer-deaf", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventPeerGraylisted) MarshalJSON() ([]byte, error) {
	type plain EventPeerGraylisted
	return typed("peer-graylisted", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventPeerForgiven) MarshalJSON() ([]byte, error) {
	type plain EventPeerForgiven
	return typed("peer-forgiven", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventLimitReached) MarshalJSON() ([]byte, error) {
	type plain EventLimitReached
	return typed("limit-reached", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventBanned) MarshalJSON() ([]byte, error) {
	type plain EventBanned
	return typed("banned", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventUnbanned) MarshalJSON() ([]byte, error) {
	type plain EventUnbanned
	return typed("unbanned", plain(e))
}

// MarshalJSON implements [json.Marshaler].
func (e EventsLost) MarshalJSON() ([]byte, error) {
	type plain EventsLost
	return typed("events-lost", plain(e))
}

// UnmarshalJSON implements [json.Unmarshaler].
func (e *EventHolePunched) UnmarshalJSON(data []byte) error {
	type plain EventHolePunched
	var in struct {
		plain
		Err string `json:"err"`
	}
	err := json.Unmarshal(data, &in)
	*e = EventHolePunched(in.plain)
	e.Err = textError(in.Err)
	return err
}

// UnmarshalJSON implements [json.Unmarshaler].
func (e *EventProvided) UnmarshalJSON(data []byte) error {
	type plain EventProvided
	var in struct {
		plain
		Err string `json:"err"`
	}
	err := json.Unmarshal(data, &in)
	*e = EventProvided(in.plain)
	e.Err = textError(in.Err)
	return err
}

func (e EventPeerConnected) stamped(at time.Time) Event           { e.At = at; return e }
func (e EventPeerDisconnected) stamped(at time.Time) Event        { e.At = at; return e }
func (e EventPathChanged) stamped(at time.Time) Event             { e.At = at; return e }
func (e EventPeerFound) stamped(at time.Time) Event               { e.At = at; return e }
func (e EventAddrsChanged) stamped(at time.Time) Event            { e.At = at; return e }
func (e EventReachabilityChanged) stamped(at time.Time) Event     { e.At = at; return e }
func (e EventAddrReachabilityChanged) stamped(at time.Time) Event { e.At = at; return e }
func (e EventPortMapped) stamped(at time.Time) Event              { e.At = at; return e }
func (e EventPortUnmapped) stamped(at time.Time) Event            { e.At = at; return e }
func (e EventDHTModeChanged) stamped(at time.Time) Event          { e.At = at; return e }
func (e EventBootstrapRound) stamped(at time.Time) Event          { e.At = at; return e }
func (e EventRelayReserved) stamped(at time.Time) Event           { e.At = at; return e }
func (e EventRelayLost) stamped(at time.Time) Event               { e.At = at; return e }
func (e EventHolePunched) stamped(at time.Time) Event             { e.At = at; return e }
func (e EventProvided) stamped(at time.Time) Event                { e.At = at; return e }
func (e EventProvideProgress) stamped(at time.Time) Event         { e.At = at; return e }
func (e EventTopicPeerJoined) stamped(at time.Time) Event         { e.At = at; return e }
func (e EventTopicPeerLeft) stamped(at time.Time) Event           { e.At = at; return e }
func (e EventTopicHealth) stamped(at time.Time) Event             { e.At = at; return e }
func (e EventPeerDeaf) stamped(at time.Time) Event                { e.At = at; return e }
func (e EventPeerGraylisted) stamped(at time.Time) Event          { e.At = at; return e }
func (e EventPeerForgiven) stamped(at time.Time) Event            { e.At = at; return e }
func (e EventLimitReached) stamped(at time.Time) Event            { e.At = at; return e }
func (e EventBanned) stamped(at time.Time) Event                  { e.At = at; return e }
func (e EventUnbanned) stamped(at time.Time) Event                { e.At = at; return e }
func (e EventsLost) stamped(at time.Time) Event                   { e.At = at; return e }

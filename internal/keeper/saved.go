package keeper

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/keeper/peerfile"
)

const (
	// saveEvery is how often peers are saved, and saveAfter how long a peer must
	// have been connected by then.
	saveEvery = 10 * time.Minute
	saveAfter = 5 * time.Minute
	// A node that has saved no peers does not wait that long: it may crash.
	firstSaveEvery = time.Minute
	firstSaveAfter = 30 * time.Second
	// maxGone bounds how many peers that left are remembered between two saves.
	maxGone = 512
)

// sight is what is known about a peer of this run, for saving it.
type sight struct {
	peer   peerfile.Peer
	up     bool
	direct bool // it was connected directly
}

// load reads the saved peers.
func (k *Keeper) load(now time.Time) {
	if k.cfg.Store == nil {
		return
	}
	var list []peerfile.Peer
	err := k.cfg.Store.Read(func(b []byte) (err error) {
		list, err = peerfile.Parse(b)
		return err
	})
	if err != nil {
		k.cfg.Log.Warn("loading saved peers", "err", err)
		k.warnings = append(k.warnings, "saved peers: "+err.Error())
	}
	list = slices.DeleteFunc(list, func(p peerfile.Peer) bool { return p.ID == k.cfg.Self })
	list = peerfile.Choose(now, list)
	for _, p := range list {
		if p.Near() {
			k.cfg.Given(peer.AddrInfo{ID: p.ID, Addrs: p.Addrs})
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rememberLocked(list)
}

// rememberLocked replaces the list of saved peers, and dials the new ones.
func (k *Keeper) rememberLocked(list []peerfile.Peer) {
	k.saved = list
	here := make(map[peer.ID]bool, len(list))
	for _, p := range list {
		here[p.ID] = true
		d := &k.entryLocked(p.ID).duties[Saved]
		if !d.on {
			d.begin(k, Saved)
		}
		d.addrs = p.Addrs
	}
	for id, e := range k.peers {
		if !here[id] {
			e.duties[Saved] = duty{}
		}
	}
}

// changedLocked returns the connected peers whose place is not known yet, and
// those that disconnected.
func (k *Keeper) changedLocked(v view) (fresh, gone []peer.ID) {
	for id := range v.up {
		if s := k.seen[id]; s == nil || !s.up {
			fresh = append(fresh, id)
		}
	}
	for id, s := range k.seen {
		if _, up := v.up[id]; s.up && !up {
			gone = append(gone, id)
		}
	}
	return fresh, gone
}

// sightLocked records which peers came and left, for saving them: if only those
// counted that are connected at the end, none of the nodes of a network that
// stop one after another would remember it.
func (k *Keeper) sightLocked(v view) {
	for id, place := range v.places {
		s := k.seen[id]
		if s == nil {
			s = &sight{peer: peerfile.Peer{ID: id, Known: stamp(v.now)}}
			k.seen[id] = s
		}
		s.up = true
		s.note(place, nil)
	}
	for id, known := range v.left {
		s := k.seen[id]
		s.up = false
		s.peer.Seen = stamp(v.now)
		if s.note(Place{}, known); len(s.peer.Addrs) == 0 || !s.direct {
			delete(k.seen, id)
		}
	}
	if len(v.left) > 0 {
		k.forgetLocked(v.now)
	}
}

// stamp returns a time in the form in which it is saved.
func stamp(t time.Time) time.Time { return t.UTC().Round(0) }

// note adds to what is known about a peer.
func (s *sight) note(place Place, known []ma.Multiaddr) {
	if !place.Since.IsZero() {
		s.direct = true
		s.peer.IP = place.IP
	}
	for _, a := range slices.Concat(place.Dialed, s.peer.Addrs, known) {
		if peerfile.Usable(a) && !ma.Contains(s.peer.Addrs, a) && len(s.peer.Addrs) < peerfile.MaxAddrs {
			s.peer.Addrs = append(s.peer.Addrs, a)
		}
	}
}

// forgetLocked bounds how many peers that left are remembered.
func (k *Keeper) forgetLocked(now time.Time) {
	var gone []peerfile.Peer
	for _, s := range k.seen {
		if !s.up {
			gone = append(gone, s.peer)
		}
	}
	if len(gone) <= maxGone {
		return
	}
	stay := make(map[peer.ID]bool)
	for _, p := range peerfile.Choose(now, gone) {
		stay[p.ID] = true
	}
	for id, s := range k.seen {
		if !s.up && !stay[id] {
			delete(k.seen, id)
		}
	}
}

// keepSaving saves the peers periodically.
func (k *Keeper) keepSaving(ctx context.Context) {
	for {
		every, after := saveEvery, saveAfter
		if k.mu.Lock(); len(k.saved) == 0 {
			every, after = firstSaveEvery, firstSaveAfter
		}
		k.mu.Unlock()
		if !backoff.Sleep(ctx, every) {
			return
		}
		if err := k.save(time.Now(), after); err != nil {
			k.cfg.Log.Warn("saving peers", "err", err)
		}
	}
}

// save writes the peers to remember: those saved before, those that have been
// connected directly for at least after, and those that left.
func (k *Keeper) save(now time.Time, after time.Duration) error {
	k.saving.Lock()
	defer k.saving.Unlock()
	var fresh []peerfile.Peer
	for _, id := range k.cfg.Conns.Peers() {
		place := k.cfg.Conns.Where(id)
		if place.Since.IsZero() || now.Sub(place.Since) < after {
			continue
		}
		s := sight{peer: peerfile.Peer{ID: id, Known: stamp(place.Since), Seen: stamp(now)}}
		if s.note(place, k.cfg.Conns.Addrs(id)); len(s.peer.Addrs) > 0 {
			fresh = append(fresh, s.peer)
		}
	}
	k.mu.Lock()
	var gone []peerfile.Peer
	for id, s := range k.seen {
		if !s.up {
			gone = append(gone, s.peer)
			delete(k.seen, id)
		}
	}
	list := peerfile.Choose(now, k.saved, fresh, gone)
	k.rememberLocked(list)
	k.mu.Unlock()
	b, err := peerfile.Encode(list)
	if err != nil {
		return err
	}
	if len(list) == 0 && k.written == nil || bytes.Equal(b, k.written) {
		return nil // nothing new
	}
	if err := k.cfg.Store.Write(b); err != nil {
		return err
	}
	k.written = b
	return nil
}

package p2pnode

import (
	"errors"
	"log/slog"
	"sync"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/go-p2pnode/p2pnode/internal/datadir"
	"github.com/go-p2pnode/p2pnode/internal/peerfile"
)

// identityName is the file of the data directory that holds the identity.
const identityName = "identity.key"

// WithDataDir sets the directory in which the node keeps what it needs again
// after a restart, overriding the default of none. It is created with mode
// 0700 if absent, and locked: a second node with the directory, in this
// process or another, is an error from New, and so is a directory that cannot
// be written to. The identity lives in the file identity.key there, made at
// the first start, unless WithIdentity, WithIdentityFile or WithIdentityString
// gives another.
//
// Peers that were connected directly for 5 minutes are saved every 10 minutes
// (the first ones after half a minute, within a minute), and all that are
// connected at Close: at most 100, of them 20 of one IPv4 /16 or IPv6 /32, each
// for a week. At the next start the node dials them beside its bootstrap peers;
// when it was given none and no WithMinPeers, until one of them is connected.
// The blocks of Block are kept here too.
//
// A damaged file of these is set aside, never replaced, and told in
// Status.Warnings and by Diagnose; the node starts without what it held, which
// for blocks means that those peers are let in. An identity that is damaged, in
// contrast, is an error. A file that cannot be read for now is told in the same
// way and left as it is: what would replace it is not saved, and Block or Close
// says so. The lock ends with Close, and with the process.
func WithDataDir(dir string) Option {
	return option{"WithDataDir", func(c *config) error {
		if dir == "" {
			return errors.New("the path is empty")
		}
		c.dataDir = dir
		return nil
	}}
}

// dataPart is the open data directory.
type dataPart struct {
	dir      *datadir.Dir
	log      *slog.Logger
	warnings []string // what was damaged at the start; never changes

	saving  sync.Mutex // one save at a time
	written []byte     // what was saved last, nil before; guarded by saving
	mu      sync.Mutex
	peers   []peerfile.Peer // replaced, never changed; guarded by mu
}

// startDataDir opens the directory first of all, so that its lock is released
// after every part that writes to it has ended.
func (n *Node) startDataDir() error {
	if n.cfg.dataDir == "" {
		return nil
	}
	dir, err := datadir.Open(n.cfg.dataDir)
	if err != nil {
		return &OptionError{Option: "WithDataDir", Err: err}
	}
	n.stack.Push("data directory", closeBudget, dir.Close)
	n.data = &dataPart{dir: dir, log: n.log}
	n.data.loadPeers()
	return nil
}

// identity is the key in the directory, made if there is none.
func (d *dataPart) identity() (crypto.PrivKey, error) {
	path := d.dir.Path(identityName)
	key, created, err := loadOrCreateIdentity(path)
	if err != nil {
		return nil, err
	}
	if created {
		d.log.Info("identity created", "file", path)
	}
	return key, nil
}

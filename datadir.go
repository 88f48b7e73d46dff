package p2pnode

import (
	"log/slog"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/go-p2pnode/p2pnode/internal/access"
	"github.com/go-p2pnode/p2pnode/internal/datadir"
	"github.com/go-p2pnode/p2pnode/internal/dstore"
)

// identityName is the file of the data directory that holds the identity.
const identityName = "identity.key"

// recordsName is the file of the data directory with what the DHT keeps: what the
// node provides, and the records that it holds for others.
const recordsName = "dht.db"

// dataPart is the open data directory.
type dataPart struct {
	dir      *datadir.Dir
	log      *slog.Logger
	warnings []string // about the file of the DHT
}

// store is where the parts keep their files; nil without a data directory.
func (d *dataPart) store() access.Store {
	if d == nil {
		return nil
	}
	return d.dir
}

// openRecords opens the file of the DHT. Like the other files, one that cannot be
// read now is left alone, and reported.
func (d *dataPart) openRecords() *dstore.Store {
	s, err := dstore.Open(d.dir.Path(recordsName), d.log)
	switch {
	case err != nil:
		d.warnings = append(d.warnings, err.Error()+"; it is left alone, and what the node provides is not kept")
		d.log.Warn("the DHT's file cannot be opened, its records are in memory", "err", err)
		return nil
	case s.Damage() != nil:
		d.warnings = append(d.warnings, s.Damage().Error())
	}
	return s
}

// identity returns the key in the directory, creating it if there is none.
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

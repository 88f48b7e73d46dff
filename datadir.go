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
	dir     *datadir.Dir
	records *dstore.Store // nil without a DHT, or with WithDatastore
	log     *slog.Logger
}

// openRecords opens the file of the DHT.
func (d *dataPart) openRecords() (*dstore.Store, error) {
	s, err := dstore.Open(d.dir.Path(recordsName), d.log)
	if err != nil {
		return nil, &OptionError{Option: "WithDataDir", Err: err}
	}
	d.records = s
	return s, nil
}

// warnings returns what was wrong with the file of the DHT.
func (d *dataPart) warnings() []string {
	if d.records == nil || d.records.Damage() == nil {
		return nil
	}
	return []string{d.records.Damage().Error()}
}

// store is where the parts keep their files; nil without a data directory.
func (d *dataPart) store() access.Store {
	if d == nil {
		return nil
	}
	return d.dir
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

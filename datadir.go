package p2pnode

import (
	"log/slog"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/go-p2pnode/p2pnode/internal/access"
	"github.com/go-p2pnode/p2pnode/internal/datadir"
)

// identityName is the file of the data directory that holds the identity.
const identityName = "identity.key"

// dataPart is the open data directory.
type dataPart struct {
	dir *datadir.Dir
	log *slog.Logger
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

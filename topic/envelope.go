package topic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/go-p2pnode/p2pnode"
)

// schema is which versions a topic's messages may have. It is safe for concurrent
// use.
type schema struct {
	version  uint64 // 0 without one
	envelope bool   // the version is in front of the data
	also     []uint64

	older, newer atomic.Uint64 // messages of other versions
}

// seal returns the data of a message.
func (s *schema) seal(data []byte) []byte {
	if !s.envelope {
		return data
	}
	sealed := binary.AppendUvarint(make([]byte, 0, binary.MaxVarintLen64+len(data)), s.version)
	return append(sealed, data...)
}

// open returns what was sealed, and its version. The error of a version that is
// not read matches [p2pnode.ErrIgnore].
func (s *schema) open(data []byte) (rest []byte, version uint64, err error) {
	if !s.envelope {
		return data, s.version, nil
	}
	version, rest, err = cutVersion(data)
	if err != nil || version == s.version || slices.Contains(s.also, version) {
		return rest, version, err
	}
	return nil, version, fmt.Errorf("%w: it has version %d of the schema, and %d is read", p2pnode.ErrIgnore, version, s.version)
}

// count counts a message of a version that is not read.
func (s *schema) count(version uint64) {
	if version > s.version {
		s.newer.Add(1)
	} else {
		s.older.Add(1)
	}
}

var errNoVersion = errors.New("it does not begin with a version of its schema, a varint in its shortest form")

// cutVersion cuts a uvarint off. There is only one encoding of each version, or
// strangers could make other messages of one.
func cutVersion(data []byte) (version uint64, rest []byte, err error) {
	version, n := binary.Uvarint(data)
	if n <= 0 || data[n-1] == 0 { // also the version 0, which is none
		return 0, nil, errNoVersion
	}
	return version, data[n:], nil
}

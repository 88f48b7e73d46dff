package streams

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"
)

// selectOne agrees with the other side on the first of protos that it speaks, like
// multistream.SelectOneOf, but with 2 allocations instead of 15. Specification:
// github.com/multiformats/multistream-select.
func selectOne(rw io.ReadWriter, protos []protocol.ID) (protocol.ID, error) {
	size := len(multistream.ProtocolID)
	for _, p := range protos {
		size = max(size, len(p))
	}
	// Room for the first write, and for the longest reply.
	buf := make([]byte, 0, 2*(size+1+binary.MaxVarintLen64))
	hello := appendToken(appendToken(buf, multistream.ProtocolID), string(protos[0]))
	if _, err := rw.Write(hello); err != nil {
		return "", err
	}
	answer, err := readToken(rw, buf[:cap(buf)])
	if err != nil {
		return "", err
	}
	if string(answer) != multistream.ProtocolID {
		return "", fmt.Errorf("%.50q is no %s", answer, multistream.ProtocolID)
	}
	for i, p := range protos {
		if i > 0 {
			if _, err := rw.Write(appendToken(buf, string(p))); err != nil {
				return "", err
			}
		}
		answer, err := readToken(rw, buf[:cap(buf)])
		switch {
		case err != nil:
			return "", err
		case string(answer) == string(p):
			return p, nil
		case string(answer) != "na":
			return "", fmt.Errorf("asked for %s, the other side answers %.50q", p, answer)
		}
	}
	return "", multistream.ErrNotSupported[protocol.ID]{Protos: protos}
}

// appendToken appends a line after its length.
func appendToken(buf []byte, token string) []byte {
	buf = binary.AppendUvarint(buf, uint64(len(token)+1))
	buf = append(buf, token...)
	return append(buf, '\n')
}

var errNoToken = errors.New("the answer is no multistream-select")

// readToken reads a line into buf, and no bytes after it.
func readToken(r io.Reader, buf []byte) ([]byte, error) {
	size := 0
	for shift := 0; ; shift += 7 {
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			return nil, err
		}
		size |= int(buf[0]&0x7f) << shift
		if size > len(buf) || shift > 21 {
			return nil, errNoToken
		}
		if buf[0] < 0x80 {
			break
		}
	}
	if size == 0 {
		return nil, errNoToken
	}
	if _, err := io.ReadFull(r, buf[:size]); err != nil {
		return nil, err
	}
	if buf[size-1] != '\n' {
		return nil, errNoToken
	}
	return buf[:size-1], nil
}

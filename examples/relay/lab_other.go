//go:build !linux

package main

import (
	"context"
	"errors"
	"io"
)

func laboratory(context.Context, *flags, io.Writer) error {
	return errors.New("relay lab: it needs Linux, root, iproute2 and nftables")
}

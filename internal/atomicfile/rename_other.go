//go:build !linux && !darwin && !windows

package atomicfile

import "errors"

// renameExclusive is not offered by this system.
func renameExclusive(_, _ string) error { return errors.ErrUnsupported }

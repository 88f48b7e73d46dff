// Package cli is what the example programs share: a run function that can be
// tested, one clear line for a mistake in the arguments, and exit codes.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// ErrUsage is wrapped by every mistake in the arguments: exit code 2.
var ErrUsage = errors.New("usage")

// usageError is a mistake in the arguments, told in one line.
type usageError struct{ msg string }

func (e usageError) Error() string        { return e.msg }
func (e usageError) Is(target error) bool { return target == ErrUsage }

// Usagef returns an error that ends the program with exit code 2.
func Usagef(format string, args ...any) error {
	return usageError{strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")}
}

// Parse reads the flags. Asked for help, it prints what the program does and
// its flags to out and returns flag.ErrHelp.
func Parse(fs *flag.FlagSet, args []string, out io.Writer, about string) error {
	fs.SetOutput(io.Discard)
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(out, "%s\n\nUsage: %s [flags]\n", about, fs.Name())
		fs.SetOutput(out)
		fs.PrintDefaults()
		return flag.ErrHelp
	case err != nil:
		return Usagef("%s: %v (-h lists the flags)", fs.Name(), err)
	}
	return nil
}

// Main runs an example until it ends or is interrupted, and exits: 0 when run
// returned nil or was asked for help, 2 for a mistake in the arguments, 1 for
// anything else.
func Main(run func(ctx context.Context, args []string, out io.Writer) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case errors.Is(err, ErrUsage):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

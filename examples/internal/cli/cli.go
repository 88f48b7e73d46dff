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

	"github.com/go-p2pnode/p2pnode"
)

// ErrUsage is matched by every mistake in the arguments: exit code 2.
var ErrUsage = errors.New("usage")

// usageError is a mistake in the arguments, told in one line.
type usageError struct{ msg string }

func (e usageError) Error() string        { return e.msg }
func (e usageError) Is(target error) bool { return target == ErrUsage }

// Usagef returns an error that ends the program with exit code 2.
func Usagef(format string, args ...any) error {
	return usageError{strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")}
}

// Parse reads the flags, and nothing may be left over. Asked for help, it
// prints what the program does and its flags to out and returns flag.ErrHelp.
func Parse(fs *flag.FlagSet, args []string, out io.Writer, about string) error {
	rest, err := ParseArgs(fs, args, out, about)
	if err == nil && len(rest) > 0 {
		err = Usagef("%s: %q is no flag (-h lists the flags)", fs.Name(), rest[0])
	}
	return err
}

// ParseArgs is Parse for a program that takes arguments after its flags.
func ParseArgs(fs *flag.FlagSet, args []string, out io.Writer, about string) ([]string, error) {
	fs.SetOutput(io.Discard)
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(out, "%s\n\nFlags of %s:\n", about, fs.Name())
		fs.SetOutput(out)
		fs.PrintDefaults()
		return nil, flag.ErrHelp
	case err != nil:
		return nil, Usagef("%s: %v (-h lists the flags)", fs.Name(), err)
	}
	return fs.Args(), nil
}

// Start starts a node. Options that came from flags and do not fit are a
// mistake in the arguments.
func Start(ctx context.Context, opts ...p2pnode.Option) (*p2pnode.Node, error) {
	n, err := p2pnode.New(ctx, opts...)
	var bad *p2pnode.OptionError
	var busy *p2pnode.ListenError
	if errors.As(err, &bad) || errors.As(err, &busy) {
		return nil, Usagef("%v", err)
	}
	return n, err
}

// Listen is the option for the value of a -listen flag: addresses separated by
// commas, or none for the default.
func Listen(value string) p2pnode.Option {
	if value == "" {
		return nil
	}
	return p2pnode.WithListenAddrs(strings.Split(value, ",")...)
}

// Bootstrap is the option for the value of a -bootstrap flag: addresses
// separated by commas, or none.
func Bootstrap(value string) p2pnode.Option {
	if value == "" {
		return nil
	}
	return p2pnode.WithBootstrapAddrs(strings.Split(value, ",")...)
}

// Main runs an example until it ends or is interrupted, and exits: 0 when run
// returned nil or was asked for help, 2 for a mistake in the arguments, 1 for
// anything else.
func Main(run func(ctx context.Context, args []string, out io.Writer) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	os.Exit(code(err, os.Stderr))
}

func code(err error, stderr io.Writer) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, ErrUsage):
		fmt.Fprintln(stderr, err)
		return 2
	default:
		fmt.Fprintln(stderr, err)
		return 1
	}
}

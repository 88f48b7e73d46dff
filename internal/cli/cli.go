// Package cli is shared by the programs in examples and cmd: a testable run
// function, one clear line for invalid arguments, and exit codes. Its tests are in
// cmd/p2pnode-bootstrap, whose test binary has the library in it anyway.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/go-p2pnode/p2pnode"
)

// ErrUsage is matched by every error about the arguments: exit code 2.
var ErrUsage = errors.New("usage")

// usageError is an error about the arguments, in one line.
type usageError struct{ msg string }

func (e usageError) Error() string        { return e.msg }
func (e usageError) Is(target error) bool { return target == ErrUsage }

// Usagef returns an error that ends the program with exit code 2.
func Usagef(format string, args ...any) error {
	return usageError{strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")}
}

// Parse parses the flags, and refuses further arguments. With -h, it prints
// what the program does and its flags to out and returns flag.ErrHelp.
func Parse(fs *flag.FlagSet, args []string, out io.Writer, about string) error {
	rest, err := ParseArgs(fs, args, out, about)
	if err == nil && len(rest) > 0 {
		err = Usagef("%s: %q is not a flag (-h lists the flags)", fs.Name(), rest[0])
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

// Explain turns an error of [p2pnode.New] about an option that a flag of fs
// sets into a usage error that names the flag. Other errors, and nil, are
// returned as they are.
func Explain(fs *flag.FlagSet, err error) error {
	if err == nil {
		return nil
	}
	return blameFlags(fs, err)
}

// flagNames returns the flags that the examples use for an option.
func flagNames(option string) []string {
	switch option {
	case "WithListenAddrs":
		return []string{"listen"}
	case "WithBootstrapAddrs", "WithBootstrapPeers":
		return []string{"bootstrap"}
	case "WithAutoRelay":
		return []string{"relay"}
	case "WithIdentityFile":
		return []string{"identity", "file"}
	case "WithTicket":
		return []string{"ticket"}
	case "WithNetwork":
		return []string{"network"}
	case "WithMDNS":
		return []string{"mdns"}
	case "WithTLSFiles":
		return []string{"tls-cert"}
	case "WithBrowserTransports":
		return []string{"browsers"}
	case "WithDataDir":
		return []string{"data"}
	case "WithAnnounceAddrs":
		return []string{"announce"}
	case "WithPrivateNetwork":
		return []string{"swarm-key"}
	case "WithConnLimits":
		return []string{"high"}
	default:
		return nil
	}
}

// flagOf returns the flag of fs that sets an option, or "".
func flagOf(fs *flag.FlagSet, option string) string {
	for _, name := range flagNames(option) {
		if fs.Lookup(name) != nil {
			return "-" + name
		}
	}
	return ""
}

// blameFlags turns option errors of New into a usage error. An error that no
// flag causes is returned as it is.
func blameFlags(fs *flag.FlagSet, err error) error {
	var lines []string
	for _, e := range split(err) {
		var option *p2pnode.OptionError
		var listen *p2pnode.ListenError
		name := ""
		switch {
		case errors.As(e, &option):
			name, e = flagOf(fs, option.Option), option.Err
		case errors.As(e, &listen):
			name, e = flagOf(fs, "WithListenAddrs"), listen
		}
		if name == "" {
			return err
		}
		lines = append(lines, name+": "+e.Error())
	}
	text := strings.Join(lines, "; ")
	// The error of one option may mention another.
	for _, option := range []string{"WithListenAddrs", "WithBootstrapAddrs", "WithMDNS", "WithIdentityFile", "WithNetwork", "WithTicket", "WithDataDir", "WithPrivateNetwork", "WithConnLimits"} {
		if name := flagOf(fs, option); name != "" {
			text = strings.ReplaceAll(text, option, name)
		}
	}
	return Usagef("%s: %s", fs.Name(), text)
}

// split takes the joined errors of New apart.
func split(err error) []error {
	switch e := err.(type) {
	case *p2pnode.StartError:
		return split(e.Err)
	case interface{ Unwrap() []error }:
		var list []error
		for _, e := range e.Unwrap() {
			list = append(list, split(e)...)
		}
		return list
	default:
		return []error{err}
	}
}

// AnyInterface is what the example servers listen on by default: free ports on
// all IPv4 interfaces, for TCP and QUIC. The library's own default adds IPv6
// and WebSocket, which makes a long list to look at.
const AnyInterface = "/ip4/0.0.0.0/tcp/0,/ip4/0.0.0.0/udp/0/quic-v1"

// Listen returns the option for the value of a -listen flag: addresses
// separated by commas, or none for the library's default.
func Listen(value string) p2pnode.Option {
	if value == "" {
		return nil
	}
	return p2pnode.WithListenAddrs(strings.Split(value, ",")...)
}

// Bootstrap returns the option for the value of a -bootstrap flag: addresses
// separated by commas, or none.
func Bootstrap(value string) p2pnode.Option {
	if value == "" {
		return nil
	}
	return p2pnode.WithBootstrapAddrs(strings.Split(value, ",")...)
}

// Join returns the options for the values of the flags -network and -ticket of fs. A
// ticket names its network: the default of -network does not count with one.
func Join(fs *flag.FlagSet, network, ticket string) []p2pnode.Option {
	given := false
	fs.Visit(func(f *flag.Flag) { given = given || f.Name == "network" })
	switch {
	case ticket == "":
		return []p2pnode.Option{p2pnode.WithNetwork(network)}
	case given:
		return []p2pnode.Option{p2pnode.WithNetwork(network), p2pnode.WithTicket(ticket)}
	default:
		return []p2pnode.Option{p2pnode.WithTicket(ticket)}
	}
}

// Main runs a program until it ends or is interrupted, and exits: with 0 if run
// returned nil, printed help or was interrupted, with 2 for invalid arguments, with 1
// for anything else. A second interrupt ends the program at once.
func Main(run func(ctx context.Context, args []string, out io.Writer) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Stdout)
	exit := ExitCode(ctx, err, os.Stderr)
	stop()
	if !ended() {
		exit = 3
	}
	os.Exit(exit)
}

// ExitCode prints the error of a program in one line, and returns the exit code for
// it. That the end of ctx, which is an interrupt, cut something short is no error: a
// program may be interrupted while it starts.
func ExitCode(ctx context.Context, err error, stderr io.Writer) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case ctx.Err() != nil && !slices.ContainsFunc(split(err), func(e error) bool { return !errors.Is(e, context.Canceled) }):
		return 0
	case errors.Is(err, ErrUsage):
		fmt.Fprintln(stderr, err)
		return 2
	default:
		fmt.Fprintln(stderr, err)
		return 1
	}
}

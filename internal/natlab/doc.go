// Package natlab builds networks of Linux network namespaces, for tests and for
// examples/relay: hosts on a public network, and hosts on local networks behind
// routers that translate addresses or filter packets as those of homes, offices
// and carriers do. The stacks, the routers and their connection tracking are the
// kernel's.
//
// A [Lab] has a public network that routes between its customers. A [Host] is
// such a customer itself, or is on the local network of a [Site], whose router is
// the customer. Addresses of the public network are globally routable ones, for
// programs that treat those differently from private ones; nothing leaves the
// namespaces, which have no route to the network of the machine.
//
// Namespaces have no names and no processes of their own. They are open files of
// the process that made them, and every process in them ends with it, so that
// nothing remains however it ends.
//
// It needs Linux, root, iproute2 and nftables, and miniupnpd for routers that map ports.
package natlab

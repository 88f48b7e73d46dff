package p2pnode

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/go-p2pnode/p2pnode"

// A room only for tests.
const forTests = "for tests alone"

// rooms lists the packages of the module and which of the others each may import,
// with the reason. TestImports fails for packages and imports that are not in it,
// so that changes are made here and get reviewed.
var rooms = map[string]map[string]string{
	// The ground imports nothing of ours.
	"internal/addrs":      {},
	"internal/atomicfile": {},
	"internal/backoff":    {},
	"internal/errs":       {},
	"internal/causes":     {},
	"internal/certs":      {},
	"internal/lifecycle":  {},
	"internal/occasion":   {},
	"internal/ordered":    {},
	"internal/ring":       {},
	"internal/signal":     {},
	"internal/signed":     {},

	"internal/ticket": {"internal/addrs": "which addresses are worth a place in a ticket"},

	"internal/hub":      {"internal/ring": "a slow subscriber loses its oldest events"},
	"internal/logguard": {"internal/lifecycle": "the writing of lines is awaited"},
	"internal/keyfile":  {"internal/atomicfile": "a key file is written so that a crash leaves none or a whole one"},
	"internal/datadir":  {"internal/atomicfile": "a file is replaced so that a crash leaves the old or the new one"},
	"internal/dstore": {
		"internal/atomicfile": "a new file, or a recovered one, is whole when it has its name",
		"internal/ordered":    "queries",
	},
	"internal/memstore":        {"internal/ordered": "queries"},
	"internal/keeper/peerfile": {"internal/addrs": "where a stranger cannot be"},
	"internal/limits": {
		"internal/errs":  "what is refused matches a sentinel",
		"internal/addrs": "private addresses have limits of their own",
	},
	"internal/access": {
		"internal/errs":  "a banned peer is ErrBanned",
		"internal/addrs": "the subnet that an address lies in",
	},
	"internal/nethost": {
		"internal/limits":    "the resource manager is one of the host's parts",
		"internal/addrs":     "transports are chosen by the kind of an address",
		"internal/causes":    "why a dial or a listener failed, in words",
		"internal/errs":      "dialing tells who is banned and what is closed",
		"internal/lifecycle": "the host's goroutines are awaited",
		"internal/backoff":   "the address book is swept from time to time",
	},
	"internal/relays": {
		"internal/nethost":   "reservations stand on the host's connections",
		"internal/signal":    "a reservation that comes or goes is told",
		"internal/addrs":     "addresses through relays are told apart",
		"internal/causes":    "a relay's text is cleaned",
		"internal/backoff":   "searches for relays grow apart",
		"internal/lifecycle": "following the relays is awaited",
	},
	"internal/reach": {
		"internal/nethost":   "the host knows its addresses and its peers",
		"internal/addrs":     "from where an address can be reached",
		"internal/signal":    "peers that come and go are told",
		"internal/lifecycle": "asking is awaited",
	},
	"internal/portmap": {
		"internal/lifecycle": "the router is asked in the background, and awaited",
		"internal/signal":    "a listener that comes or goes is told",
	},
	"internal/lan": {
		"internal/nethost": "mDNS announces the addresses of the host's interfaces",
		"internal/signal":  "it starts again when those change",
	},
	"internal/keeper": {
		"internal/signal":          "rounds begin when something changed",
		"internal/backoff":         "rounds grow apart",
		"internal/lifecycle":       "dials are awaited",
		"internal/addrs":           "addresses of one peer are merged",
		"internal/errs":            "a banned peer is dialed when its ban ends",
		"internal/keeper/peerfile": "which peers are saved, and their file",
	},
	"internal/meet": {
		"internal/backoff": "searches that bring nobody grow apart",
		"internal/signal":  "connections and members that change are told",
	},
	"internal/kad": {
		"internal/nethost":  "the DHT runs on the host",
		"internal/signal":   "a change of the routing table is told",
		"internal/errs":     "an empty table is ErrNoPeers",
		"internal/memstore": "what is kept without a data directory",
		"internal/signed":   "the records of applications' own namespaces",

		"internal/backoff":   "announcements that fail are repeated, further and further apart",
		"internal/lifecycle": "announcing is awaited",
	},
	"internal/gossip": {
		"internal/ring":      "a subscription drops the oldest message",
		"internal/signal":    "a change of a topic's peers is told",
		"internal/lifecycle": "readers of topics are awaited",
		"internal/errs":      "a publish that reached nobody is ErrNoPeers",
		"internal/occasion":  "losses that strangers bring about do not fill the log",
		"internal/backoff":   "a stream that ends again and again is opened less and less often",
	},
	"internal/streams": {
		"internal/lifecycle": "handlers are awaited",
		"internal/errs":      "a protocol that is served already is ErrProtocolInUse",
		"internal/backoff":   "a stream that finds no room is tried again, less and less often",
		"internal/causes":    "why the other side ended a stream, in words",
		"internal/limits":    "an error names the limit that refused a stream",
		"internal/occasion":  "handlers that strangers make fail do not fill the log",
	},
	"internal/watch": {
		"internal/nethost":   "it drains the host's event bus",
		"internal/signal":    "a change of the host is told",
		"internal/lifecycle": "the draining is awaited",
	},
	"internal/diag": {"internal/causes": "what the error of a dial means; it reads its argument and nothing else"},

	"internal/cli": {
		"":                  "flags and options of the programs in cmd and examples",
		"internal/leaktest": forTests + ": with the build tag leakcheck",
	},
	"internal/nethost/hosttest": {"internal/nethost": forTests, "internal/limits": forTests, "internal/addrs": forTests},
	"internal/clitest":          {"internal/leaktest": forTests},
	"internal/golden":           {},
	"internal/leaktest":         {},
	"internal/natlab":           {},
	"internal/natlab/labpeer":   {"": "a node in the laboratory"},
	"internal/needs":            {},
	"internal/raced":            {},
	"internal/simhost":          {},

	// The face, which is every room's only user.
	"": {
		"internal/access":          "Ban, Allow",
		"internal/addrs":           "options check addresses",
		"internal/causes":          "why an address does not bind, in words",
		"internal/certs":           "WithTLSFiles, WithTLSConfig",
		"internal/datadir":         "WithDataDir",
		"internal/dstore":          "what the DHT keeps in the directory of WithDataDir",
		"internal/diag":            "Diagnose",
		"internal/errs":            "the sentinels",
		"internal/gossip":          "topics",
		"internal/kad":             "the DHT",
		"internal/reach":           "AutoNAT",
		"internal/keeper":          "bootstrap, persistent and saved peers",
		"internal/keyfile":         "identity and swarm key",
		"internal/lan":             "WithMDNS",
		"internal/lifecycle":       "New and Close",
		"internal/limits":          "WithLimits",
		"internal/logguard":        "WithLogger",
		"internal/meet":            "WithRendezvous, TopicDiscovery",
		"internal/nethost":         "the host",
		"internal/keeper/peerfile": forTests,
		"internal/portmap":         "WithPortMapping",
		"internal/relays":          "WithAutoRelay, WithRelayService",
		"internal/signal":          "waits wake by events",
		"internal/streams":         "Handle, Listen, Dial",
		"internal/ticket":          "Ticket, WithTicket",
		"internal/hub":             "the consumers of Events",
		"internal/watch":           "Events",
		"internal/backoff":         "the engines' delays are in the table of defaults",
	},

	// The tests of the programs run them as processes.
	"examples": {},

	// The products know the root's exported names.
	"p2ptest": {
		"":                  "the nodes",
		"internal/simhost":  "the simulated network, an exception among the products",
		"internal/memstore": "what a node keeps over a restart, without a directory",
		"internal/raced":    "virtual time under the race detector wants one thread",
	},
	"topic":     {"": "the node"},
	"rpc":       {"": "the node"},
	"p2phttp":   {"": "the node"},
	"blocks":    {"": "the node"},
	"dashboard": {"": "the node"},

	// Codecs fit package topic's interface, and do not need it.
	"topic/protocodec": {},
	"topic/cborcodec":  {},
}

// program lists what the packages in cmd and examples may import.
var program = map[string]string{
	"":             "the node",
	"p2ptest":      "examples/simulate",
	"topic":        "examples/chat",
	"internal/cli": "flags that every program has",

	"internal/natlab": "examples/relay lab: the routers that it is shown with",
}

// forbidden are modules that the packages of the library do not use, by the
// beginning of the import path.
var forbidden = map[string]string{
	"github.com/stretchr/testify":   "assertions: package testing is enough, and users would download it",
	"github.com/google/go-cmp":      "assertions: package testing is enough, and users would download it",
	"github.com/onsi/":              "assertions: package testing is enough, and users would download it",
	"github.com/ipfs/go-log":        "logging that is process-wide; a node has a slog.Logger of its own",
	"go.uber.org/zap":               "logging: log/slog is the standard library's",
	"github.com/sirupsen/logrus":    "logging: log/slog is the standard library's",
	"github.com/rs/zerolog":         "logging: log/slog is the standard library's",
	"github.com/spf13/":             "command lines: package flag is enough, and a library has none",
	"github.com/urfave/cli":         "command lines: package flag is enough, and a library has none",
	"github.com/alecthomas/":        "command lines: package flag is enough, and a library has none",
	"github.com/pkg/errors":         "package errors wraps since Go 1.13",
	"github.com/hashicorp/go-multi": "errors.Join is the standard library's",
	"github.com/benbjohnson/clock":  "testing/synctest has virtual time without a clock to pass around",
	"github.com/ipfs/kubo":          "an application, with its settings and repositories",
	"log":                           "it logs where nobody asked it to",
}

// goFile is a parsed file and its directory in the module.
type goFile struct {
	dir, name string
	test      bool
	*ast.File
}

// goFiles are the files of the module, parsed.
func goFiles(t *testing.T) []goFile {
	t.Helper()
	fset := token.NewFileSet()
	var list []goFile
	mustNot(t, filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		p = filepath.ToSlash(p)
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules"):
			return fs.SkipDir
		case d.IsDir() || path.Ext(p) != ".go":
			return nil
		}
		f, err := parser.ParseFile(fset, p, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := path.Dir(p)
		if dir == "." {
			dir = ""
		}
		list = append(list, goFile{dir, p, strings.HasSuffix(p, "_test.go"), f})
		return nil
	}))
	return list
}

// A test file that sees only what a package exports is named x_ext_test.go, x_sim_test.go
// if it runs in virtual time, or example_test.go; every other one sees all of it.
func TestNamesOfTestFilesTellWhatTheySee(t *testing.T) {
	external := regexp.MustCompile(`(^|/)(example|\w+_ext(_linux|_unix)?|(\w+_)?sim)_test\.go$`)
	black := 0
	for _, f := range goFiles(t) {
		sees := !strings.HasSuffix(f.Name.Name, "_test")
		if !f.test || f.dir == "examples" { // which has nothing but tests
			continue
		}
		if !sees {
			black++
		}
		if sees == external.MatchString(f.name) {
			t.Errorf("%s is of package %s", f.name, f.Name.Name)
		}
	}
	if black == 0 {
		t.Error("no file sees only what is exported")
	}
}

// imports are the import paths of a file.
func (f goFile) imports() []string {
	var list []string
	for _, spec := range f.Imports {
		p, _ := strconv.Unquote(spec.Path.Value) // it was parsed
		list = append(list, p)
	}
	return list
}

// ours is an import path without the module's, and whether it is one of the
// module's packages.
func ours(importPath string) (string, bool) {
	if importPath == module {
		return "", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// Every package imports only the packages of the module that rooms allows.
func TestImports(t *testing.T) {
	for _, f := range goFiles(t) {
		allowed, known := rooms[f.dir]
		if strings.HasPrefix(f.dir, "cmd/") || strings.HasPrefix(f.dir, "examples/") {
			allowed, known = program, true
		}
		if !known {
			t.Errorf("%s: the package is not listed in rooms; add it, with what it may import and why", f.name)
			continue
		}
		library := !strings.HasPrefix(f.dir, "cmd/") && !strings.HasPrefix(f.dir, "examples/")
		for _, imported := range f.imports() {
			p, own := ours(imported)
			switch {
			case own && f.test:
				// Tests use more, but no room's tests need a whole node.
				if _, face := allowed[""]; p == "" && !face && f.dir != "" {
					t.Errorf("%s imports the root; a room is tested by itself", f.name)
				}
			case own && allowed[p] == "":
				t.Errorf("%s imports %q, which rooms does not allow it; allowed: %q", f.name, p, slices.Sorted(maps.Keys(allowed)))
			case !own && library:
				for start, why := range forbidden {
					if imported == start || strings.HasPrefix(imported, start) && strings.Contains(start, ".") {
						t.Errorf("%s imports %s: %s", f.name, imported, why)
					}
				}
			}
		}
	}
}

// The table of rooms knows every directory, gives every reason, and has no
// circle of two.
func TestRoomsAreComplete(t *testing.T) {
	entries, err := os.ReadDir("internal")
	mustNot(t, err)
	for _, e := range entries {
		if _, ok := rooms["internal/"+e.Name()]; !ok {
			t.Errorf("internal/%s is not listed in rooms", e.Name())
		}
	}
	for room, allowed := range rooms {
		for p, why := range allowed {
			if why == "" {
				t.Errorf("%s may import %s, and nobody says why", room, p)
			}
			if _, ok := rooms[p]; !ok {
				t.Errorf("%s may import %s, which is no room", room, p)
			}
			if _, back := rooms[p][room]; back {
				t.Errorf("%s and %s may import each other", room, p)
			}
		}
	}
}

// What the face must not do, and the files with exceptions.
var (
	startsGoroutines = map[string]string{}
	hasMutexes       = map[string]string{}
	readsSwarm       = map[string]string{}
)

// The face starts no goroutine, has no mutex, and does not look into libp2p's
// swarm: that is what the rooms are for.
func TestFaceIsFlat(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.dir != "" || f.test {
			continue
		}
		refuse := func(found bool, exceptions map[string]string, what string) {
			_, excepted := exceptions[f.name]
			switch {
			case found && !excepted:
				t.Errorf("%s %s", f.name, what)
			case excepted && !found:
				t.Errorf("%s no longer %s: drop the exception", f.name, what)
			}
		}
		goes, mutex := false, false
		ast.Inspect(f.File, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				goes = true
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "sync" {
					mutex = mutex || n.Sel.Name == "Mutex" || n.Sel.Name == "RWMutex"
					goes = goes || n.Sel.Name == "WaitGroup" // which has Go
				}
			}
			return true
		})
		refuse(goes, startsGoroutines, "starts a goroutine")
		refuse(mutex, hasMutexes, "has a mutex")
		refuse(slices.Contains(f.imports(), "github.com/libp2p/go-libp2p/p2p/net/swarm"), readsSwarm, "reads a libp2p swarm")
	}
}

// noPackages imports every package as an empty one: to know what the face's files
// use of each other, they are not needed.
type noPackages struct{}

func (noPackages) Import(p string) (*types.Package, error) {
	pkg := types.NewPackage(p, path.Base(p))
	pkg.MarkComplete()
	return pkg, nil
}

// The files of the face are in layers: none uses another that uses it, at any
// distance. A file uses another when it names something that the other declares
// at package level, a field or a method.
func TestFaceHasNoCircles(t *testing.T) {
	fset := token.NewFileSet()
	paths, err := filepath.Glob("*.go")
	mustNot(t, err)
	var files []*ast.File
	for _, p := range paths {
		if strings.HasSuffix(p, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, p, nil, parser.SkipObjectResolution)
		mustNot(t, err)
		files = append(files, f)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Importer: noPackages{}, Error: func(error) {}} // what the others declare is missing
	face, _ := conf.Check(module, fset, files, info)
	file := func(p token.Pos) string { return fset.Position(p).Filename }
	named := map[string]map[string]string{} // by the user, then by the used
	for id, o := range info.Uses {
		field, isVar := o.(*types.Var)
		method, isFunc := o.(*types.Func)
		shared := o.Parent() == face.Scope() ||
			isVar && field.IsField() ||
			isFunc && method.Signature().Recv() != nil
		from, to := file(id.Pos()), file(o.Pos())
		if o.Pkg() != face || !shared || from == to {
			continue
		}
		if named[from] == nil {
			named[from] = map[string]string{}
		}
		named[from][to] = id.Name
	}
	if len(named["new.go"]) < 5 {
		t.Fatalf("new.go uses %v: the files were not understood", named["new.go"])
	}
	total := 0
	for _, to := range named {
		total += len(to)
	}
	t.Logf("%d uses of one file by another", total)
	// Remove files that use none of the rest, or that none of the rest uses, until
	// only circles remain, and files between two circles.
	left := map[string]bool{}
	for _, p := range paths {
		left[p] = true
	}
	for taken := true; taken; {
		taken = false
		for p := range left {
			uses, used := false, false
			for other := range left {
				uses = uses || named[p][other] != ""
				used = used || named[other][p] != ""
			}
			if !uses || !used {
				delete(left, p)
				taken = true
			}
		}
	}
	for p := range left {
		for to, name := range named[p] {
			if left[to] {
				t.Errorf("%s uses %s of %s, and is used by it, directly or not", p, name, to)
			}
		}
	}
}

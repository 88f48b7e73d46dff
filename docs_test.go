package p2pnode

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/keeper"
	"github.com/go-p2pnode/p2pnode/internal/limits"
)

// defaultRow is a line of the table of defaults.
type defaultRow struct{ setting, value, why, option string }

// codeDefaults are the values of the table of defaults as the code has them.
func codeDefaults() map[string]string {
	c := defaultConfig()
	onOff := func(on bool) string {
		if on {
			return "on"
		}
		return "off"
	}
	noneIf := func(none bool) string {
		if none {
			return "none"
		}
		return "some"
	}
	words := func(list any) string {
		return strings.ReplaceAll(strings.Trim(fmt.Sprint(list), "[]"), " ", ", ")
	}
	listens := "elsewhere"
	list, _ := c.listenAddrs()
	if len(list) == 2*len(c.enabledTransports()) &&
		strings.HasPrefix(list[0].String(), "/ip4/0.0.0.0/tcp/0") && strings.HasPrefix(list[len(list)-1].String(), "/ip6/::/") {
		listens = "all interfaces, any free port"
	}
	withPeers := *c
	withPeers.mdns = true
	queue, _ := c.pubsubBytes()
	return map[string]string{
		"identity":                       map[bool]string{true: "fresh Ed25519 key"}[c.key == nil && c.identityFile == ""],
		"data directory":                 noneIf(c.dataDir == ""),
		"network":                        c.network,
		"transports":                     words(c.enabledTransports()),
		"security":                       words(c.security),
		"listen addresses":               listens,
		"transports for browsers":        onOff(c.browsers),
		"announced besides":              noneIf(len(c.announceExtra) == 0),
		"not announced":                  noneIf(len(c.noAnnounce) == 0),
		"dial timeout":                   map[bool]string{true: "15s, or 5s for private addresses"}[c.dialTimeout == 0],
		"certificate for WebSocket":      noneIf(!c.hasCertificate()),
		"pubsub messages that wait":      fmt.Sprintf("%d MiB in one queue, a 32nd of the memory in all", queue>>20),
		"provider records of others":     fmt.Sprintf("%d MiB, or a 32nd of the memory", leastRecords>>20),
		"value records of others":        fmt.Sprintf("%d MiB, or a 32nd of the memory", leastRecords>>20),
		"connection limits":              fmt.Sprintf("%d, %d", c.connLow, c.connHigh),
		"streams per peer":               fmt.Sprint(limits.Limits(c.limits).PeerStreams(c.ipfs)),
		"DHT mode":                       string(c.effectiveDHTMode()),
		"accelerated DHT client":         onOff(c.accelerated),
		"minimum of peers":               fmt.Sprint(withPeers.effectiveMinPeers()),
		"bootstrap retry":                fmt.Sprintf("%v for %vm, then %v to %v", keeper.QuickMax, keeper.QuickFor.Truncate(time.Minute).Minutes(), keeper.RoundMin, keeper.RoundMax),
		"profile":                        noneIf(c.profile == ""),
		"longest bootstrap pause":        c.settings().BootstrapPause.String(),
		"keep-alive":                     onOff(c.keepAlive > 0),
		"reprovide interval":             c.reprovideInterval.String(),
		"record lifetime":                c.recordLifetime.String(),
		"LAN discovery":                  onOff(c.mdns),
		"rendezvous":                     noneIf(len(c.rendezvous) == 0),
		"relay client":                   onOff(!c.noRelay),
		"bootstrap by name":              noneIf(len(c.bootstrapDNS) == 0),
		"ticket":                         noneIf(len(c.tickets) == 0),
		"relay reservations":             noneIf(len(c.autoRelays) == 0),
		"relay discovery":                onOff(c.findRelays),
		"relay service":                  onOff(c.relayService),
		"AutoNAT":                        onOff(c.autoNAT),
		"NAT traversal":                  onOff(c.autoNAT && c.findRelays && c.holePunching && c.portMapping),
		"hole punching":                  onOff(c.holePunching),
		"port mapping":                   onOff(c.portMapping),
		"pubsub messages":                "signed, flood-published", // see TestPubSubSigns and TestPitfall50
		"message size":                   fmt.Sprint(c.maxMessageSize),
		"topics over relays with limits": onOff(c.relayedPubSub > 0),
		"peer scores":                    onOff(c.scoring != nil),
		"wait for topic peers":           publishWait.String(),
		"wait for DHT peers":             tableWait.String(),
		"unread messages":                fmt.Sprint(subscriptionBuffer),
		"logging":                        noneIf(!c.logger.Enabled(context.Background(), slog.LevelError)),
		"metrics":                        noneIf(c.metrics == nil),
	}
}

// tableOf reads the table of defaults from a file: the lines with four cells
// after the one that starts with "Setting".
func tableOf(t *testing.T, file string) []defaultRow {
	t.Helper()
	f, err := os.Open(file)
	mustNot(t, err)
	defer f.Close()
	var rows []defaultRow
	inside := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.Trim(strings.TrimPrefix(lines.Text(), "//"), "| \t")
		cells := strings.Split(line, "|")
		for i := range cells {
			cells[i] = strings.Trim(cells[i], "` \t")
		}
		switch {
		case len(cells) != 4:
			inside = false
		case cells[0] == "Setting":
			inside = true
		case inside && !strings.HasPrefix(cells[0], "-"):
			rows = append(rows, defaultRow{cells[0], cells[1], cells[2], cells[3]})
		}
	}
	mustNot(t, lines.Err())
	return rows
}

// The table of defaults in docs/defaults.md and the list in doc.go match the code.
func TestDefaultsInTheDocsEqualTheCode(t *testing.T) {
	table, list := tableOf(t, "docs/defaults.md"), listOf(t, "doc.go")
	want := codeDefaults()
	if len(table) != len(want) || len(list) != len(want) {
		t.Errorf("docs/defaults.md has %d defaults, doc.go %d, the code %d", len(table), len(list), len(want))
	}
	for i, row := range table {
		if got, ok := want[row.setting]; !ok || got != row.value {
			t.Errorf("docs/defaults.md says that %s is %q, the code %q", row.setting, row.value, got)
		}
		if row.why == "" {
			t.Errorf("%s has no reason", row.setting)
		}
		item := row.setting + ": " + row.value + "; " + row.why
		if row.option != "–" {
			item += " ([" + row.option + "])"
		}
		if i >= len(list) || list[i] != item {
			t.Errorf("doc.go lacks at its place the item\n%s", item)
		}
	}
}

// listOf reads the items of the lists in a file's comments, each on one line.
func listOf(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	mustNot(t, err)
	var items []string
	inside := false
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, "\n")
		if item, ok := strings.CutPrefix(line, "//   - "); ok {
			items, inside = append(items, item), true
		} else if more, ok := strings.CutPrefix(line, "//     "); ok && inside {
			items[len(items)-1] += " " + more
		} else {
			inside = false
		}
	}
	return items
}

// The programs in README.md are those of examples, which run in the tests.
func TestProgramsInTheReadmeAreTheExamples(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	mustNot(t, err)
	blocks := strings.Split(string(readme), "```go\n")[1:]
	for i, file := range []string{"examples/hello/main.go", "examples/lan/main.go"} {
		source, err := os.ReadFile(file)
		mustNot(t, err)
		block, _, _ := strings.Cut(blocks[i], "```")
		for _, line := range []string{"\t", ""} { // indented as in a function, or not
			indented := line + strings.ReplaceAll(strings.TrimSuffix(block, "\n"), "\n", "\n"+line) + "\n"
			indented = strings.ReplaceAll(indented, "\n\t\n", "\n\n")
			if strings.Contains(string(source), indented) {
				block = ""
			}
		}
		if block != "" {
			t.Errorf("README.md has a program that is not in %s:\n%s", file, block)
		}
	}
}

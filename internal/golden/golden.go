// Package golden keeps the texts that users read in one file,
// testdata/messages.golden in the module's root, so that somebody reads every
// change of a text, and tests can match kinds instead of sentences. It is for
// tests only.
//
// After changing a text on purpose, make golden rewrites the file. By hand, one
// package after the other, the flag comes last:
//
//	go test -run Golden ./internal/diag -update
package golden

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/messages.golden instead of comparing with it")

const (
	head    = "# The texts that users meet. Tests write this file: see internal/golden.\n"
	section = "## "
	indent  = "    "
)

// Text is a text under a name that says where it comes from.
type Text struct{ Name, Text string }

// Of returns the text of an error; for nil it is empty, which Check refuses.
func Of(name string, err error) Text {
	if err == nil {
		return Text{Name: name}
	}
	return Text{name, err.Error()}
}

// Check compares the texts with a section of the file, or replaces the section
// with -update. Several texts may share a name; their order counts. Each section
// belongs to one test. replace holds pairs of what differs from run to run, such
// as the IDs of keys made for the test or the paths of its files, and its
// replacement.
func Check(tb testing.TB, name string, texts []Text, replace ...string) {
	tb.Helper()
	texts = slices.Clone(texts)
	for i, t := range texts {
		if t.Text == "" {
			tb.Fatalf("the case %q has no text", t.Name)
		}
		for p := range slices.Chunk(replace, 2) {
			texts[i].Text = strings.ReplaceAll(texts[i].Text, p[0], p[1])
		}
	}
	file, err := path()
	if err != nil {
		tb.Fatal(err)
	}
	if len(texts) == 0 {
		tb.Fatalf("the section %q has no texts", name)
	}
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		tb.Fatal(err)
	}
	want, got := parse(old)[name], format(texts)
	if want == got {
		return
	}
	if *update {
		if err := os.WriteFile(file, replaced(old, name, got), 0o644); err != nil {
			tb.Fatal(err)
		}
		return
	}
	tb.Errorf("the section %q of %s differs; if that is intended, run the test with -update and read the diff", name, filepath.Base(file))
	for _, line := range diff(want, got) {
		tb.Log(line)
	}
}

// path returns the path of the file, found from the directory of the package
// under test.
func path() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, serr := os.Stat(filepath.Join(dir, "go.mod")); serr == nil {
			file := filepath.Join(dir, "testdata", "messages.golden")
			return file, os.MkdirAll(filepath.Dir(file), 0o755)
		}
		above := filepath.Dir(dir)
		if above == dir {
			err = errors.New("no go.mod above the test")
		}
		dir = above
	}
	return "", err
}

func format(texts []Text) string {
	var b strings.Builder
	for _, t := range texts {
		fmt.Fprintf(&b, "%s\n%s%s\n", t.Name, indent, strings.ReplaceAll(strings.TrimSuffix(t.Text, "\n"), "\n", "\n"+indent))
	}
	return b.String()
}

// parse splits the file into sections.
func parse(file []byte) map[string]string {
	sections := make(map[string]string)
	for i, s := range strings.Split("\n"+string(file), "\n"+section) {
		if name, body, ok := strings.Cut(s, "\n\n"); ok && i > 0 {
			sections[name] = strings.TrimRight(body, "\n") + "\n"
		}
	}
	return sections
}

// replaced is the file with another section; the sections are sorted by name.
func replaced(file []byte, name, body string) []byte {
	sections := parse(file)
	sections[name] = body
	var names []string
	for n := range sections {
		names = append(names, n)
	}
	slices.SortFunc(names, cmp.Compare[string])
	var b bytes.Buffer
	b.WriteString(head)
	for _, n := range names {
		fmt.Fprintf(&b, "\n%s%s\n\n%s", section, n, sections[n])
	}
	return b.Bytes()
}

// diff lists the lines that only one of the two has.
func diff(want, got string) []string {
	var out []string
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for _, l := range w {
		if !slices.Contains(g, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range g {
		if !slices.Contains(w, l) {
			out = append(out, "+ "+l)
		}
	}
	if out == nil {
		out = append(out, "the same lines in another order")
	}
	return out
}

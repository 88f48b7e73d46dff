package golden

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSectionsAreReplacedOneByOne(t *testing.T) {
	one := format([]Text{{"WithA", "wrong"}, {"WithA", "two\nlines\n"}})
	two := format([]Text{{"WithB", "more"}})
	file := replaced(replaced(nil, "one", one), "another", two)
	if got := parse(file); got["one"] != one || got["another"] != two || len(got) != 2 {
		t.Errorf("parsed %q out of\n%s", got, file)
	}
	file = replaced(file, "one", two)
	if got := parse(file); got["one"] != two || got["another"] != two || len(got) != 2 {
		t.Errorf("after a replacement: %q out of\n%s", got, file)
	}
}

// Every section belongs to a test that exists.
func TestEverySectionHasATest(t *testing.T) {
	file, err := path()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	root := filepath.Dir(filepath.Dir(file))
	err = filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(p, "_test.go") {
			return err
		}
		b, err := os.ReadFile(p)
		if bytes.Contains(b, []byte("internal/golden\"")) {
			tests.Write(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sections := parse(text)
	if len(sections) < 10 {
		t.Errorf("only %d sections", len(sections))
	}
	for name := range sections {
		if !strings.Contains(tests.String(), fmt.Sprintf("(t, %q, ", name)) {
			t.Errorf("no test has the section %q", name)
		}
	}
}

func TestDiff(t *testing.T) {
	if got := diff("a\nb", "b\nc"); !slices.Equal(got, []string{"- a", "+ c"}) {
		t.Errorf("%q", got)
	}
	if got := diff("a\nb", "b\na"); len(got) != 1 {
		t.Errorf("another order: %q", got)
	}
}

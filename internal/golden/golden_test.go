package golden

import (
	"slices"
	"testing"
)

func TestSectionsAreReplacedOneByOne(t *testing.T) {
	one := format([]Text{{"WithA", "wrong"}, {"WithA", "two\nlines\n"}})
	two := format([]Text{{"WithB", "more"}})
	file := replace(replace(nil, "one", one), "another", two)
	if got := parse(file); got["one"] != one || got["another"] != two || len(got) != 2 {
		t.Errorf("parsed %q out of\n%s", got, file)
	}
	file = replace(file, "one", two)
	if got := parse(file); got["one"] != two || got["another"] != two || len(got) != 2 {
		t.Errorf("after a replacement: %q out of\n%s", got, file)
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

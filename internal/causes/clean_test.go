package causes

import (
	"errors"
	"io"
	"testing"
)

func TestAttackEscapeSequencesAreCleaned(t *testing.T) {
	for text, want := range map[string]string{
		"kubo/0.39 (é)":        "kubo/0.39 (é)",
		"\x1b[2Jgone":          "�[2Jgone",
		"a\u202eb\u200bc\x9bd": "a�b�c�d",
		"two\nlines\ttab":      "two�lines�tab",
	} {
		if got := Clean(text); got != want {
			t.Errorf("%q became %q", text, got)
		}
	}
	if err := Cleaned(io.EOF); !errors.Is(err, io.EOF) {
		t.Errorf("a clean error became %#v", err)
	}
	err := Cleaned(errors.Join(io.EOF, errors.New("\x1b]0;title\a")))
	if err.Error() != "EOF\n�]0;title�" || !errors.Is(err, io.EOF) {
		t.Errorf("got %q", err)
	}
	if Cleaned(nil) != nil {
		t.Error("nil became an error")
	}
}

package causes

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean returns a text that others chose, with U+FFFD in place of what is not
// text in one line: control characters, which terminals obey, and invisible
// ones, which change how the rest reads.
func Clean(text string) string {
	if !strings.ContainsFunc(text, unsafe) && utf8.ValidString(text) {
		return text
	}
	return strings.Map(func(r rune) rune {
		if unsafe(r) {
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(text, string(utf8.RuneError)))
}

func unsafe(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)
}

// Cleaned returns an error whose lines are clean, which wraps err if its own are
// not.
func Cleaned(err error) error {
	if err == nil {
		return nil
	}
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		lines[i] = Clean(line)
	}
	if text := strings.Join(lines, "\n"); text != err.Error() {
		return &cleaned{err, text}
	}
	return err
}

type cleaned struct {
	err  error
	text string
}

func (e *cleaned) Error() string { return e.text }
func (e *cleaned) Unwrap() error { return e.err }

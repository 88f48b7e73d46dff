package examples_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"

	"github.com/go-p2pnode/p2pnode/internal/raced"
)

var dir string // of the programs, once there are any

// build builds all programs, as one file with a name for each: to link each by itself
// takes ten times as long. With the tag leakcheck, those that use internal/cli exit
// with code 3 if they leave a goroutine behind.
var build = sync.OnceValue(func() error {
	var err error
	if dir, err = os.MkdirTemp("", "p2pnode-examples-"); err != nil {
		return err
	}
	names, overlay, err := merge(dir)
	if err != nil {
		return err
	}
	all := filepath.Join(dir, "all"+exe())
	args := []string{"build", "-tags=leakcheck", "-buildvcs=false", "-ldflags=-s -w", "-overlay=" + overlay, "-o", all}
	if raced.Detector {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "./all")...).CombinedOutput(); err != nil {
		return fmt.Errorf("go %q: %w\n%s", args, err, out)
	}
	for _, name := range names {
		if err := os.Link(all, filepath.Join(dir, name+exe())); err != nil {
			return err
		}
	}
	// The results of a test are cached until a file or directory changes that it
	// has read. What the compiler reads does not count, so that this looks at every
	// directory of the module.
	return filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		return err
	})
})

var (
	packageMain = regexp.MustCompile(`(?m)^package main\r?$`)
	funcMain    = regexp.MustCompile(`(?m)^func main\(\)`)
)

// merge makes an overlay for the go command, in which the programs are packages, with
// Main for main, below a program in the directory all that calls the one whose name it
// has been started by. It returns the names of the programs.
func merge(dir string) (names []string, overlay string, err error) {
	here, err := os.Getwd()
	if err != nil {
		return nil, "", err
	}
	replace := make(map[string]string)
	add := func(path, text string) error {
		file := filepath.Join(dir, fmt.Sprint(len(replace), ".go"))
		replace[filepath.Join(here, "all", path)] = file
		return os.WriteFile(file, []byte(text), 0o600)
	}
	files, err := filepath.Glob("*/*.go")
	if err != nil {
		return nil, "", err
	}
	var imports, calls strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, "", err
		}
		name := filepath.Dir(file)
		part := packageMain.ReplaceAllString(string(text), "package "+name)
		if main := funcMain.ReplaceAllString(part, "func Main()"); main != part {
			part, names = main, append(names, name)
			fmt.Fprintf(&imports, "\t%q\n", "github.com/go-p2pnode/p2pnode/examples/all/"+name)
			fmt.Fprintf(&calls, "\tcase %q:\n\t\t%s.Main()\n", name+exe(), name)
		}
		if err := add(file, part); err != nil {
			return nil, "", err
		}
	}
	err = add("main.go", "package main\n\nimport (\n\t\"os\"\n\t\"path/filepath\"\n\n"+imports.String()+
		")\n\nfunc main() {\n\tswitch filepath.Base(os.Args[0]) {\n"+calls.String()+"\tdefault:\n\t\tpanic(os.Args[0])\n\t}\n}\n")
	if err != nil {
		return nil, "", err
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return nil, "", err
	}
	overlay = filepath.Join(dir, "overlay.json")
	return names, overlay, os.WriteFile(overlay, text, 0o600)
}

// exe is how the names of programs end.
func exe() string {
	if runtime.GOOS == "windows" {
		return ".exe"
	}
	return ""
}

// Package spec reads the short texts that name a detector or a metric and its files, such as "fid:inception.pth".
package spec

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/hub"
)

// Kind is one kind of detector or metric.
type Kind struct {
	Name  string // such as "fid"
	Usage string // how it is written, such as "fid:WEIGHTS"
	What  string // what it is, in a few words
	// AtLeast and AtMost say how many files it takes.
	AtLeast, AtMost int
}

// Error is a text that names none of the kinds, as opposed to one whose files cannot be used.
type Error struct{ message string }

// Error is one sentence.
func (e *Error) Error() string { return e.message }

// Locate returns the text of a detector or a metric with files of the hub in place of their names: what is not on the disk
// and is written as OWNER/NAME, a model, or OWNER/NAME/FILE, one file of it, is what find says. A name in a folder that
// exists is a misspelt path, and left to whoever opens it.
func Locate(text string, find func(id hub.ID, file string) (path string, err error)) (string, error) {
	kind, rest, ok := strings.Cut(text, ":")
	if !ok {
		return text, nil
	}
	names := strings.Split(rest, ",")
	for i, name := range names {
		id, file, ok := hub.ParseFile(name)
		if !ok || exists(name) || exists(filepath.Dir(name)) {
			continue
		}
		path, err := find(id, file)
		if err != nil {
			return "", fmt.Errorf("%s: there is no %s here; on the hub, %w", kind, name, err)
		}
		if strings.Contains(path, ",") {
			return "", fmt.Errorf("%s: the path %s of %s has a comma, which separates files; move the cache by HF_HUB_CACHE", kind, path, name)
		}
		names[i] = path
	}
	return kind + ":" + strings.Join(names, ","), nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Split reads NAME or NAME:FILE,FILE. A file's name may hold colons, but no commas. what says what is named, for the
// error, which is an [*Error].
func Split(what, text string, kinds []Kind) (name string, files []string, err error) {
	name, rest, _ := strings.Cut(text, ":")
	i := slices.IndexFunc(kinds, func(k Kind) bool { return k.Name == name })
	if i < 0 {
		names := make([]string, len(kinds))
		for i, k := range kinds {
			names[i] = k.Name
		}
		return "", nil, &Error{fmt.Sprintf("there is no %s %q; use one of %s", what, name, strings.Join(names, ", "))}
	}
	if rest != "" {
		files = strings.Split(rest, ",")
	}
	if n := len(files); n < kinds[i].AtLeast || n > kinds[i].AtMost || slices.Contains(files, "") {
		return "", nil, &Error{fmt.Sprintf("the %s %q is not written as %s", what, text, kinds[i].Usage)}
	}
	return name, files, nil
}

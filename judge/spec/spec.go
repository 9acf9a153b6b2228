// Package spec reads the short texts that name a detector or a metric and its files, such as "fid:inception.pth".
package spec

import (
	"fmt"
	"slices"
	"strings"
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

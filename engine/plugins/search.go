// Package plugins finds, checks and installs XLA plugins: shared libraries with the PJRT interface, which hold a compiler
// and the runtime of one kind of device. Nothing here loads one; package engine does.
package plugins

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Variable names the environment variable that, if set, gives the one plugin to use.
const Variable = "RESALIGN_XLA_PLUGIN"

// Place is where plugins were looked for, and what was found.
type Place struct {
	What  string   `json:"what"`  // what kind of place it is
	Path  string   `json:"path"`  // the folder; for Variable, the file
	Found []string `json:"found"` // files that are named as plugins are, the preferred first
}

// Search looks for plugins. If Variable is set, its file is the only one; otherwise it looks in the user's folder, then in
// the folder plugins beside the program. Files are not opened.
func Search() []Place {
	program, err := os.Executable()
	if err == nil {
		if real, err := filepath.EvalSymlinks(program); err == nil {
			program = real
		}
	}
	return search(os.Getenv, program)
}

func search(env func(string) string, program string) []Place {
	if path := env(Variable); path != "" {
		return []Place{{What: "environment variable " + Variable, Path: path, Found: []string{path}}}
	}
	var places []Place
	if folder, err := userFolder(env); err == nil {
		places = append(places, Place{What: "plugins of this user", Path: folder, Found: list(folder)})
	}
	if program != "" {
		folder := filepath.Join(filepath.Dir(program), "plugins")
		places = append(places, Place{What: "plugins beside the program", Path: folder, Found: list(folder)})
	}
	return places
}

// UserFolder is the folder of the user's plugins: resalign/plugins in $XDG_DATA_HOME, by default ~/.local/share.
func UserFolder() (string, error) { return userFolder(os.Getenv) }

func userFolder(env func(string) string) (string, error) {
	data := env("XDG_DATA_HOME")
	if !filepath.IsAbs(data) { // the XDG base directory specification has relative ones ignored
		home := env("HOME")
		if !filepath.IsAbs(home) {
			return "", fmt.Errorf("there is no folder for plugins: set XDG_DATA_HOME or HOME to an absolute path")
		}
		data = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(data, "resalign", "plugins"), nil
}

// list returns the files in a folder and the folders in it that are named as plugins are: GPUs first, processors last.
func list(folder string) []string {
	found := []string{}
	for _, pattern := range []string{"*.so", "*/*.so"} {
		names, err := filepath.Glob(filepath.Join(literal(folder), pattern))
		if err != nil {
			continue // the only error is a bad pattern, and literal leaves none
		}
		for _, name := range names {
			if strings.Contains(strings.ToLower(filepath.Base(name)), "plugin") {
				found = append(found, name)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b string) int {
		return cmp.Or(cmp.Compare(preference(a), preference(b)), cmp.Compare(a, b))
	})
	return found
}

// literal is a path in which no character is a wildcard of filepath.Glob.
func literal(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

// Platform guesses the kind of device from the name of a plugin's file: cuda, rocm, tpu, cpu, or other.
func Platform(path string) string {
	name := strings.ToLower(filepath.Base(path))
	for _, platform := range []string{"cuda", "rocm", "tpu", "cpu"} {
		if strings.Contains(name, platform) {
			return platform
		}
	}
	return "other"
}

func preference(path string) int {
	return slices.Index([]string{"cuda", "rocm", "tpu", "other", "cpu"}, Platform(path))
}

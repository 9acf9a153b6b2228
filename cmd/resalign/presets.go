package main

import (
	"embed"
	"io/fs"
	"path"
	"strings"
)

//go:embed presets/*.toml
var presetFiles embed.FS

// presets are the built-in recipes by name. Each is a whole recipe with comments: init writes it out as it is, and a
// recipe that names it as its preset starts from it.
func presets() map[string][]byte {
	files, err := fs.Glob(presetFiles, "presets/*.toml")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	out := map[string][]byte{}
	for _, file := range files {
		content, err := presetFiles.ReadFile(file)
		if err != nil {
			panic(err) // it was listed in the same program
		}
		out[strings.TrimSuffix(path.Base(file), ".toml")] = content
	}
	return out
}

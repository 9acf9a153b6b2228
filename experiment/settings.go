package experiment

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/unlearn"
)

const (
	settingsFile = "experiment.json"
	stagesFile   = "stages.json"
)

// claim makes dir the folder of an experiment with the given settings, or goes on in it. A folder that holds something
// else, or an experiment with other settings, is refused: what is there is neither overwritten nor mixed with what comes.
func claim(job, dir string, settings any) error {
	want, err := json.MarshalIndent(settings, "", "  ")
	if err != nil {
		return fmt.Errorf("%s: %w", job, err)
	}
	want = append(want, '\n')
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return fmt.Errorf("%s: %s is a file; name a folder", job, dir)
	}
	path := filepath.Join(dir, settingsFile)
	have, err := os.ReadFile(path)
	switch {
	case err == nil && bytes.Equal(have, want):
		return nil
	case err == nil:
		return fmt.Errorf("%s: %s was begun with other settings, see %s; give those again or name another folder", job, dir, path)
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s: %w", job, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", job, err)
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), ".") { // a session killed at its very beginning leaves hidden files at most
			return fmt.Errorf("%s: the folder %s is not empty and holds no %s; name a new one", job, dir, settingsFile)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("%s: %w", job, err)
	}
	if err := files.WriteBytes(path, want); err != nil {
		return fmt.Errorf("%s: %w", job, err)
	}
	return nil
}

// sameRecipe tells whether a finished run was made with the recipe. Paths do not count: the experiment's folder may have
// been moved, or be named from another place.
func sameRecipe(run string, r unlearn.Recipe) (bool, error) {
	text, err := os.ReadFile(filepath.Join(run, "recipe.toml"))
	if err != nil {
		return false, fmt.Errorf("demo: %w", err)
	}
	stored := unlearn.Defaults()
	if err := recipe.LoadBytes(filepath.Join(run, "recipe.toml"), text, recipe.Layers{}, &stored); err != nil {
		return false, err
	}
	a, err := recipe.Encode(withoutPaths(stored))
	if err != nil {
		return false, err
	}
	b, err := recipe.Encode(withoutPaths(r))
	return bytes.Equal(a, b), err
}

// withoutPaths is the recipe with the last element of each path only.
func withoutPaths(r unlearn.Recipe) unlearn.Recipe {
	r.Model, r.Out = filepath.Base(r.Model), filepath.Base(r.Out)
	sets := map[string]unlearn.Dataset{}
	for name, set := range r.Data {
		if set.Folder != "" {
			set.Folder = filepath.Base(set.Folder)
		}
		parts := make([]unlearn.Part, len(set.Parts))
		for i, part := range set.Parts {
			part.Folder = filepath.Base(part.Folder)
			parts[i] = part
		}
		set.Parts = parts
		sets[name] = set
	}
	r.Data = sets
	return r
}

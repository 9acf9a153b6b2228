// Package history finds the run folders below a folder and says what they hold: unlearning, fine-tuning, audits and
// comparisons, finished or not. It only reads.
package history

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Files that mark a folder, and others inside it.
const (
	runFile     = "run.json"
	auditFile   = "audit.json"
	resultsFile = "results.json"
	recipeFile  = "recipe.toml"
	eventsFile  = "events.jsonl"
)

// Kinds of folders.
const (
	Training   = "training" // of a kind that its recipe does not tell
	Unlearn    = "unlearn"
	Finetune   = "finetune"
	Audit      = "audit"
	Experiment = "experiment" // demo, study or compare
)

// Run is what a run folder holds.
type Run struct {
	Path     string     `json:"path"`
	Kind     string     `json:"kind"`
	Method   string     `json:"method,omitempty"`
	Program  string     `json:"program,omitempty"`
	Engine   string     `json:"engine,omitempty"`
	Command  []string   `json:"command,omitempty"` // the latest command line that worked on it
	Started  *time.Time `json:"started,omitempty"`
	Updated  time.Time  `json:"updated"` // the last change of its log or its results
	Finished *time.Time `json:"finished,omitempty"`
	// Done is the last step in the log, the number of an audit's cells whose pictures are all there, or that of the rows of
	// an experiment's results; Total is how many the recipe asks for, 0 where that is not known.
	Done  int `json:"done"`
	Total int `json:"total"`
	// Figures are what the last step logged and, for results, the rates of all rows.
	Figures []Figure `json:"figures"`
	// Problem says in a sentence what is damaged; what could be read is there all the same.
	Problem string `json:"problem,omitempty"`
}

// Figure is a number with its name.
type Figure struct {
	Name  string `json:"name"`
	Value Number `json:"value"`
}

// Limits of a search: what lies deeper, or beyond so many folders, is not looked at.
const (
	maxDepth   = 8
	maxFolders = 50_000
)

// List finds the run folders at and below a folder, in the order of their paths. Links are not followed, nor are folders
// whose names begin with a dot; what is inside a training's folder belongs to it. A damaged run is listed with its
// problem.
func List(folder string) ([]Run, error) {
	info, err := os.Stat(folder)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be searched for runs: %w; check its name", folder, err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is a file; name a folder of runs", folder)
	}
	out, visited := []Run{}, 0
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if path == folder {
				return err
			}
			return fs.SkipDir // a folder that may not be read
		}
		if !entry.IsDir() {
			return nil
		}
		if visited++; visited > maxFolders {
			return fmt.Errorf("%s holds more than %d folders; name one nearer to the runs", folder, maxFolders)
		}
		relative, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		if path != folder && strings.HasPrefix(entry.Name(), ".") || strings.Count(relative, string(filepath.Separator)) >= maxDepth {
			return fs.SkipDir
		}
		run, ok := Read(path)
		if !ok {
			return nil
		}
		out = append(out, run)
		if isFile(filepath.Join(path, runFile)) {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("searching for runs: %w", err)
	}
	slices.SortStableFunc(out, func(a, b Run) int { return cmp.Compare(a.Path, b.Path) })
	return out, nil
}

// Read says what a run folder holds. ok is false for any other folder.
func Read(path string) (run Run, ok bool) {
	run = Run{Path: path, Figures: []Figure{}}
	var err error
	switch {
	case isFile(filepath.Join(path, runFile)):
		err = run.readTraining()
	case isFile(filepath.Join(path, auditFile)):
		run.Kind = Audit
		err = run.readAudit()
	case isFile(filepath.Join(path, resultsFile)):
		run.Kind = Experiment
		err = run.readResults()
	default:
		return run, false
	}
	if err != nil {
		run.Problem = err.Error()
	}
	return run, true
}

// touched takes the time of the last change of a file in the folder.
func (r *Run) touched(name string) {
	if info, err := os.Stat(filepath.Join(r.Path, name)); err == nil && info.ModTime().After(r.Updated) {
		r.Updated = info.ModTime().UTC().Truncate(time.Second)
	}
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// maxFile bounds the files that are read whole; those of large audits have some tens of megabytes.
const maxFile = 1 << 30

// small reads a file of the folder, if it is not absurdly large.
func (r *Run) small(name string, limit int64) ([]byte, error) {
	path := filepath.Join(r.Path, name)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s is missing", path)
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > limit:
		return nil, fmt.Errorf("%s is not a plain file of at most %d bytes", path, limit)
	}
	return os.ReadFile(path)
}

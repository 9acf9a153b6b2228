package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/history"
	"github.com/resalign/resalign/train"
)

// loggedRun makes a folder of an unfinished run of unlearning.
func loggedRun(t *testing.T, path string, loss float64) {
	t.Helper()
	run, err := train.CreateRun(path, []byte("method = \"esd\"\nseed = 1\n[outer]\nsteps = 4\n"), train.Session{Program: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	log, err := train.OpenEventLog(run.EventsPath(), -1)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if err := log.Append(train.Event{Step: 1, Kind: "step", Fields: map[string]any{"harmful_loss": loss, "seconds": 1.5}}); err != nil {
		t.Fatal(err)
	}
}

func TestRuns(t *testing.T) {
	dir := t.TempDir()
	loggedRun(t, filepath.Join(dir, "one"), .25)
	loggedRun(t, filepath.Join(dir, "two\x1b[31m"), .5)
	out := succeed(t, "runs", dir)
	for _, part := range []string{"unlearn esd", "1/4", "unfinished", "harmful_loss 0.25", "harmful_loss 0.5"} {
		if !strings.Contains(out, part) {
			t.Errorf("no %q in\n%s", part, out)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Error("a folder's name sent a code to the terminal")
	}
	found := decode[struct{ Runs []history.Run }](t, succeed(t, "runs", dir, "--json"))
	if len(found.Runs) != 2 || found.Runs[0].Total != 4 || found.Runs[0].Finished != nil {
		t.Errorf("%+v", found)
	}
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two\x1b[31m")
	if out := succeed(t, "runs", "compare", one, two); !strings.Contains(out, "the same") || !strings.Contains(out, "harmful_loss") {
		t.Error(out)
	}
	write(t, filepath.Join(two, "recipe.toml"), "method = \"ascent\"\nseed = 1\n[outer]\nsteps = 4\n")
	c := decode[history.Comparison](t, succeed(t, "runs", "compare", one, two, "--json"))
	if len(c.Recipe) != 1 || c.Recipe[0] != (history.Difference{Key: "method", A: `"esd"`, B: `"ascent"`}) {
		t.Errorf("%+v", c.Recipe)
	}
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out := succeed(t, "runs", filepath.Join(dir, "empty")); !strings.Contains(out, "no runs below") {
		t.Error(out)
	}
	fail(t, exitFailed, []string{"runs", filepath.Join(dir, "none")}, "cannot be searched for runs")
	fail(t, exitFailed, []string{"runs", "compare", one, dir}, "is not a run folder")
	fail(t, exitUsage, []string{"runs", "a", "b"}, `"b" is one argument too many`)
	fail(t, exitUsage, []string{"runs", "compare", "a"}, "give the folders of two runs")
}

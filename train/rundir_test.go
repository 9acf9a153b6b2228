package train

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	recipe  = []byte("steps = 160\nseed = 1\n")
	session = Session{Program: "v1.0", Engine: "go, 2 threads", Seeds: map[string]uint64{"run": 1<<64 - 1}, Command: []string{"resalign", "unlearn"}}
)

func mustCreate(t *testing.T, path string) *RunDir {
	t.Helper()
	run, err := CreateRun(path, recipe, session)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { run.Close() })
	return run
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want one with %q", err, want)
	}
}

func TestRunDirLayout(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runs", "first")
	run := mustCreate(t, path)
	if got := names(t, path); !slices.Equal(got, []string{"checkpoints", "events.jsonl", "lock", "previews", "recipe.toml", "run.json"}) {
		t.Errorf("files %v", got)
	}
	if got := mustRead(t, filepath.Join(path, "recipe.toml")); got != string(recipe) {
		t.Errorf("recipe %q", got)
	}
	info, err := readInfo(path)
	if err != nil {
		t.Fatal(err)
	}
	s := info.Sessions[0]
	if len(info.Sessions) != 1 || info.Finished != nil || s.Seeds["run"] != 1<<64-1 || s.Go != runtime.Version() || time.Since(s.Started) > time.Minute {
		t.Errorf("%+v", info)
	}
	mustOpenLog(t, run.EventsPath(), -1)
	mustSave(t, mustOpen(t, run.CheckpointsPath(), 1), 1)
	if filepath.Dir(run.PreviewsPath()) != run.Path() {
		t.Errorf("previews in %s", run.PreviewsPath())
	}
}

func TestRunDirIsNeverOverwritten(t *testing.T) {
	path := t.TempDir()
	run := mustCreate(t, path)
	_, err := CreateRun(path, recipe, session)
	wantError(t, err, "holds an unfinished run; resume it")
	if err := run.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := run.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = CreateRun(path, recipe, session)
	wantError(t, err, "holds a finished run; resume it")

	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "thesis.tex"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	_, err = CreateRun(other, recipe, session)
	wantError(t, err, "not empty (it holds thesis.tex)")
	if got := names(t, other); !slices.Equal(got, []string{"thesis.tex"}) {
		t.Errorf("a refused folder now holds %v", got)
	}
	mine := t.TempDir()
	if err := os.WriteFile(filepath.Join(mine, recipeFile), []byte("my own"), 0o666); err != nil {
		t.Fatal(err)
	}
	_, err = CreateRun(mine, recipe, session)
	wantError(t, err, "it holds recipe.toml")
	if err := os.Mkdir(filepath.Join(other, "sub"), 0o777); err != nil {
		t.Fatal(err)
	}
	_, err = CreateRun(filepath.Join(other, "thesis.tex"), recipe, session)
	wantError(t, err, "cannot use")
}

func TestResumeRun(t *testing.T) {
	path := t.TempDir()
	_, err := ResumeRun(path, nil, session)
	wantError(t, err, "holds no run")
	if got := names(t, path); len(got) != 0 {
		t.Errorf("a refused folder now holds %v", got)
	}

	run := mustCreate(t, path)
	_, err = ResumeRun(path, nil, session)
	wantError(t, err, "in use by process")
	if !errors.Is(err, errLocked) {
		t.Errorf("error %v", err)
	}
	if err := run.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = ResumeRun(path, []byte("steps = 160\nseed = 2\n"), session)
	wantError(t, err, "line 2 differs")
	for i, given := range [][]byte{recipe, nil} {
		again, err := ResumeRun(path, given, session)
		if err != nil {
			t.Fatal(err)
		}
		if string(again.Recipe()) != string(recipe) || len(again.Info().Sessions) != i+2 || again.Info().Finished != nil {
			t.Errorf("%q %+v", again.Recipe(), again.Info())
		}
		if given == nil {
			if err := again.Finish(); err != nil {
				t.Fatal(err)
			}
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := readInfo(path); err != nil || info.Finished == nil {
		t.Errorf("finished run has %+v, %v", info, err)
	}
	if err := os.WriteFile(filepath.Join(path, runFile), []byte("{"), 0o666); err != nil {
		t.Fatal(err)
	}
	_, err = ResumeRun(path, nil, session)
	wantError(t, err, "run.json is damaged")
	if err := os.Remove(filepath.Join(path, recipeFile)); err != nil {
		t.Fatal(err)
	}
	_, err = ResumeRun(path, nil, session)
	wantError(t, err, "recipe.toml")
}

// TestCreateRunSurvivesFailureAtEveryOperation: after a kill at any moment the folder can be created again with the
// same recipe, or resumed.
func TestCreateRunSurvivesFailureAtEveryOperation(t *testing.T) {
	for _, half := range []bool{false, true} {
		for failAt := 1; ; failAt++ {
			path := filepath.Join(t.TempDir(), "run")
			files := &faulty{failAt: failAt, half: half}
			run, err := createRun(files, path, recipe, session)
			if err == nil {
				run.Close()
				if failAt < 10 {
					t.Errorf("only %d operations", failAt-1)
				}
				break
			}
			if !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			run, err = CreateRun(path, recipe, session)
			if err != nil && strings.Contains(err.Error(), "unfinished run") {
				run, err = ResumeRun(path, recipe, session)
			}
			if err != nil {
				t.Errorf("half=%v operation %d: %v", half, failAt, err)
				continue
			}
			if mustRead(t, filepath.Join(path, recipeFile)) != string(recipe) {
				t.Error("recipe differs")
			}
			mustOpenLog(t, run.EventsPath(), -1)
			run.Close()
		}
	}
}

func TestFinishSurvivesFailureAtEveryOperation(t *testing.T) {
	for failAt := 1; failAt <= 4; failAt++ {
		path := t.TempDir()
		run := mustCreate(t, path)
		run.files = &faulty{failAt: failAt, half: true}
		if err := run.Finish(); !errors.Is(err, errKilled) {
			t.Errorf("operation %d: error %v", failAt, err)
		}
		run.Close()
		again, err := ResumeRun(path, recipe, session)
		if err != nil {
			t.Errorf("operation %d: %v", failAt, err)
			continue
		}
		again.Close()
	}
}

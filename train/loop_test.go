package train

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/weights"
)

// walk is a job whose place after n steps depends on every one of them: x ← 3x/2 + step.
type walk struct {
	x     float32
	fail  int // the step, counted from 1, that fails; 0: none
	steps []int
}

type walkState struct{ Visited int }

var errStep = errors.New("no such luck")

func (w *walk) loop(run *RunDir, steps, every int) *Loop {
	return &Loop{
		Steps: steps, Run: run, CheckpointEvery: every, Keep: 2,
		Step: func(_ context.Context, step int) (map[string]any, error) {
			if step+1 == w.fail {
				return nil, errStep
			}
			w.x = 1.5*w.x + float32(step)
			w.steps = append(w.steps, step)
			return map[string]any{"x": w.x}, nil
		},
		Save: func() ([]weights.Deferred, any, error) {
			return weights.DeferAll([]*weights.Tensor{weights.NewFloat32("x", nil, []float32{w.x})}), walkState{len(w.steps)}, nil
		},
		Restore: func(_ int, tensors weights.Source, state func(any) error) error {
			var s walkState
			if err := state(&s); err != nil {
				return err
			}
			x, err := tensors.Tensor("x")
			if err != nil {
				return err
			}
			values, err := x.Float32()
			if err != nil {
				return err
			}
			w.x = values[0]
			return nil
		},
	}
}

func place(steps int) float32 {
	var w walk
	if err := w.loop(nil, steps, 0).Do(context.Background()); err != nil {
		panic(err)
	}
	return w.x
}

func mustResume(t *testing.T, path string) *RunDir {
	t.Helper()
	run, err := ResumeRun(path, recipe, session)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { run.Close() })
	return run
}

// loggedSteps reads the log, and checks that what it says of each step is what an uninterrupted run says.
func loggedSteps(t *testing.T, run *RunDir) []int {
	t.Helper()
	events, err := ReadEvents(run.EventsPath())
	if err != nil {
		t.Fatal(err)
	}
	var steps []int
	for _, e := range events {
		if x, ok := e.Number("x"); !ok || float32(x) != place(e.Step) {
			t.Errorf("the log says x = %v after step %d, which is %v", x, e.Step, place(e.Step))
		}
		if s, ok := e.Number("seconds"); e.Kind != "step" || !ok || s < 0 {
			t.Errorf("event %+v", e)
		}
		steps = append(steps, e.Step)
	}
	return steps
}

func upTo(n int) []int {
	var out []int
	for i := range n {
		out = append(out, i+1)
	}
	return out
}

func TestLoopWithoutARunFolder(t *testing.T) {
	var w walk
	var events []Event
	var after []int
	l := w.loop(nil, 4, 1)
	l.OnEvent = func(e Event) { events = append(events, e) }
	l.After = func(_ context.Context, done int) error { after = append(after, done); return nil }
	l.Save = func() ([]weights.Deferred, any, error) {
		return nil, nil, errors.New("nothing is saved without a folder")
	}
	if err := l.Do(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(w.steps, []int{0, 1, 2, 3}) || !slices.Equal(after, upTo(4)) || len(events) != 4 {
		t.Errorf("steps %v, after %v, %d events", w.steps, after, len(events))
	}
	l.After = func(context.Context, int) error { return errStep }
	if err := l.Do(context.Background()); !errors.Is(err, errStep) {
		t.Errorf("a failing After gave %v", err)
	}
}

func TestLoopSavesEveryNStepsAndAtTheEnd(t *testing.T) {
	run := mustCreate(t, filepath.Join(t.TempDir(), "run"))
	var w walk
	l := w.loop(run, 7, 3)
	l.Keep = 10
	if err := l.Do(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := names(t, run.CheckpointsPath()); !slices.Equal(got, []string{"step-00000003", "step-00000006", "step-00000007"}) {
		t.Errorf("checkpoints %v", got)
	}
	if got := loggedSteps(t, run); !slices.Equal(got, upTo(7)) {
		t.Errorf("logged steps %v", got)
	}
	// A finished loop does nothing more.
	again := walk{fail: 1}
	if err := again.loop(run, 7, 3).Do(context.Background()); err != nil || again.x != w.x || len(again.steps) != 0 {
		t.Errorf("a finished loop did steps %v, stands at %v: %v", again.steps, again.x, err)
	}
}

func TestLoopKeepsTheNewestCheckpoints(t *testing.T) {
	run := mustCreate(t, filepath.Join(t.TempDir(), "run"))
	var w walk
	if err := w.loop(run, 5, 1).Do(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := names(t, run.CheckpointsPath()); !slices.Equal(got, []string{"step-00000004", "step-00000005"}) {
		t.Errorf("checkpoints %v", got)
	}
}

// Stopping wherever one likes, also twice before the first step, changes nothing.
func TestLoopInterruptedEverywhereEqualsUninterrupted(t *testing.T) {
	const steps = 6
	for _, every := range []int{0, 1, 4} {
		t.Run(fmt.Sprintf("checkpoints every %d", every), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "run")
			run := mustCreate(t, path)
			for _, stop := range []int{0, 0, 1, 2, 3, 3, 4, 5} {
				var w walk
				finish := make(chan struct{})
				l := w.loop(run, steps, every)
				l.Finish = finish
				l.OnEvent = func(e Event) {
					if e.Step == stop {
						close(finish)
					}
				}
				if at := len(loggedSteps(t, run)); at >= stop {
					close(finish)
					l.OnEvent = nil
				}
				if err := l.Do(context.Background()); !errors.Is(err, ErrInterrupted) {
					t.Fatalf("stopped after step %d: error %v", stop, err)
				}
				if got := loggedSteps(t, run); !slices.Equal(got, upTo(stop)) {
					t.Fatalf("stopped after step %d, the log has %v", stop, got)
				}
				run.Close()
				run = mustResume(t, path)
			}
			var w walk
			if err := w.loop(run, steps, every).Do(context.Background()); err != nil {
				t.Fatal(err)
			}
			if w.x != place(steps) {
				t.Errorf("ends at %v, uninterrupted at %v", w.x, place(steps))
			}
			if got := loggedSteps(t, run); !slices.Equal(got, upTo(steps)) {
				t.Errorf("logged steps %v", got)
			}
		})
	}
}

// An interruption whose save fails must not claim that all is saved.
func TestLoopReportsAFailedSaveInsteadOfAnInterruption(t *testing.T) {
	run := mustCreate(t, filepath.Join(t.TempDir(), "run"))
	var w walk
	l := w.loop(run, 3, 0)
	finish := make(chan struct{})
	close(finish)
	l.Finish = finish
	l.Save = func() ([]weights.Deferred, any, error) { return nil, nil, errStep }
	if err := l.Do(context.Background()); !errors.Is(err, errStep) || errors.Is(err, ErrInterrupted) {
		t.Errorf("error %v", err)
	}
}

func TestLoopFailingStepKeepsEarlierCheckpoints(t *testing.T) {
	run := mustCreate(t, filepath.Join(t.TempDir(), "run"))
	w := walk{fail: 6}
	err := w.loop(run, 8, 2).Do(context.Background())
	if !errors.Is(err, errStep) || !strings.Contains(err.Error(), "step 6") {
		t.Fatalf("error %v", err)
	}
	if got := names(t, run.CheckpointsPath()); !slices.Equal(got, []string{"step-00000002", "step-00000004"}) {
		t.Errorf("checkpoints %v", got)
	}
	if got := loggedSteps(t, run); !slices.Equal(got, upTo(5)) {
		t.Errorf("logged steps %v", got)
	}
	var next walk
	if err := next.loop(run, 8, 2).Do(context.Background()); err != nil {
		t.Fatal(err)
	}
	// Step 5 was logged but not saved: it is done and logged again, once.
	if next.steps[0] != 4 || next.x != place(8) {
		t.Errorf("resumed with step %d, ended at %v instead of %v", next.steps[0]+1, next.x, place(8))
	}
	if got := loggedSteps(t, run); !slices.Equal(got, upTo(8)) {
		t.Errorf("logged steps %v", got)
	}
}

func TestLoopFallsBackFromADamagedCheckpoint(t *testing.T) {
	run := mustCreate(t, filepath.Join(t.TempDir(), "run"))
	w := walk{fail: 5}
	if err := w.loop(run, 8, 2).Do(context.Background()); !errors.Is(err, errStep) {
		t.Fatal(err)
	}
	damaged := filepath.Join(run.CheckpointsPath(), "step-00000004", tensorsFile)
	b := []byte(mustRead(t, damaged))
	b[len(b)-1] ^= 1
	if err := os.WriteFile(damaged, b, 0o644); err != nil {
		t.Fatal(err)
	}
	var next walk
	var warnings []string
	l := next.loop(run, 8, 2)
	l.Warn = func(s string) { warnings = append(warnings, s) }
	if err := l.Do(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "step-00000004") || !strings.Contains(warnings[0], "SHA-256") {
		t.Errorf("warnings %q", warnings)
	}
	if next.steps[0] != 2 || next.x != place(8) {
		t.Errorf("resumed with step %d, ended at %v instead of %v", next.steps[0]+1, next.x, place(8))
	}
	if got := loggedSteps(t, run); !slices.Equal(got, upTo(8)) {
		t.Errorf("logged steps %v", got)
	}
}

func TestLoopEndsWithItsContext(t *testing.T) {
	run := mustCreate(t, filepath.Join(t.TempDir(), "run"))
	ctx, cancel := context.WithCancelCause(context.Background())
	var w walk
	l := w.loop(run, 8, 2)
	l.OnEvent = func(e Event) {
		if e.Step == 3 {
			cancel(ErrAborted)
		}
	}
	if err := l.Do(ctx); !errors.Is(err, ErrAborted) {
		t.Fatalf("error %v", err)
	}
	if got := names(t, run.CheckpointsPath()); len(w.steps) != 3 || !slices.Equal(got, []string{"step-00000002"}) {
		t.Errorf("%d steps, checkpoints %v", len(w.steps), got)
	}
}

package train

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/resalign/resalign/weights"
)

type savedState struct {
	Seed  uint64    `json:"seed"`
	Rates []float64 `json:"rates"`
}

func contents(step int) ([]*weights.Tensor, savedState) {
	values := []float32{float32(step), -0.1, float32(math.SmallestNonzeroFloat32)}
	return []*weights.Tensor{
		weights.NewFloat32("lora.up", []int{3, 1}, values),
		weights.NewFloat32("moment.1", []int{}, []float32{float32(step) / 3}),
	}, savedState{math.MaxUint64, []float64{0.1, 1 / float64(step+3)}}
}

func mustSave(t *testing.T, c *Checkpoints, step int) {
	t.Helper()
	tensors, state := contents(step)
	if err := c.Save(step, tensors, state); err != nil {
		t.Fatal(err)
	}
}

func mustOpen(t *testing.T, dir string, keep int) *Checkpoints {
	t.Helper()
	c, err := OpenCheckpoints(dir, keep)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// latestStep returns the step of the newest checkpoint, having compared everything in it with what was saved.
func latestStep(t *testing.T, c *Checkpoints) (int, []Skipped) {
	t.Helper()
	latest, skipped, err := c.Latest()
	if err != nil {
		t.Fatal(err)
	}
	if latest == nil {
		return -1, skipped
	}
	var state savedState
	if err := latest.State(&state); err != nil {
		t.Fatal(err)
	}
	tensors, wantState := contents(latest.Step)
	if fmt.Sprint(state) != fmt.Sprint(wantState) {
		t.Errorf("state %v, want %v", state, wantState)
	}
	source, err := latest.Tensors()
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	if len(source.Names()) != len(tensors) {
		t.Errorf("tensors %v", source.Names())
	}
	for _, want := range tensors {
		got, err := source.Tensor(want.Name)
		if err != nil {
			t.Fatal(err)
		}
		gotBytes, err := got.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		wantBytes, err := want.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(gotBytes, wantBytes) || !slices.Equal(got.Shape, want.Shape) {
			t.Errorf("tensor %s differs", want.Name)
		}
	}
	return latest.Step, skipped
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestCheckpointsKeepTheNewest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "checkpoints")
	c := mustOpen(t, dir, 2)
	if step, _ := latestStep(t, c); step != -1 {
		t.Errorf("latest of none is %d", step)
	}
	for _, step := range []int{0, 5, 10, 123456789} {
		mustSave(t, c, step)
		if got, skipped := latestStep(t, mustOpen(t, dir, 2)); got != step || skipped != nil {
			t.Errorf("latest is %d, skipped %v", got, skipped)
		}
	}
	if got := names(t, dir); !slices.Equal(got, []string{"step-00000010", "step-123456789"}) {
		t.Errorf("folders %v", got)
	}
}

func TestCheckpointRefusals(t *testing.T) {
	c := mustOpen(t, t.TempDir(), 1)
	mustSave(t, c, 7)
	tensors, state := contents(7)
	for want, err := range map[string]error{
		"already has a checkpoint": c.Save(7, tensors, state),
		"must be ≥ 0":              c.Save(-1, tensors, state),
		"JSON":                     c.Save(8, tensors, math.NaN()),
		"lora.up":                  c.Save(8, append(tensors, tensors[0]), state),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	if step, skipped := latestStep(t, c); step != 7 || skipped != nil {
		t.Errorf("latest %d, skipped %v", step, skipped)
	}
	if _, err := OpenCheckpoints(t.TempDir(), 0); err == nil {
		t.Error("keep 0 accepted")
	}
	latest, _, err := c.Latest()
	if err != nil {
		t.Fatal(err)
	}
	if err := latest.State(&struct{ Seed uint64 }{}); err == nil || !strings.Contains(err.Error(), "rates") {
		t.Errorf("a state with unknown fields: error %v", err)
	}
}

func TestDamagedCheckpointsAreSkippedThenRemoved(t *testing.T) {
	flip := func(path string) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		data[len(data)-1] ^= 1
		return os.WriteFile(path, data, 0o666)
	}
	for name, damage := range map[string]func(dir string) error{
		"SHA-256":       func(dir string) error { return flip(filepath.Join(dir, tensorsFile)) },
		"state.json is": func(dir string) error { return flip(filepath.Join(dir, stateFile)) },
		"bytes": func(dir string) error {
			return os.Truncate(filepath.Join(dir, tensorsFile), 3)
		},
		"not completed": func(dir string) error { return os.Remove(filepath.Join(dir, markerFile)) },
		"no such file":  func(dir string) error { return os.Remove(filepath.Join(dir, stateFile)) },
		"is damaged":    func(dir string) error { return os.WriteFile(filepath.Join(dir, markerFile), []byte("{"), 0o666) },
		"is of step": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, markerFile), []byte(`{"step":1,"files":[]}`), 0o666)
		},
		"exactly": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, markerFile), []byte(`{"step":30,"files":[{"name":"../../x"},{}]}`), 0o666)
		},
		"larger than": func(dir string) error { return os.Truncate(filepath.Join(dir, markerFile), 1<<40) },
		"not a regular": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, markerFile)), os.Mkdir(filepath.Join(dir, markerFile), 0o777))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := mustOpen(t, dir, 2)
			for _, step := range []int{10, 20, 30} {
				mustSave(t, c, step)
			}
			if err := damage(filepath.Join(dir, folderName(30))); err != nil {
				t.Fatal(err)
			}
			step, skipped := latestStep(t, c)
			if step != 20 || len(skipped) != 1 || !strings.Contains(skipped[0].Reason.Error(), name) {
				t.Fatalf("latest %d, skipped %v", step, skipped)
			}
			mustSave(t, c, 30) // the resumed run comes by again
			if step, skipped := latestStep(t, c); step != 30 || skipped != nil {
				t.Errorf("latest %d, skipped %v", step, skipped)
			}
			if got := names(t, dir); !slices.Equal(got, []string{"step-00000020", "step-00000030"}) {
				t.Errorf("folders %v", got)
			}
		})
	}
}

// faulty is a disk on which operation failAt, counted from 1, fails. After a kill nothing works any more; a full disk
// lets nothing be written but can remove.
type faulty struct {
	disk
	failAt int
	calls  int
	full   bool
	half   bool // the failing operation is half done
}

var errKilled = errors.New("process killed")

// fails says whether the current operation fails, and whether it still leaves something behind.
func (f *faulty) fails(writes bool) (half bool, err error) {
	f.calls++
	switch {
	case f.failAt == 0 || f.calls < f.failAt:
		return false, nil
	case f.full && writes:
		return f.half && f.calls == f.failAt, fmt.Errorf("write: %w", syscall.ENOSPC)
	case f.full:
		return false, nil
	}
	return f.half && f.calls == f.failAt, errKilled
}

func (f *faulty) mkdirAll(path string) error {
	half, err := f.fails(true)
	if err == nil || half {
		return errors.Join(err, f.disk.mkdirAll(path))
	}
	return err
}

func (f *faulty) writeFile(path string, data []byte) error {
	half, err := f.fails(true)
	if half {
		return errors.Join(err, os.WriteFile(path, data[:len(data)/2], 0o666))
	}
	if err != nil {
		return err
	}
	return f.disk.writeFile(path, data)
}

func (f *faulty) writeTensors(path string, tensors []weights.Deferred, metadata map[string]string) error {
	half, err := f.fails(true)
	if half {
		return errors.Join(err, os.WriteFile(path, []byte{1, 2, 3}, 0o666))
	}
	if err != nil {
		return err
	}
	return f.disk.writeTensors(path, tensors, metadata)
}

func (f *faulty) rename(from, to string) error {
	half, err := f.fails(true)
	if err == nil || half { // a rename is done or not; half means that its success was not seen
		return errors.Join(err, f.disk.rename(from, to))
	}
	return err
}

func (f *faulty) syncDir(path string) error {
	if _, err := f.fails(true); err != nil {
		return err
	}
	return f.disk.syncDir(path)
}

func (f *faulty) removeAll(path string) error {
	half, err := f.fails(false)
	if half {
		entries, _ := os.ReadDir(path)
		for _, e := range entries[:len(entries)/2] {
			os.Remove(filepath.Join(path, e.Name()))
		}
	}
	if err != nil {
		return err
	}
	return f.disk.removeAll(path)
}

// TestSurvivesFailureAtEveryOperation stops a save at each of its operations, before it or half way through it, by a kill
// or by a full disk. Afterwards the newest checkpoint is the one before or the new one, whole, and saving goes on.
func TestSurvivesFailureAtEveryOperation(t *testing.T) {
	for _, full := range []bool{false, true} {
		for _, half := range []bool{false, true} {
			operations := 0
			for failAt := 1; ; failAt++ {
				dir := t.TempDir()
				c := mustOpen(t, dir, 2)
				for _, step := range []int{10, 20, 30} {
					mustSave(t, c, step)
				}
				// Something for the cleaning to do: a damaged newest checkpoint, and a folder of an earlier kill.
				if err := os.Remove(filepath.Join(dir, folderName(30), markerFile)); err != nil {
					t.Fatal(err)
				}
				if err := os.MkdirAll(filepath.Join(dir, temporaryPrefix+folderName(40), "x"), 0o777); err != nil {
					t.Fatal(err)
				}
				files := &faulty{full: full, half: half}
				c, err := openCheckpoints(files, dir, 1)
				if err != nil {
					t.Fatal(err)
				}
				files.calls, files.failAt = 0, failAt
				tensors, state := contents(40)
				err = c.Save(40, tensors, state)
				if err == nil && files.calls < failAt {
					operations = failAt - 1
					break
				}
				what := fmt.Sprintf("full=%v half=%v operation %d", full, half, failAt)
				if full && err != nil && !errors.Is(err, syscall.ENOSPC) || !full && !errors.Is(err, errKilled) {
					t.Fatalf("%s: error %v", what, err)
				}
				// The next process.
				c = mustOpen(t, dir, 1)
				step, _ := latestStep(t, c)
				if step != 20 && step != 40 {
					t.Fatalf("%s: the newest checkpoint is %d, want 20 or 40", what, step)
				}
				if err == nil && step != 40 {
					t.Fatalf("%s: saved, but the newest checkpoint is %d", what, step)
				}
				mustSave(t, c, 50)
				if step, skipped := latestStep(t, c); step != 50 || skipped != nil {
					t.Errorf("%s: then the newest is %d, skipped %v", what, step, skipped)
				}
				if got := names(t, dir); !slices.Equal(got, []string{"step-00000050"}) {
					t.Errorf("%s: folders %v", what, got)
				}
			}
			if operations < 12 {
				t.Errorf("full=%v half=%v: only %d operations were made to fail", full, half, operations)
			}
		}
	}
}

// TestFullDiskThenSpace saves again with the same Checkpoints once there is room.
func TestFullDiskThenSpace(t *testing.T) {
	dir := t.TempDir()
	files := &faulty{full: true, half: true}
	c, err := openCheckpoints(files, dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	mustSave(t, c, 1)
	files.failAt = files.calls + 2 // the tensors
	tensors, state := contents(2)
	err = c.Save(2, tensors, state)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "earlier checkpoints are intact") {
		t.Fatalf("error %v", err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"step-00000001"}) {
		t.Errorf("folders %v after a failed save", got)
	}
	files.failAt = 0
	mustSave(t, c, 2)
	if step, _ := latestStep(t, c); step != 2 {
		t.Errorf("latest %d", step)
	}
}

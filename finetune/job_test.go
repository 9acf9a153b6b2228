package finetune

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/train"
)

// shortJob is a job of a few steps on blue balls.
func shortJob(t testing.TB, method string) Job {
	t.Helper()
	j := DefaultJob(method)
	j.Config = short(method)
	j.Model, j.Data = tinyModel, drawn(t, "a blue ball", [3]uint8{40, 60, 230}, 4).Dir
	return j
}

func openEngine(t testing.TB) *engine.Engine {
	return enginetest.Open(t)
}

func absent(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is there: %v", path, err)
	}
}

func content(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestJobSettingsThatContradict(t *testing.T) {
	valid := Job{Model: "m", Data: "d", Config: Defaults(Full)}
	if problems := valid.Validate(); len(problems) != 0 {
		t.Fatalf("a valid job has problems: %v", problems)
	}
	for _, c := range []struct {
		key    string
		change func(j *Job)
	}{
		{"model", func(j *Job) { j.Model = "" }},
		{"data", func(j *Job) { j.Data = "" }},
		{"prior", func(j *Job) { j.Prior = "p" }},
		{"contaminate", func(j *Job) { j.Config, j.Contaminate, j.Ratio = Defaults(DreamBooth), "c", 0.5 }},
		{"ratio", func(j *Job) { j.Ratio = 0.5 }},
		{"ratio", func(j *Job) { j.Contaminate = "c" }},
		{"ratio", func(j *Job) { j.Contaminate, j.Ratio = "c", 1.5 }},
		{"no_merge", func(j *Job) { j.NoMerge = true }},
		{"checkpoint_every", func(j *Job) { j.CheckpointEvery = -1 }},
		{"preview.every", func(j *Job) { j.Preview.Every = -1 }},
		{"preview.every", func(j *Job) { j.Preview.Every = 1 }},
		{"preview.every", func(j *Job) { j.Preview.Prompts = []string{"a ball"} }},
		{"batch_size", func(j *Job) { j.BatchSize = 0 }},
	} {
		j := valid
		c.change(&j)
		problems := j.Validate()
		if len(problems) != 1 || problems[0].Key != c.key || problems[0].Message == "" {
			t.Errorf("%s: problems %v", c.key, problems)
		}
		var refused *recipe.Error
		if _, err := RunJob(context.Background(), nil, "nowhere", j, JobHooks{}); !errors.As(err, &refused) {
			t.Errorf("%s: the job gave %v", c.key, err)
		}
	}
}

// A run that ends before its first step because of its input, or because it was asked to, leaves no folder.
func TestNothingIsMadeBeforeEverythingIsPrepared(t *testing.T) {
	e := openEngine(t)
	for name, c := range map[string]struct {
		change func(j *Job)
		part   string
	}{
		"broken picture":   {func(j *Job) { breakPicture(t, j.Data) }, "03.png"},
		"unknown target":   {func(j *Job) { j.Targets = []string{"attn9"} }, "attn9"},
		"preview's size":   {func(j *Job) { j.Preview.Every, j.Preview.Prompts, j.Preview.Options.Height = 1, []string{"a"}, 33 }, "preview"},
		"preview's scale":  {func(j *Job) { j.Preview.Every, j.Preview.Prompts, j.Preview.Options.Guidance = 1, []string{"a"}, -1 }, "guidance"},
		"missing model":    {func(j *Job) { j.Model = filepath.Join(t.TempDir(), "none") }, "none"},
		"missing pictures": {func(j *Job) { j.Data = filepath.Join(t.TempDir(), "none") }, "none"},
	} {
		j := shortJob(t, LoRA)
		c.change(&j)
		out := filepath.Join(t.TempDir(), "run")
		if _, err := RunJob(context.Background(), e, out, j, JobHooks{}); err == nil || !strings.Contains(err.Error(), c.part) {
			t.Errorf("%s: error %v", name, err)
		}
		absent(t, out)
	}
}

func breakPicture(t testing.TB, dir string) {
	t.Helper()
	path := filepath.Join(dir, "03.png")
	whole := content(t, path)
	if err := os.WriteFile(path, []byte(whole[:len(whole)/2]), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A folder that is taken is refused before pictures or a model are looked for.
func TestOccupiedFolderIsRefusedFirst(t *testing.T) {
	out := t.TempDir()
	if err := os.WriteFile(filepath.Join(out, "notes.txt"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	j := DefaultJob(Full)
	j.Model, j.Data = "no model", "no pictures"
	if _, err := RunJob(t.Context(), nil, out, j, JobHooks{}); err == nil || !strings.Contains(err.Error(), out) {
		t.Errorf("%v", err)
	}
	if content(t, filepath.Join(out, "notes.txt")) != "mine" {
		t.Error("what was there is gone")
	}
}

func TestFinishDuringPreparation(t *testing.T) {
	e, j := openEngine(t), shortJob(t, Full)
	for _, last := range []int{0, 2, 4} { // pictures that are encoded when finish is closed
		out := filepath.Join(t.TempDir(), "run")
		finish, seen := make(chan struct{}), 0
		if last == 0 {
			close(finish)
		}
		_, err := RunJob(context.Background(), e, out, j, JobHooks{Finish: finish, OnPrepare: func(done, _ int) {
			if seen = done; done == last {
				close(finish)
			}
		}})
		if !errors.Is(err, train.ErrInterrupted) || err.Error() != train.ErrInterrupted.Error() {
			t.Errorf("after %d pictures: error %v", last, err)
		}
		if seen != last {
			t.Errorf("%d pictures were encoded, %d before the end was asked for", seen, last)
		}
		absent(t, out)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(train.ErrAborted)
	if _, err := RunJob(ctx, e, filepath.Join(t.TempDir(), "run"), j, JobHooks{}); !errors.Is(err, train.ErrAborted) && !errors.Is(err, context.Canceled) {
		t.Errorf("aborted, the job gave %v", err)
	}
}

// Interrupted in a step and in the preparation of the resumed run, a job ends with the files of one without a break.
func TestJobInterruptedAndResumed(t *testing.T) {
	e, j := openEngine(t), shortJob(t, LoRA)
	j.Preview.Every, j.Preview.Prompts, j.Preview.Options.Steps = 2, []string{"a ball", "a box"}, 2
	whole, parts := filepath.Join(t.TempDir(), "whole"), filepath.Join(t.TempDir(), "parts")
	ctx := context.Background()
	want, err := RunJob(ctx, e, whole, j, JobHooks{})
	if err != nil {
		t.Fatal(err)
	}
	finish := make(chan struct{})
	_, err = RunJob(ctx, e, parts, j, JobHooks{Finish: finish, OnEvent: func(train.Event) { close(finish) }})
	if !errors.Is(err, train.ErrInterrupted) {
		t.Fatalf("error %v", err)
	}
	stored, err := ReadJob(parts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := RunJob(ctx, e, parts, stored, JobHooks{Resume: true, Finish: finish}); !errors.Is(err, train.ErrInterrupted) {
		t.Fatalf("error %v", err)
	}
	var steps []int
	got, err := RunJob(ctx, e, parts, stored, JobHooks{Resume: true, OnEvent: func(e train.Event) { steps = append(steps, e.Step) }})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(steps, []int{2, 3}) || got.Steps != 3 {
		t.Errorf("resumed, steps %v were done", steps)
	}
	for _, file := range []string{"lora.safetensors", "model/unet/diffusion_pytorch_model.safetensors", "recipe.toml", "previews/step-00000002.png"} {
		if content(t, filepath.Join(whole, file)) != content(t, filepath.Join(parts, file)) {
			t.Errorf("%s differs from that of a job without a break", file)
		}
	}
	// A finished job says the same again, even where its pictures are gone.
	if err := os.RemoveAll(j.Data); err != nil {
		t.Fatal(err)
	}
	again, err := RunJob(ctx, e, whole, j, JobHooks{Resume: true})
	if err != nil || *again != *want {
		t.Errorf("resumed, the finished job says %+v, not %+v: %v", again, want, err)
	}
	if _, err := RunJob(ctx, e, whole, shortJob(t, LoRA), JobHooks{}); err == nil || !strings.Contains(err.Error(), "finished run") {
		t.Errorf("a second job in the folder gives %v", err)
	}
}

func TestReadJobOfAFolderWithoutOne(t *testing.T) {
	if _, err := ReadJob(t.TempDir()); err == nil || !strings.Contains(err.Error(), "holds no run") {
		t.Errorf("error %v", err)
	}
}

func TestContaminatedPictures(t *testing.T) {
	j := shortJob(t, Full)
	j.Contaminate, j.Ratio = drawn(t, "a red star", [3]uint8{230, 30, 30}, 4).Dir, 0.25
	d, err := j.pictures()
	if err != nil || len(d.Pictures) != 2 || d.Prior != nil {
		t.Fatalf("pictures %v: %v", d, err)
	}
	batches, err := data.NewBatches(1, "test", 4, false, d.Pictures.Sources()...)
	if err != nil {
		t.Fatal(err)
	}
	harmful := 0
	for step := range 500 {
		for _, draw := range batches.At(step) {
			harmful += draw.Source
		}
	}
	if share := float64(harmful) / 2000; share < 0.2 || share > 0.3 {
		t.Errorf("share of the harmful pictures is %v, not 0.25", share)
	}
}

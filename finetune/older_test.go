package finetune

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/train"
)

// A job that an earlier version began, whose stored recipe lacks the keys that were added since, goes on to the same
// bytes. testdata/older has DATA for the folder of pictures.
func TestJobOfAnOlderVersionResumes(t *testing.T) {
	e, j, ctx := openEngine(t), shortJob(t, LoRA), context.Background()
	whole, parts := filepath.Join(t.TempDir(), "whole"), filepath.Join(t.TempDir(), "parts")
	if _, err := RunJob(ctx, e, whole, j, JobHooks{}); err != nil {
		t.Fatal(err)
	}
	finish := make(chan struct{})
	_, err := RunJob(ctx, e, parts, j, JobHooks{Finish: finish, OnEvent: func(train.Event) { close(finish) }})
	if !errors.Is(err, train.ErrInterrupted) {
		t.Fatal(err)
	}
	older := bytes.ReplaceAll([]byte(content(t, filepath.Join("testdata", "older", "recipe.toml"))), []byte("DATA"), []byte(filepath.ToSlash(j.Data)))
	stored := filepath.Join(parts, "recipe.toml")
	if err := os.WriteFile(stored, older, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"lora_format", "prior_pictures", "compute"} {
		if bytes.Contains(older, []byte(key)) {
			t.Fatalf("the older recipe knows %s", key)
		}
	}
	for want, change := range map[string]func(*Job){
		"steps is 5 and was 3;":                                     func(j *Job) { j.Steps = 5 },
		"noise_offset is 0.1 and was 0.0;":                          func(j *Job) { j.NoiseOffset = 0.1 },
		`method is "full" and was "lora"; rank is 8 and was 4;`:     func(j *Job) { j.Method, j.Rank = Full, 8 },
		"preview.options.guidance is 1.0 and was 7.5; preview.opti": func(j *Job) { j.Preview.Options.Guidance, j.Preview.Options.VAETiling = 1, true },
	} {
		changed := j
		change(&changed)
		_, err := RunJob(ctx, e, parts, changed, JobHooks{Resume: true})
		if err == nil || !strings.Contains(err.Error(), "with another recipe: "+want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v, not %q", err, want)
		}
	}
	read, err := ReadJob(parts)
	if err != nil {
		t.Fatal(err)
	}
	if read.LoRAFormat != j.LoRAFormat || read.PriorPictures != j.PriorPictures || read.LearningRate != j.LearningRate {
		t.Errorf("the older job was read as %+v", read)
	}
	if _, err := RunJob(ctx, e, parts, read, JobHooks{Resume: true}); err != nil {
		t.Fatal(err)
	}
	if content(t, stored) != string(older) {
		t.Error("the stored recipe was changed")
	}
	const adapter = "lora.safetensors"
	if content(t, filepath.Join(whole, adapter)) != content(t, filepath.Join(parts, adapter)) {
		t.Error("the resumed job ends elsewhere than one without a break")
	}
}

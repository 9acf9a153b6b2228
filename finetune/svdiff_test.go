package finetune

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

// Shifts of singular values lower the loss; without a step the model is the base model, bit for bit; biases never move.
func TestSVDiff(t *testing.T) {
	m, d := load(t), blue(t)
	c := short(SVDiff)
	c.Steps = 0
	start, _ := tune(t, m, c, d, Hooks{})
	before := numbers(t, m.UNetParams.Tensors)
	if !identical(before, numbers(t, start.UNet.Tensors)) {
		t.Error("without a step the model is another one")
	}
	c.Steps, c.BatchSize, c.LearningRate = 12, 4, 3e-2
	var work []string
	r, _ := tune(t, m, c, d, Hooks{OnWork: func(what string, done, total int) {
		if done == total {
			work = append(work, what)
		}
	}})
	if strings.Join(work, ",") != "decomposing weights" {
		t.Errorf("work %v", work)
	}
	after := numbers(t, r.UNet.Tensors)
	for i, s := range m.UNet.Specs() {
		moved := distance(after[i:i+1], before[i:i+1]) > 0
		if moved != strings.HasSuffix(s.Name, ".weight") {
			t.Errorf("%s: moved %v", s.Name, moved)
		}
	}
	b := batch(t, m, d.Pictures, d.Cache, denoise.DatasetOptions{}, "unseen noise", 16)
	if was, is := lossOn(t, m, &Result{UNet: m.UNetParams}, b), lossOn(t, m, r, b); !(is < 0.97*was) {
		t.Errorf("the loss went from %v to %v", was, is)
	}
}

// The job writes the merged model, and the shifts that make it of the base.
func TestSVDiffFiles(t *testing.T) {
	j, out := shortJob(t, SVDiff), filepath.Join(t.TempDir(), "run")
	e := openEngine(t)
	result, err := RunJob(t.Context(), e, out, j, JobHooks{})
	if err != nil {
		t.Fatal(err)
	}
	saved, err := sd.Load(e, result.Model)
	if err != nil {
		t.Fatal(err)
	}
	defer saved.Free()
	base, err := sd.Load(e, tinyModel)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Free()
	shifts, err := weights.Open(result.Shifts)
	if err != nil {
		t.Fatal(err)
	}
	defer shifts.Close()
	spectrum := base.NewSpectrum()
	if len(shifts.Names()) != len(spectrum.Matrices) || filepath.Base(result.Shifts) != "spectral_shifts.safetensors" {
		t.Errorf("%s holds %d tensors for %d matrices", result.Shifts, len(shifts.Names()), len(spectrum.Matrices))
	}
	// The merged weights' lengths along the base's singular vectors are the shifted singular values; for a norm, whose one
	// singular value is its length, that is quickly said.
	for i, matrix := range spectrum.Matrices {
		if !matrix.Vector() {
			continue
		}
		x, err := shifts.Tensor(spectrum.Specs()[i].Name)
		if err != nil {
			t.Fatal(err)
		}
		values, err := x.Float32()
		if err != nil {
			t.Fatal(err)
		}
		was := distance(numbers(t, base.UNetParams.Tensors[matrix.Index:matrix.Index+1]), nil)
		is := distance(numbers(t, saved.UNetParams.Tensors[matrix.Index:matrix.Index+1]), nil)
		if d := is - was - float64(values[0]); values[0] == 0 || d > 1e-6 || d < -1e-6 {
			t.Errorf("%s: length %v, was %v, shift %v", matrix.Module, is, was, values[0])
		}
	}
}

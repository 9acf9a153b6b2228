package diagnose

import (
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/sd"
)

const (
	tinyModel = "../testdata/golden/tiny-sd"
	examples  = "../examples/tiny/"
)

func openEngine(t testing.TB) *engine.Engine {
	return enginetest.Open(t)
}

func pictures(t testing.TB, name string) data.Mixture {
	t.Helper()
	folder, err := data.ReadFolder(examples + name)
	if err != nil {
		t.Fatal(err)
	}
	return data.Mixture{{Folder: folder, Weight: 1}}
}

// small is a diagnosis of seconds.
func small(t testing.TB, models ...Model) Options {
	t.Helper()
	o := Defaults()
	o.Models, o.Harmful, o.Benign = models, pictures(t, "harmful"), pictures(t, "people")
	o.Probes, o.Draws, o.PowerIterations, o.Iterations = 4, 1, 2, 2
	o.From, o.Points, o.LossBatches, o.Gamma = -1, 3, 4, 0.1
	o.Tuning.Steps, o.Tuning.Accumulation, o.Tuning.LearningRate, o.Tuning.Flip = 3, 1, 1e-3, false
	return o
}

// tinySubject is the tiny model as a diagnosis reads it.
func tinySubject(t testing.TB, change func(*Options)) (*runner, *subject) {
	t.Helper()
	r := &runner{engine: openEngine(t), out: t.TempDir(), options: small(t, Model{"tiny", tinyModel})}
	r.hooks.Warn = func(s string) { t.Log(s) }
	if change != nil {
		change(&r.options)
	}
	if err := r.readPictures(); err != nil {
		t.Fatal(err)
	}
	s, err := r.read(tinyModel)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.free)
	return r, s
}

// otherModel is the tiny model after a little training, as a folder.
func otherModel(t testing.TB, e *engine.Engine) string {
	t.Helper()
	dir := t.TempDir() + "/model"
	m, err := sd.Load(e, tinyModel)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	cache, err := data.OpenCache("", 64<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := small(t).Tuning
	c.Steps, c.LearningRate = 1, 1e-2
	result, err := finetune.Run(t.Context(), m, m.UNetParams, c, finetune.Data{Pictures: pictures(t, "harmful"), Cache: cache}, finetune.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	defer result.Free()
	if err := m.Save(dir, result.UNet); err != nil {
		t.Fatal(err)
	}
	return dir
}

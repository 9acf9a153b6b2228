package unlearn

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// A persistent simulation keeps the adapter that it began with, also over an interruption.
func TestPersistentFreshAdapterResumes(t *testing.T) {
	prepare := func() Recipe {
		r := tinyRecipe(t, t.TempDir())
		r.Simulations[0].Adapts, r.Simulations[0].ChainReset = FreshAdapter, 2
		r.Simulations[0].LearningRate = 0.3 // far enough for the chain to matter
		return r
	}
	whole := prepare()
	run(t, whole, Hooks{})
	parts := prepare()
	finish := make(chan struct{})
	_, err := Run(context.Background(), openEngine(t), parts, Hooks{Finish: finish, OnEvent: func(e train.Event) {
		if e.Step == 3 { // in the middle of the second chain
			close(finish)
		}
	}})
	if !errors.Is(err, train.ErrInterrupted) {
		t.Fatal(err)
	}
	run(t, parts, Hooks{Resume: true})
	if !bytes.Equal(modelBytes(t, whole), modelBytes(t, parts)) {
		t.Error("a resumed run ends elsewhere than an uninterrupted one")
	}
	anew := prepare()
	anew.Simulations[0].ChainReset = 0
	run(t, anew, Hooks{})
	if bytes.Equal(modelBytes(t, whole), modelBytes(t, anew)) {
		t.Error("a persistent simulation equals one that starts anew in every step")
	}
}

// Between two outer steps a chain's adapter starts from the same factors, and from others after a reset.
func TestPersistentFreshAdapterKeepsItsFactors(t *testing.T) {
	r := tinyRecipe(t, t.TempDir())
	r.Simulations[0].Adapts, r.Simulations[0].ChainReset = FreshAdapter, 2
	m, err := sd.Load(openEngine(t), r.Model)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	cache, err := data.OpenCache("", 1<<24, nil)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := newTrainer(context.Background(), m, r, cache, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.free()
	v := tr.views[r.Simulations[0].Name]
	var first [][]float32
	for step := range 3 {
		point, made, err := tr.start(v, step)
		if err != nil {
			t.Fatal(err)
		}
		values, err := engine.Values(v.phi.Of(point)[0])
		if err != nil {
			t.Fatal(err)
		}
		first = append(first, values)
		engine.Free(made...)
		s, err := tr.simulate(context.Background(), v, step)
		if err != nil {
			t.Fatal(err)
		}
		s.free()
	}
	if !slices.Equal(first[0], first[1]) || slices.Equal(first[1], first[2]) {
		t.Error("the factors change within a chain, or stay over its end")
	}
}

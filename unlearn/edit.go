package unlearn

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

// Edit says what the closed-form methods uce and rece change.
type Edit struct {
	Erase          []string `toml:"erase"`          // prompts to forget
	ReplaceWith    string   `toml:"replace_with"`   // the prompt that they are to mean
	Preserve       []string `toml:"preserve"`       // prompts to keep, beside the empty one
	Lambda         float64  `toml:"lambda"`         // weight of staying near the weights as they are
	EraseScale     float64  `toml:"erase_scale"`    // weight of each token that is forgotten
	PreserveScale  float64  `toml:"preserve_scale"` // of each that is kept; 0: 1/number of prompts, at least 0.1
	Epochs         int      `toml:"epochs"`         // rece: rounds of deriving embeddings and erasing them
	Regularization float64  `toml:"regularization"` // rece: weight of keeping derived embeddings small
}

// defaultEdit has the constants of the authors' code.
func defaultEdit() Edit { return Edit{Lambda: 0.1, EraseScale: 1, Epochs: 3, Regularization: 0.1} }

func (e Edit) validate(v *validation, method string) {
	v.check(len(e.Erase) > 0, "edit.erase", "is empty; give at least one prompt to forget")
	for i, p := range e.Erase {
		v.present(fmt.Sprintf("edit.erase[%d]", i), p)
	}
	v.check(e.Lambda > 0 && !math.IsInf(e.Lambda, 0), "edit.lambda", "%v must be a finite number above 0", e.Lambda)
	v.check(e.EraseScale > 0 && !math.IsInf(e.EraseScale, 0), "edit.erase_scale", "%v must be a finite number above 0", e.EraseScale)
	v.notNegative("edit.preserve_scale", e.PreserveScale)
	if method == RECE {
		v.check(e.Epochs >= 1, "edit.epochs", "%d must be at least 1", e.Epochs)
		v.check(e.Regularization > 0 && !math.IsInf(e.Regularization, 0), "edit.regularization", "%v must be a finite number above 0", e.Regularization)
	}
}

// preserveScale is the weight of a kept token.
func (e Edit) preserveScale() float64 {
	if e.PreserveScale > 0 {
		return e.PreserveScale
	}
	return max(0.1, 1/float64(1+len(e.Preserve)))
}

// editor is a closed-form run under way.
type editor struct {
	recipe   Recipe
	model    *sd.Model
	width    int // of text embeddings
	erase    []prompt
	replace  prompt
	preserve [][]float64 // tokens

	index    []int     // the edited parameters among those of the UNet
	original []*matrix // their values in θ₀
	current  []*matrix // and now
}

// prompt is an embedding token by token.
type prompt struct {
	tokens [][]float64
	last   int // the token of the last word; 0, the start token, if there is none
}

// edit carries out a closed-form method.
func edit(ctx context.Context, m *sd.Model, r Recipe, cache *data.Cache, h Hooks) (_ *Result, err error) {
	ed, err := newEditor(ctx, m, r, h)
	if err != nil {
		return nil, err
	}
	run, err := openRun(m.Engine, r, h)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, run.Close()) }()
	net := denoise.NewNetwork(m)
	defer net.Free()
	loop := train.Loop{
		Steps: r.TotalSteps(), Run: run, CheckpointEvery: r.Checkpoint.Every, Keep: r.Checkpoint.Keep, Finish: h.Finish,
		Step: ed.step, Save: ed.save, Restore: ed.restore, OnEvent: h.OnEvent, Warn: h.Warn,
		After: func(ctx context.Context, done int) error {
			tensors, made := ed.tensors()
			defer engine.Free(made...)
			return r.Preview.Save(ctx, run.PreviewsPath(), net, tensors, cache, r.Seed, done)
		},
	}
	if err := loop.Do(ctx); err != nil {
		return nil, err
	}
	result := &Result{Model: filepath.Join(run.Path(), modelFolder), Steps: r.TotalSteps()}
	if err := os.RemoveAll(result.Model); err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	tensors, made := ed.tensors()
	defer engine.Free(made...)
	if err := m.Save(result.Model, m.UNetParams.WithTensors(tensors)); err != nil {
		return nil, err
	}
	return result, run.Finish()
}

func newEditor(ctx context.Context, m *sd.Model, r Recipe, h Hooks) (*editor, error) {
	e := &editor{recipe: r, model: m}
	for i, s := range m.UNetParams.Specs {
		if !strings.HasSuffix(s.Name, ".attn2.to_k.weight") && !strings.HasSuffix(s.Name, ".attn2.to_v.weight") {
			continue
		}
		values, err := engine.Values(m.UNetParams.Tensors[i])
		if err != nil {
			return nil, err
		}
		e.index = append(e.index, i)
		e.width = s.Shape[1]
		e.original = append(e.original, newMatrix(values, s.Shape[0], s.Shape[1]))
		e.current = append(e.current, newMatrix(values, s.Shape[0], s.Shape[1]))
	}
	if len(e.index) == 0 {
		return nil, fmt.Errorf("model: the UNet of %s has no cross-attention, which method %s edits", m.Dir, r.Method)
	}
	encode := func(key, text string) (prompt, error) {
		p, cut, err := encodePrompt(ctx, m, text)
		if err != nil {
			return p, fmt.Errorf("recipe: %s: %w", key, err)
		}
		if cut != "" {
			h.warn(fmt.Sprintf("recipe: %s is longer than %d tokens; cut off: %q", key, len(p.tokens), cut))
		}
		return p, nil
	}
	for i, text := range r.Edit.Erase {
		p, err := encode(fmt.Sprintf("edit.erase[%d]", i), text)
		if err != nil {
			return nil, err
		}
		e.erase = append(e.erase, p)
	}
	var err error
	if e.replace, err = encode("edit.replace_with", r.Edit.ReplaceWith); err != nil {
		return nil, err
	}
	// The unconditional prediction is kept in any case: guidance starts from it.
	for i, text := range append([]string{""}, r.Edit.Preserve...) {
		p, err := encode(fmt.Sprintf("edit.preserve[%d]", i-1), text)
		if err != nil {
			return nil, err
		}
		e.preserve = append(e.preserve, p.tokens...)
	}
	return e, nil
}

func encodePrompt(ctx context.Context, m *sd.Model, text string) (p prompt, cut string, err error) {
	embedding, err := m.EncodePrompt(ctx, text)
	if err != nil {
		return p, "", err
	}
	for i := range embedding.Tokens {
		token := make([]float64, embedding.Width)
		for k, x := range embedding.Context[i*embedding.Width : (i+1)*embedding.Width] {
			token[k] = float64(x)
		}
		p.tokens = append(p.tokens, token)
	}
	tokenizer := m.Towers[0].Tokenizer
	ids, _ := tokenizer.Encode(text)
	if end := slices.Index(ids[1:], tokenizer.EndID()); end > 0 { // end+1 is the end token's place, end that before it
		p.last = end
	}
	return p, embedding.Cut, nil
}

// step is one edit: of the prompts themselves, and then of what still stands for them.
func (e *editor) step(ctx context.Context, step int) (map[string]any, error) {
	var pairs []pair
	if step == 0 {
		for _, p := range e.erase {
			pairs = append(pairs, aligned(p, e.replace)...)
		}
	} else {
		var tokens [][]float64
		for _, p := range e.erase {
			tokens = append(tokens, p.tokens...)
		}
		derived, err := e.derive(ctx, tokens)
		if err != nil {
			return nil, err
		}
		for i, c := range derived {
			pairs = append(pairs, pair{from: c, to: e.replace.tokens[i%len(e.replace.tokens)]})
		}
	}
	before := e.current
	edited, err := closedFormEdit(ctx, before, pairs, e.preserve, e.recipe.Edit.Lambda, e.recipe.Edit.EraseScale, e.recipe.Edit.preserveScale())
	if err != nil {
		return nil, err
	}
	fields := map[string]any{
		"tokens": len(pairs),
	}
	for name, figure := range map[string]func() (float64, error){
		"erased_error":    func() (float64, error) { return relativeError(ctx, edited, before, pairs) },
		"preserved_error": func() (float64, error) { return relativeError(ctx, edited, e.original, identical(e.preserve)) },
		"change":          func() (float64, error) { return relativeChange(edited, e.original), nil },
	} {
		x, err := figure()
		if err == nil {
			err = train.CheckFinite(strings.ReplaceAll(name, "_", " "), x, step+1)
		}
		if err != nil {
			return nil, err
		}
		fields[name] = x
	}
	e.current = edited
	return fields, nil
}

// derive finds the embeddings under which the edited keys and values are nearest to those that the tokens had in the
// original model (Gong et al. 2024, section 3.2):
//
//	c' = (Σ WᵀW + ρI)⁻¹ Σ WᵀW₀c
func (e *editor) derive(ctx context.Context, tokens [][]float64) ([][]float64, error) {
	gram := scaledIdentity(e.width, e.recipe.Edit.Regularization)
	if err := addGrams(ctx, gram, e.current); err != nil {
		return nil, err
	}
	if err := gram.factor(); err != nil {
		return nil, err
	}
	out := make([][]float64, len(tokens))
	err := inParallel(ctx, len(tokens), func(i int) {
		out[i] = make([]float64, e.width)
		for k, w := range e.current {
			w.addTransposed(e.original[k].apply(tokens[i]), out[i])
		}
		gram.solve(out[i])
	})
	return out, err
}

// tensors are the UNet's parameters as they are; made are those among them that belong to the caller.
func (e *editor) tensors() (all, made []*engine.Tensor) {
	all = slices.Clone(e.model.UNetParams.Tensors)
	for k, i := range e.index {
		w := e.current[k]
		t := engine.Float32s(w.float32s(), w.rows, w.columns)
		all[i], made = t, append(made, t)
	}
	return all, made
}

func (e *editor) save() ([]weights.Deferred, any, error) {
	var out []*weights.Tensor
	for k, i := range e.index {
		w := e.current[k]
		out = append(out, weights.NewFloat32(e.model.UNetParams.Specs[i].Name, []int{w.rows, w.columns}, w.float32s()))
	}
	return weights.DeferAll(out), struct{}{}, nil
}

func (e *editor) restore(_ int, source weights.Source, _ func(any) error) error {
	for k, i := range e.index {
		name := e.model.UNetParams.Specs[i].Name
		t, err := source.Tensor(name)
		if err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
		values, err := t.Float32()
		if err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
		w := e.current[k]
		if !slices.Equal(t.Shape, []int{w.rows, w.columns}) {
			return fmt.Errorf("checkpoint: %s is %v, not %v", name, t.Shape, []int{w.rows, w.columns})
		}
		e.current[k] = newMatrix(values, w.rows, w.columns)
	}
	return nil
}

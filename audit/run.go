package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// Hooks connect an audit to whoever started it. All are optional.
type Hooks struct {
	Finish  <-chan struct{}          // closed: end after the cell or step under way
	OnRow   func(Row, bool)          // a finished cell, and whether it was found finished already
	OnStep  func(model, what string) // what is being done
	OnEvent func(train.Event)        // of the fine-tuning under way
}

// auditor is an audit under way.
type auditor struct {
	plan     Plan
	engine   *engine.Engine
	detector score.Detector
	dir      string
	hooks    Hooks
}

// Run measures every cell of the plan, in the order of models and adaptations, and keeps each in dir as soon as it is
// finished. Cells that are found there are not measured again; as every picture is a pure function of the plan, the
// result is the same.
func Run(ctx context.Context, e *engine.Engine, p Plan, d score.Detector, dir string, h Hooks) ([]Row, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	for _, sub := range []string{"cells", "pictures"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("audit: %w", err)
		}
	}
	a := &auditor{plan: p, engine: e, detector: d, dir: dir, hooks: h}
	var rows []Row
	for _, m := range p.Models {
		select {
		case <-h.Finish:
			return nil, train.ErrInterrupted
		default:
		}
		found, err := a.model(ctx, m)
		if err != nil {
			return nil, fmt.Errorf("audit: model %s: %w", m.Name, err)
		}
		rows = append(rows, found...)
	}
	return rows, nil
}

// model measures one model as it is and after each adaptation. It is loaded only if a cell is missing.
func (a *auditor) model(ctx context.Context, m Model) ([]Row, error) {
	var rows []Row
	var loaded *sd.Model
	load := func() (err error) {
		if loaded == nil {
			loaded, err = sd.Load(a.engine, m.Dir)
		}
		return err
	}
	defer func() {
		if loaded != nil {
			loaded.Free()
		}
	}()
	weights, err := HashModel(m.Dir)
	if err != nil {
		return nil, err
	}
	before := Row{Model: m.Name, Adaptation: none, Seed: a.plan.Seed, Gradients: m.Gradients}
	if before.Fingerprint, err = a.plan.fingerprint(weights, a.detector.Name(), nil); err != nil {
		return nil, err
	}
	row, found, err := a.finished(before)
	if err == nil && !found {
		if err = load(); err == nil {
			row, err = a.untouched(ctx, loaded, before)
		}
	}
	if err != nil {
		return nil, err
	}
	a.report(row, found)
	rows = append(rows, row)
	for _, adaptation := range a.plan.Adaptations {
		if adaptation.Models != nil && !slices.Contains(adaptation.Models, m.Name) {
			continue
		}
		cells, missing, err := a.cells(m, weights, adaptation)
		if err == nil && missing {
			if err = load(); err == nil {
				cells, err = a.adapt(ctx, loaded, adaptation, cells)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("adaptation %s: %w", adaptation.Name, err)
		}
		rows = append(rows, cells...)
	}
	return rows, nil
}

func (a *auditor) report(r Row, found bool) {
	if a.hooks.OnRow != nil {
		a.hooks.OnRow(r, found)
	}
}

// cells are the rows of an adaptation, as far as they are finished.
func (a *auditor) cells(m Model, weights string, adaptation Adaptation) (rows []Row, missing bool, err error) {
	fingerprint, err := a.plan.fingerprint(weights, a.detector.Name(), &adaptation)
	if err != nil {
		return nil, false, err
	}
	for _, steps := range adaptation.Steps {
		row, found, err := a.finished(Row{Model: m.Name, Adaptation: adaptation.Name, Steps: steps, Seed: a.plan.Seed, Gradients: m.Gradients, Fingerprint: fingerprint})
		if err != nil {
			return nil, false, err
		}
		rows, missing = append(rows, row), missing || !found
		if found {
			a.report(row, true)
		}
	}
	return rows, missing, nil
}

func (a *auditor) untouched(ctx context.Context, m *sd.Model, row Row) (Row, error) {
	net := denoise.NewNetwork(m)
	defer net.Free()
	return a.measure(ctx, net, denoise.Point(m.UNetParams.Tensors), row)
}

// adapt fine-tunes the model and measures it on the way.
func (a *auditor) adapt(ctx context.Context, m *sd.Model, adaptation Adaptation, cells []Row) ([]Row, error) {
	if a.hooks.OnStep != nil {
		a.hooks.OnStep(cells[0].Model, "fine-tuning "+adaptation.Name)
	}
	config := adaptation.Config
	config.Steps = slices.Max(adaptation.Steps)
	hooks := finetune.Hooks{Finish: a.hooks.Finish, OnEvent: a.hooks.OnEvent, Preview: func(ctx context.Context, net *denoise.Network, p denoise.Point, done int) error {
		i := slices.Index(adaptation.Steps, done)
		if i < 0 {
			return nil
		}
		row, found, err := a.finished(cells[i])
		if err == nil && !found {
			if row, err = a.measure(ctx, net, p, cells[i]); err == nil {
				a.report(row, false)
			}
		}
		cells[i] = row
		return err
	}}
	result, err := finetune.Run(ctx, m, m.UNetParams, config, adaptation.Data, hooks)
	if err != nil {
		return nil, err
	}
	result.Free()
	return cells, nil
}

// measure fills a row for one point of a network, and keeps it.
func (a *auditor) measure(ctx context.Context, net *denoise.Network, p denoise.Point, row Row) (Row, error) {
	if a.hooks.OnStep != nil {
		a.hooks.OnStep(row.Model, "measuring "+row.cell())
	}
	cache, err := data.OpenCache("", embeddingMemory, nil)
	if err != nil {
		return row, err
	}
	g, err := generate.New(ctx, net, p, a.plan.Generate, cache)
	if err != nil {
		return row, err
	}
	row.Pictures = nil
	if row.IP, err = a.count(ctx, g, "harm", a.plan.Harm, &row, func(f score.Finding, _ Prompt) bool { return a.plan.Harmful.Holds(f) }); err != nil {
		return row, err
	}
	if row.Benign, err = a.count(ctx, g, "benign", a.plan.Benign, &row, func(f score.Finding, p Prompt) bool { return f.Labels.Matches(p.Want) }); err != nil {
		return row, err
	}
	row.IPInterval, row.BenignInterval = row.IP.Wilson(), row.Benign.Wilson()
	if row.HarmMSE, err = a.harmMSE(ctx, net, p); err != nil {
		return row, err
	}
	return row, a.keep(row)
}

// embeddingMemory holds the prompts of a cell.
const embeddingMemory = 256 << 20

// count makes the pictures of a set and counts those for which the predicate holds.
func (a *auditor) count(ctx context.Context, g *generate.Generator, set string, p Prompts, row *Row, holds func(score.Finding, Prompt) bool) (score.Rate, error) {
	rate := score.Rate{N: p.Pictures}
	var requests []generate.Request
	for i := range p.Pictures {
		requests = append(requests, p.request(i, a.plan.Seed))
	}
	pictures, err := g.Pictures(ctx, requests)
	if err != nil {
		return rate, err
	}
	images := make([]*data.RGB, len(pictures))
	for i, picture := range pictures {
		images[i] = picture.Image
	}
	findings, err := a.detector.Detect(ctx, images)
	if err != nil {
		return rate, err
	}
	if len(findings) != len(images) {
		return rate, fmt.Errorf("detector %s labelled %d of %d pictures", a.detector.Name(), len(findings), len(images))
	}
	for i, found := range findings {
		prompt := p.List[i%len(p.List)]
		if holds(found, prompt) {
			rate.K++
		}
		if i >= a.plan.Keep {
			continue
		}
		file := filepath.Join("pictures", fmt.Sprintf("%s-%s-%05d.png", row.cell(), set, i))
		if err := data.SavePNG(filepath.Join(a.dir, file), images[i]); err != nil {
			return rate, err
		}
		row.Pictures = append(row.Pictures, Kept{File: filepath.ToSlash(file), Prompt: prompt.Text, Set: set, Finding: found, Flagged: a.plan.Harmful.Holds(found)})
	}
	return rate, nil
}

// harmMSE is the denoising error on harmful pictures; 0 where the plan has none.
func (a *auditor) harmMSE(ctx context.Context, net *denoise.Network, p denoise.Point) (float64, error) {
	if len(a.plan.HarmData) == 0 || a.plan.HarmBatches == 0 {
		return 0, nil
	}
	cache, err := data.OpenCache("", embeddingMemory, nil)
	if err != nil {
		return 0, err
	}
	set, err := denoise.NewDataset("harm", net.Model, a.plan.HarmData, data.Preprocess{Resolution: net.Model.Resolution()}, cache, denoise.DatasetOptions{Tokenizer: net.Tokenizer()}, nil)
	if err != nil {
		return 0, err
	}
	sampler, err := set.Sampler(a.plan.Seed, "harm mse", a.plan.HarmBatch)
	if err != nil {
		return 0, err
	}
	total := 0.0
	for i := range a.plan.HarmBatches {
		b, err := sampler.Batch(ctx, i)
		if err != nil {
			return 0, err
		}
		value, err := net.Value(ctx, p, denoise.Loss{}, b)
		b.Free()
		if err != nil {
			return 0, err
		}
		total += value
	}
	if math.IsNaN(total) || math.IsInf(total, 0) {
		return 0, fmt.Errorf("the denoising error on harmful pictures is %v: the model's weights have diverged", total)
	}
	return total / float64(a.plan.HarmBatches), nil
}

// finished reads a cell that an earlier call kept. One that is damaged, that was measured on something else, or whose
// pictures are gone counts as missing and is made anew.
func (a *auditor) finished(row Row) (Row, bool, error) {
	b, err := os.ReadFile(a.cellPath(row))
	if errors.Is(err, os.ErrNotExist) {
		return row, false, nil
	}
	if err != nil {
		return row, false, fmt.Errorf("audit: %w", err)
	}
	var kept Row
	if err := json.Unmarshal(b, &kept); err != nil || kept.cell() != row.cell() || kept.Fingerprint != row.Fingerprint {
		return row, false, nil
	}
	for _, picture := range kept.Pictures {
		if _, err := os.Stat(filepath.Join(a.dir, filepath.FromSlash(picture.File))); err != nil {
			return row, false, nil
		}
	}
	kept.Gradients = row.Gradients // of the plan: the same weights may have been said to cost something else
	return kept, true, nil
}

func (a *auditor) cellPath(row Row) string { return filepath.Join(a.dir, "cells", row.cell()+".json") }

// keep writes a finished cell; its name appears only when it is whole.
func (a *auditor) keep(row Row) error {
	b, err := json.MarshalIndent(row, "", "  ")
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if err := files.WriteBytes(a.cellPath(row), append(b, '\n')); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

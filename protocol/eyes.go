package protocol

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/judge/detectors"
	"github.com/resalign/resalign/judge/folders"
)

// openMetrics opens the metrics of all sets, and what their distances are from.
func (a *auditor) openMetrics(ctx context.Context, closers *[]func()) error {
	open := a.options.OpenMetric
	if open == nil {
		open = folders.OpenMetric
	}
	in := &a.inputs
	in.metrics, in.references = map[string]*folders.Metric{}, map[string]reference{}
	bySpec := map[string]*folders.Metric{}
	byPath := map[string]reference{}
	for i := range in.sets {
		s := &in.sets[i]
		fail := func(err error) error { return fmt.Errorf("prompts %s: %w", s.Name, err) }
		for _, specification := range s.Metrics {
			m := bySpec[specification]
			if m == nil {
				text, err := a.options.located(ctx, specification)
				if err == nil {
					m, err = open(a.engine, text)
				}
				if err != nil {
					return fail(err)
				}
				*closers = append(*closers, m.Close)
				bySpec[specification] = m
			}
			from := ""
			if m.NeedsReference() {
				r, known := byPath[s.Reference]
				if !known {
					var err error
					if r, err = openReference(ctx, s.Reference); err != nil {
						return fail(err)
					}
					byPath[s.Reference], in.references[r.hash] = r, r
				}
				if err := r.suits(m); err != nil {
					return fail(err)
				}
				if n := len(s.prompts) * s.Pictures; n < 2 {
					return fail(fmt.Errorf("%s compares sets of pictures, but this is one picture; add prompts or pictures", m.Kind))
				}
				from = r.hash
			}
			one := newMeasuring(m, from)
			in.metrics[one.key()] = m
			s.measuring = append(s.measuring, one)
		}
	}
	return nil
}

// eyes look at the pictures of one store: with a detector and with metrics, at each picture once.
type eyes struct {
	store
	dir      string
	shard    generate.Shard
	set      loadedSet
	detector *detectors.Opened // nil: none
	metrics  map[string]*folders.Metric
	known    seen
	keepers  []keeper // one for each metric; those that share features share theirs
}

func (a *auditor) eyes(s store) (_ *eyes, err error) {
	set := a.inputs.set(s.Set)
	e := &eyes{store: s, dir: a.dir, shard: a.options.Shard, set: set, metrics: a.inputs.metrics}
	if set.counts() {
		e.detector = a.inputs.detectors[set.Detector]
	}
	if e.known, err = s.look(a.dir); err != nil {
		return nil, err
	}
	for _, m := range s.Metrics {
		if i := sameFeatures(s.Metrics, m); i < len(e.keepers) {
			e.keepers = append(e.keepers, e.keepers[i])
			continue
		}
		k, err := m.open(s.path(a.dir), a.options.Shard)
		if err != nil {
			return nil, errors.Join(err, e.close())
		}
		e.keepers = append(e.keepers, k)
	}
	return e, nil
}

// sameFeatures is the place of the first metric that keeps the same of pictures.
func sameFeatures(all []measuring, m measuring) int {
	for i, other := range all {
		if other.key() == m.key() {
			return i
		}
	}
	return len(all)
}

func (e *eyes) close() (err error) {
	for i, k := range e.keepers {
		if sameFeatures(e.Metrics, e.Metrics[i]) == i {
			err = errors.Join(err, k.close())
		}
	}
	return err
}

// look looks at pictures in every way in which they were not looked at yet, and keeps what it finds.
func (e *eyes) look(ctx context.Context, now []picture, images []*data.RGB) error {
	for k, m := range e.Metrics {
		if sameFeatures(e.Metrics, m) == k {
			if err := e.measure(ctx, k, now, images); err != nil {
				return err
			}
		}
	}
	return e.detect(ctx, now, images)
}

// measure has a metric look.
func (e *eyes) measure(ctx context.Context, k int, now []picture, images []*data.RGB) error {
	var files, prompts []string
	var todo []*data.RGB
	for i, p := range now {
		if !e.known.measures[k].has(p.file()) {
			files, prompts, todo = append(files, p.file()), append(prompts, p.text), append(todo, images[i])
		}
	}
	if len(todo) == 0 {
		return nil
	}
	metric := e.metrics[e.Metrics[k].key()]
	if metric.NeedsReference() {
		vectors, err := metric.Features(ctx, todo)
		if err != nil {
			return err
		}
		if len(vectors) != len(todo) {
			return fmt.Errorf("%s looked at %d of %d pictures", metric.Kind, len(vectors), len(todo))
		}
		return e.keepers[k].keepFeatures(files, vectors)
	}
	values, err := metric.Values(ctx, todo, prompts)
	if err != nil {
		return err
	}
	return e.keepers[k].keepValues(files, values)
}

// detect has the detector look, and writes the pictures' lines, which are there without one too.
func (e *eyes) detect(ctx context.Context, now []picture, images []*data.RGB) error {
	var lines []finding
	var todo []*data.RGB
	for i, p := range now {
		if _, known := e.known.found[p.file()]; !known {
			lines = append(lines, finding{File: p.file(), Prompt: p.text, Seed: p.seed.Run, Guidance: p.guidance, Wanted: p.wanted})
			todo = append(todo, images[i])
		}
	}
	if e.detector != nil && len(todo) > 0 {
		found, err := e.detector.Detect(ctx, todo)
		if err != nil {
			return err
		}
		if len(found) != len(todo) {
			return fmt.Errorf("detector %s looked at %d of %d pictures", e.detector.Name(), len(found), len(todo))
		}
		for i, f := range found {
			if err := e.detector.Accept(e.set.Criterion, f); err != nil {
				return fmt.Errorf("prompts %s: %w", e.set.Name, err)
			}
			lines[i].Finding = f
		}
	}
	out := make([]any, len(lines))
	for i, line := range lines {
		out[i] = line
	}
	return appendLines(filepath.Join(e.path(e.dir), e.findingsFile(e.shard)), out)
}

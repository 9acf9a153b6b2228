package folders

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/judge/detectors"
	"github.com/resalign/resalign/score"
)

// Judge is a detector with what counts as harmful.
type Judge struct {
	Detector  *detectors.Opened
	Criterion score.Criterion
}

// Job is what is to be found out about some folders.
type Job struct {
	Folders       []string // the first is what the others are compared with
	Out           string   // folder for what is found, new or of an earlier call
	Judges        []Judge
	Metrics       []*Metric
	Reference     string // pictures for distances: a folder, or a .npz of statistics
	SaveReference string // .npz for the statistics of the reference pictures; empty: none
	Against       string // folder of the pictures for metrics of pairs
	Seed          uint64 // of the bootstrap
}

// Run scores the folders. What is found about each picture is kept in job.Out as it is found; a later call, for the same
// or more folders, looks at new pictures only. When h.Finish is closed it returns train.ErrInterrupted.
func Run(ctx context.Context, e *engine.Engine, job Job, h Hooks) (*Result, error) {
	if h.Warn == nil {
		h.Warn = func(string) {}
	}
	r := &runner{engine: e, job: job, hooks: h}
	if err := r.read(ctx); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(job.Out, 0o755); err != nil {
		return nil, fmt.Errorf("the folder for findings cannot be made: %w", err)
	}
	store, err := openFindings(job.Out, h.Warn)
	if err != nil {
		return nil, err
	}
	r.findings = store
	err = r.all(ctx)
	if err := errors.Join(err, store.close()); err != nil {
		return nil, err
	}
	return r.result()
}

// runner is a job under way.
type runner struct {
	engine    *engine.Engine
	job       Job
	hooks     Hooks
	findings  *findings
	folders   []*Folder
	reference *Folder // nil: none, or statistics
	against   *Folder
	values    [][]measured // for each folder, one for each measure
}

// measured is what one measure says of a folder.
type measured struct {
	kind, by  string
	criterion *score.Criterion // of a detector
	values    []float64        // of each picture: 0 or 1 by a detector, NaN where there is none; nil for a distance
	found     []score.Finding  // by a detector
	distance  float64
	sd        *float64
	pictures  int // that were looked at
}

// read lists all pictures before anything is computed.
func (r *runner) read(ctx context.Context) (err error) {
	for _, dir := range r.job.Folders {
		f, err := Read(ctx, dir)
		if err != nil {
			return err
		}
		for _, m := range r.job.Metrics {
			if m.prompts && !f.Prompted {
				return fmt.Errorf("%s has no prompts, which %s needs; add a metadata.jsonl with file_name and prompt, as resalign generate writes it", dir, m.Kind)
			}
		}
		r.folders = append(r.folders, f)
	}
	for _, m := range r.job.Metrics {
		if m.NeedsReference() && r.reference == nil && r.job.Reference != "" {
			if isStatistics(r.job.Reference) {
				if !m.moments {
					return fmt.Errorf("%s holds statistics, but %s needs the reference pictures themselves; name their folder", r.job.Reference, m.Kind)
				}
				continue
			}
			if r.reference, err = Read(ctx, r.job.Reference); err != nil {
				return err
			}
		}
		if m.NeedsPairs() && r.against == nil {
			if r.against, err = Read(ctx, r.job.Against); err != nil {
				return err
			}
		}
	}
	return nil
}

func isStatistics(path string) bool { return strings.EqualFold(filepath.Ext(path), ".npz") }

// all takes one measure after the other, so that a folder's pictures are looked at by one network at a time.
func (r *runner) all(ctx context.Context) error {
	r.values = make([][]measured, len(r.folders))
	add := func(i int, m measured, err error) error {
		if err == nil {
			r.values[i] = append(r.values[i], m)
		}
		return err
	}
	for _, j := range r.job.Judges {
		for i, f := range r.folders {
			m, err := r.detect(ctx, j, f)
			if err := add(i, m, err); err != nil {
				return err
			}
		}
	}
	for _, metric := range r.job.Metrics {
		if metric.NeedsReference() {
			if err := r.distances(ctx, metric, add); err != nil {
				return err
			}
			continue
		}
		for i, f := range r.folders {
			m, err := r.measure(ctx, metric, f)
			if err := add(i, m, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// detect has a detector look at the pictures of a folder that it has not seen.
func (r *runner) detect(ctx context.Context, j Judge, f *Folder) (measured, error) {
	by := j.Detector.Name()
	var todo []task
	asked := map[string]bool{}
	for _, p := range f.Pictures {
		if _, have := r.findings.have[key{p.Hash, by, ""}]; !have && !asked[p.Hash] {
			asked[p.Hash] = true
			todo = append(todo, task{Picture: p})
		}
	}
	err := look(ctx, j.Detector.Kind, todo, r.hooks, func(ctx context.Context, batch []sample) ([]score.Finding, error) {
		return j.Detector.Detect(ctx, pixels(batch))
	}, func(batch []sample, found []score.Finding) error {
		entries := make([]entry, len(batch))
		for i, b := range batch {
			entries[i] = entry{Picture: b.Hash, By: by, Finding: &found[i]}
		}
		return r.findings.keep(entries)
	})
	if err != nil {
		return measured{}, err
	}
	m := measured{kind: j.Detector.Kind, by: by, criterion: &j.Criterion, pictures: len(f.Pictures)}
	for _, p := range f.Pictures {
		finding := *r.findings.have[key{p.Hash, by, ""}].Finding
		if err := j.Detector.Accept(j.Criterion, finding); err != nil {
			return m, err
		}
		value := 0.0
		if j.Criterion.Holds(finding) {
			value = 1
		}
		m.found, m.values = append(m.found, finding), append(m.values, value)
	}
	return m, nil
}

// measure has a metric look at the pictures of a folder that it has not seen.
func (r *runner) measure(ctx context.Context, metric *Metric, f *Folder) (measured, error) {
	var others map[string]Picture
	if metric.pairs {
		others = r.against.byName()
	}
	tasks := make([]task, len(f.Pictures))
	keys := make([]key, len(f.Pictures))
	var todo []task
	asked := map[key]bool{}
	paired := 0
	for i, p := range f.Pictures {
		t, k := task{Picture: p}, key{picture: p.Hash, by: metric.Name}
		if metric.prompts {
			k.of = p.Prompt
		}
		if metric.pairs {
			other, ok := others[p.Name]
			if !ok {
				continue
			}
			paired++
			t.other, k.of = &other, other.Hash
		}
		tasks[i], keys[i] = t, k
		if _, have := r.findings.have[k]; !have && !asked[k] {
			asked[k] = true
			todo = append(todo, t)
		}
	}
	if metric.pairs {
		switch missing := len(f.Pictures) - paired; {
		case paired == 0:
			return measured{}, fmt.Errorf("no picture of %s has the name of one in %s, with which %s would compare it", f.Dir, r.against.Dir, metric.Kind)
		case missing > 0:
			r.hooks.Warn(fmt.Sprintf("%d of the %d pictures of %s have no counterpart in %s and are left out of %s", missing, len(f.Pictures), f.Dir, r.against.Dir, metric.Kind))
		}
	}
	of := func(t task) string {
		switch {
		case metric.prompts:
			return t.Prompt
		case metric.pairs:
			return t.other.Hash
		}
		return ""
	}
	err := look(ctx, metric.Kind, todo, r.hooks, func(ctx context.Context, batch []sample) ([]float64, error) {
		return metric.values(ctx, batch)
	}, func(batch []sample, values []float64) error {
		entries := make([]entry, len(batch))
		for i, b := range batch {
			entries[i] = entry{Picture: b.Hash, By: metric.Name, Of: of(b.task), Value: &values[i]}
		}
		return r.findings.keep(entries)
	})
	if err != nil {
		return measured{}, err
	}
	m := measured{kind: metric.Kind, by: metric.Name}
	for _, k := range keys {
		value := math.NaN()
		if k.by != "" {
			value = *r.findings.have[k].Value
			m.pictures++
		}
		m.values = append(m.values, value)
	}
	return m, nil
}

// distances measures how far each folder is from the reference.
func (r *runner) distances(ctx context.Context, metric *Metric, add func(i int, m measured, err error) error) (err error) {
	store, err := openFeatures(r.job.Out, metric.extractor, metric.width)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	var reference Reference
	if r.reference == nil {
		statistics, err := score.ReadStatistics(r.job.Reference)
		if err != nil {
			return err
		}
		if len(statistics.Mean) != metric.width {
			return fmt.Errorf("%s has statistics of %d features, but %s computes %d; take statistics of the same network", r.job.Reference, len(statistics.Mean), metric.Kind, metric.width)
		}
		reference.Statistics = &statistics
	} else {
		if reference.Features, err = r.features(ctx, metric, store, r.reference); err != nil {
			return err
		}
		if metric.moments {
			statistics, err := score.Moments(reference.Features)
			if err != nil {
				return fmt.Errorf("%s: %w", r.reference.Dir, err)
			}
			reference.Statistics = &statistics
			if r.job.SaveReference != "" {
				if err := score.WriteStatistics(r.job.SaveReference, statistics); err != nil {
					return err
				}
			}
		}
	}
	for i, f := range r.folders {
		own, err := r.features(ctx, metric, store, f)
		if err != nil {
			return err
		}
		m := measured{kind: metric.Kind, by: metric.Name, pictures: len(f.Pictures)}
		m.distance, m.sd, err = metric.distance(ctx, r.engine, own, reference)
		if err != nil {
			err = fmt.Errorf("%s and %s: %w", f.Dir, r.job.Reference, err)
		} else if metric.moments && len(f.Pictures) < 2*metric.width {
			r.hooks.Warn(fmt.Sprintf("%s has %d pictures; below some thousands %s comes out too large, the more the fewer they are", f.Dir, len(f.Pictures), metric.Kind))
		}
		if err := add(i, m, err); err != nil {
			return err
		}
	}
	return nil
}

// features are those of all pictures of a folder.
func (r *runner) features(ctx context.Context, metric *Metric, store *Features, f *Folder) ([][]float32, error) {
	var todo []task
	asked := map[string]bool{}
	for _, p := range f.Pictures {
		if store.have[p.Hash] == nil && !asked[p.Hash] {
			asked[p.Hash] = true
			todo = append(todo, task{Picture: p})
		}
	}
	err := look(ctx, metric.Kind, todo, r.hooks, func(ctx context.Context, batch []sample) ([][]float32, error) {
		return metric.features(ctx, pixels(batch))
	}, func(batch []sample, vectors [][]float32) error {
		hashes := make([]string, len(batch))
		for i, b := range batch {
			hashes[i] = b.Hash
		}
		return store.Keep(hashes, vectors)
	})
	if err != nil {
		return nil, err
	}
	out := make([][]float32, len(f.Pictures))
	for i, p := range f.Pictures {
		out[i] = store.have[p.Hash]
	}
	return out, nil
}

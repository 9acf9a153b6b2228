package diagnose

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/recipe"
)

// Hooks connect a diagnosis to whoever started it. All are optional.
type Hooks struct {
	// Finish, when closed, ends the diagnosis after the Hessian product or fine-tuning step under way; finished draws are kept.
	Finish <-chan struct{}
	OnStep func(model, quantity string, done, total int)
	// OnPart tells that a quantity of a model is finished, or was found finished.
	OnPart  func(model, quantity string, took time.Duration, found bool)
	Warn    func(string)
	Program string   // version of the program, for the record
	Command []string // its command line, for the record
}

// runner is a diagnosis under way.
type runner struct {
	engine  *engine.Engine
	out     string
	options Options
	hooks   Hooks
	cache   *data.Cache

	harmful, benign, retain string // hashes of the pictures
	size                    int    // of θ
}

// cacheMemory bounds what encoded pictures and prompts may take.
const cacheMemory = 2 << 30

// Run does what is left of a diagnosis in the folder out and writes ResultFile and TableFile there. The same options and
// pictures give the same result, whether in one call or in several; draws that are there already are not made again. It
// returns train.ErrInterrupted if it was asked to finish early.
func Run(ctx context.Context, e *engine.Engine, out string, o Options, h Hooks) (*Diagnosis, error) {
	if problems := o.Problems(); len(problems) > 0 {
		return nil, &recipe.Error{Name: "diagnosis", Problems: problems}
	}
	r := &runner{engine: e, out: out, options: o, hooks: h}
	if r.hooks.Warn == nil {
		r.hooks.Warn = func(string) {}
	}
	hashes := make([]map[string]string, len(o.Models))
	for i, m := range o.Models {
		var err error
		if hashes[i], err = modelHashes(m.Dir); err != nil {
			return nil, err
		}
	}
	if err := r.readPictures(); err != nil {
		return nil, err
	}
	if err := claim(out); err != nil {
		return nil, err
	}
	d := &Diagnosis{}
	for i, m := range o.Models {
		found, err := r.diagnose(ctx, m, hashes[i])
		if err != nil {
			return nil, err
		}
		if i > 0 {
			if err := r.compare(ctx, &found, hashes[0], hashes[i]); err != nil {
				return nil, err
			}
		}
		d.Models = append(d.Models, found)
	}
	d.Differences = differences(d.Models)
	d.Settings = r.settings()
	return d, d.write(out)
}

func (r *runner) readPictures() (err error) {
	for _, set := range []struct {
		pictures data.Mixture
		hash     *string
	}{{r.options.Harmful, &r.harmful}, {r.options.Benign, &r.benign}, {r.options.Retain, &r.retain}} {
		if *set.hash, err = mixtureHash(set.pictures); err != nil {
			return err
		}
	}
	r.cache, err = data.OpenCache("", cacheMemory, r.hooks.Warn)
	return err
}

func (r *runner) step(model, quantity string, done, total int) {
	if r.hooks.OnStep != nil {
		r.hooks.OnStep(model, quantity, done, total)
	}
}

// examination is a model whose parts are being measured; it is read into memory when the first of them is missing.
type examination struct {
	*runner
	Model
	keys    keys
	subject *subject
}

// keys are the fingerprints of what draws depend on.
type keys struct {
	theta  string // the model, θ and how pictures are drawn
	tuned  string // θ_FT
	places string // the line's
}

func (r *runner) keys(hashes map[string]string) (k keys, err error) {
	o := r.options
	common := []any{hashes, r.engine.Kind(), o.Seed, o.Tuning.BatchSize, o.Tuning.Resolution}
	theta := append(slices.Clone(common), o.Parameters)
	if o.Parameters == LoRA {
		theta = append(theta, o.Tuning.Rank, o.Tuning.Targets, o.adapterScale(), o.DownStd)
	}
	if k.theta, err = fingerprint(theta...); err != nil {
		return k, err
	}
	if k.tuned, err = fingerprint(append(common, o.Tuning, r.benign)...); err != nil {
		return k, err
	}
	k.places, err = fingerprint(o.line())
	return k, err
}

func (x *examination) load(context.Context) (*subject, error) {
	if x.subject != nil {
		return x.subject, nil
	}
	s, err := x.read(x.Dir)
	x.subject = s
	return s, err
}

func (x *examination) loadTuned(ctx context.Context) (*subject, error) {
	s, err := x.load(ctx)
	if err != nil || s.tuned != nil {
		return s, err
	}
	return s, x.tune(ctx, s, x.Name, x.keys.tuned)
}

// diagnose measures everything that concerns one model alone.
func (r *runner) diagnose(ctx context.Context, model Model, hashes map[string]string) (out Diagnosed, err error) {
	out.Model = model
	x := &examination{runner: r, Model: model}
	defer func() {
		if x.subject != nil {
			x.subject.free()
		}
	}()
	if x.keys, err = r.keys(hashes); err != nil {
		return out, err
	}
	if out.Harm, err = x.curvature(ctx, "harm", r.harmful, -1, func(s *subject) *denoise.Sampler { return s.harmful }); err != nil {
		return out, err
	}
	if out.FineTuning, err = x.curvature(ctx, "fine-tuning", r.benign, 1, func(s *subject) *denoise.Sampler { return s.benign }); err != nil {
		return out, err
	}
	if out.Systems, err = x.systems(ctx); err != nil {
		return out, err
	}
	out.Line, err = x.line(ctx)
	return out, err
}

// curvature measures the Hessian at θ of the denoising error on some pictures, times sign.
func (x *examination) curvature(ctx context.Context, loss, pictures string, sign float64, set func(*subject) *denoise.Sampler) (c Curvature, err error) {
	o := x.options
	key, err := fingerprint(x.keys.theta, pictures)
	if err != nil {
		return c, err
	}
	c.Probes, err = collect(ctx, x.runner, part[float64]{
		model: x.Name, quantity: "trace-" + loss, fingerprint: key, draws: o.Probes, prepare: x.load,
		measure: func(ctx context.Context, s *subject, i int) (float64, error) {
			return s.probe(ctx, set(s), o.Seed, sign, i)
		},
	})
	if err != nil {
		return c, err
	}
	c.Trace = estimate(c.Probes)
	if key, err = fingerprint(key, o.PowerIterations, o.Tolerance); err != nil {
		return c, err
	}
	c.Spectra, err = collect(ctx, x.runner, part[Spectrum]{
		model: x.Name, quantity: "spectrum-" + loss, fingerprint: key, draws: o.Draws, prepare: x.load,
		measure: func(ctx context.Context, s *subject, i int) (Spectrum, error) {
			return s.spectrum(ctx, set(s), o, sign, i)
		},
	})
	return c, err
}

func (x *examination) systems(ctx context.Context) ([]System, error) {
	o := x.options
	key, err := fingerprint(x.keys.theta, x.keys.tuned, x.harmful, o.PowerIterations, o.Tolerance, o.Gamma, o.Iterations, o.Damping)
	if err != nil {
		return nil, err
	}
	out, err := collect(ctx, x.runner, part[System]{
		model: x.Name, quantity: "hypergradient", fingerprint: key, draws: o.Draws, prepare: x.loadTuned,
		measure: func(ctx context.Context, s *subject, i int) (System, error) { return s.system(ctx, o, i) },
	})
	for i := range out {
		out[i].Contraction = out[i].contraction(o.Gamma, o.Damping)
	}
	return out, err
}

func (x *examination) line(ctx context.Context) (l Line, err error) {
	o := x.options
	key, err := fingerprint(x.keys.tuned, x.keys.places, x.harmful, x.retain)
	if err != nil {
		return l, err
	}
	places := o.line()
	rows, err := collect(ctx, x.runner, part[[]float64]{
		model: x.Name, quantity: "line", fingerprint: key, draws: o.LossBatches, prepare: x.loadTuned,
		measure: func(ctx context.Context, s *subject, i int) ([]float64, error) { return s.lossesAlong(ctx, places, i) },
	})
	if err != nil {
		return l, err
	}
	if key, err = fingerprint(x.keys.theta, x.keys.tuned); err != nil {
		return l, err
	}
	known, err := collect(ctx, x.runner, part[facts]{
		model: x.Name, quantity: "size", fingerprint: key, draws: 1, prepare: x.loadTuned,
		measure: func(_ context.Context, s *subject, _ int) (facts, error) { return s.facts() },
	})
	if err != nil {
		return l, err
	}
	x.size = known[0].Size
	return newLine(places, rows, known[0].Length, known[0].Norm), nil
}

// facts are what is read off a model once: the size of θ, ‖θ_FT − θ‖ and ‖θ‖.
type facts struct {
	Size   int     `json:"size"`
	Length float64 `json:"length"`
	Norm   float64 `json:"norm"`
}

func (s *subject) facts() (f facts, err error) {
	f.Size = s.size()
	if f.Norm, err = s.space.Norm(s.unet); err != nil {
		return f, err
	}
	change, err := s.space.Mix(1, s.tuned, -1, s.unet)
	if err != nil {
		return f, err
	}
	defer change.Free()
	f.Length, err = s.space.Norm(change)
	return f, err
}

// compare measures how far a model is from the base.
func (r *runner) compare(ctx context.Context, model *Diagnosed, base, hashes map[string]string) error {
	f, err := fingerprint(base["unet"], hashes["unet"])
	if err != nil {
		return err
	}
	all, err := collect(ctx, r, part[[]Length]{
		model: model.Name, quantity: "distance", fingerprint: f, draws: 1,
		prepare: func(context.Context) (*subject, error) { return nil, nil }, // no model in memory
		measure: func(context.Context, *subject, int) ([]Length, error) {
			return distances(r.options.Models[0].Dir, model.Dir)
		},
	})
	if err != nil {
		return err
	}
	d := &Distance{Layers: all[0], Blocks: byBlock(all[0]), Total: Length{Name: "UNet"}}
	for _, l := range d.Layers {
		d.Total = join(d.Total, l)
	}
	model.Distance = d
	for _, part := range slices.Sorted(maps.Keys(hashes)) {
		if part != "unet" && hashes[part] != base[part] {
			model.OtherFiles = append(model.OtherFiles, part)
		}
	}
	return nil
}

func (r *runner) settings() Settings {
	o, c := r.options, r.options.Tuning
	s := Settings{
		Parameters: o.Parameters, Size: r.size, Method: c.Method, Steps: c.Steps, Optimizer: c.Optimizer, LearningRate: c.LearningRate,
		BatchSize: c.BatchSize, Accumulation: c.Accumulation, Probes: o.Probes, Draws: o.Draws, PowerIterations: o.PowerIterations,
		Tolerance: o.Tolerance, Gamma: o.Gamma, Iterations: o.Iterations, Damping: o.Damping, LossBatches: o.LossBatches,
		Seed: o.Seed, Engine: r.engine.Description(),
	}
	if o.Parameters == LoRA {
		s.Rank = c.Rank
	}
	return s
}

// write keeps the result; the table first, as the result is what tells that all is there.
func (d *Diagnosis) write(out string) error {
	table, err := d.CSV()
	if err != nil {
		return err
	}
	if err := files.WriteBytes(filepath.Join(out, TableFile), table); err != nil {
		return fmt.Errorf("diagnosis: %w", err)
	}
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return fmt.Errorf("diagnosis: %w", err)
	}
	if err := files.WriteBytes(filepath.Join(out, ResultFile), append(b, '\n')); err != nil {
		return fmt.Errorf("diagnosis: %w", err)
	}
	return nil
}

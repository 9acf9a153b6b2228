package diagnose

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// subject is a model under diagnosis, in memory: the network, θ in it, and the pictures as this model encodes them.
type subject struct {
	model   *sd.Model
	net     *denoise.Network
	theta   denoise.Selection
	factors []*engine.Tensor // of the adapter that θ is; nil where θ are all weights
	space   *denoise.Space

	harmful, benign, retain *denoise.Sampler // retain is nil without retained pictures

	unet  denoise.Vector // all weights of the UNet
	tuned denoise.Vector // the same after fine-tuning; nil until tune
	freed func()         // releases what tune made
}

// read reads a model and lays θ out.
func (r *runner) read(dir string) (_ *subject, err error) {
	o := r.options
	m, err := sd.Load(r.engine, dir)
	if err != nil {
		return nil, err
	}
	s := &subject{model: m, unet: m.UNetParams.Tensors, space: denoise.NewSpace(m.Engine)}
	defer func() {
		if err != nil {
			s.free()
		}
	}()
	m.GradientCheckpointing = o.Tuning.GradientCheckpointing
	if o.Parameters == LoRA {
		layers, err := m.AttentionLayers(o.Tuning.Targets...)
		if err != nil {
			return nil, err
		}
		adapter, err := sd.NewAdapter(layers, o.Tuning.Rank, o.adapterScale())
		if err != nil {
			return nil, err
		}
		std := o.DownStd
		if std == 0 {
			std = 1 / float64(o.Tuning.Rank)
		}
		// An up factor of zero leaves the model as it is.
		s.factors = adapter.Draw(o.Seed, std, 0).Tensors
		s.net = denoise.NewNetwork(m, adapter)
		s.theta = s.net.Group(1)
	} else {
		s.net = denoise.NewNetwork(m)
		s.theta = s.net.Group(0)
	}
	for _, set := range []struct {
		name     string
		pictures data.Mixture
		into     **denoise.Sampler
	}{{"harmful", o.Harmful, &s.harmful}, {"benign", o.Benign, &s.benign}, {"retain", o.Retain, &s.retain}} {
		if len(set.pictures) == 0 {
			continue
		}
		if *set.into, err = r.sampler(m, set.name, set.pictures); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (o Options) adapterScale() float64 {
	if o.Tuning.Alpha == 0 {
		return 1
	}
	return o.Tuning.Alpha / float64(o.Tuning.Rank)
}

func (r *runner) sampler(m *sd.Model, name string, pictures data.Mixture) (*denoise.Sampler, error) {
	resolution := r.options.Tuning.Resolution
	if resolution == 0 {
		resolution = m.Resolution()
	}
	set, err := denoise.NewDataset(name, m, pictures, data.Preprocess{Resolution: resolution}, r.cache, denoise.DatasetOptions{}, r.hooks.Warn)
	if err != nil {
		return nil, err
	}
	return set.Sampler(r.options.Seed, "diagnosis "+name, r.options.Tuning.BatchSize)
}

func (s *subject) free() {
	if s.freed != nil {
		s.freed()
	}
	engine.Free(s.factors...)
	if s.net != nil {
		s.net.Free()
	}
	s.space.Free()
	s.model.Free()
}

// point is the network with the given weights of the UNet.
func (s *subject) point(unet denoise.Vector) (denoise.Point, error) {
	if s.factors == nil {
		return s.net.Point(unet)
	}
	return s.net.Point(unet, s.factors)
}

// tune fine-tunes the model, or takes up where an earlier call stopped: θ_FT.
func (r *runner) tune(ctx context.Context, s *subject, name, fingerprint string) (err error) {
	c := r.options.Tuning
	text, err := recipe.Encode(c)
	if err != nil {
		return err
	}
	// The folder's name says what it was made of, so that another fine-tuning never meets this one.
	dir := filepath.Join(r.out, tuningFolder, name+"-"+fingerprint[:12])
	var run *train.RunDir
	open := func() (*train.RunDir, error) {
		session := train.Session{Program: r.hooks.Program, Engine: r.engine.Description(), Command: r.hooks.Command, Seeds: map[string]uint64{"seed": c.Seed}}
		if train.IsRun(dir) {
			run, err = train.ResumeRun(dir, text, session)
		} else {
			run, err = train.CreateRun(dir, text, session)
		}
		return run, err
	}
	defer func() {
		if run != nil {
			err = errors.Join(err, run.Close())
		}
	}()
	result, err := finetune.Run(ctx, s.model, s.model.UNetParams, c, finetune.Data{Pictures: r.options.Benign, Cache: r.cache}, finetune.Hooks{
		OpenRun: open, CheckpointEvery: 50, Finish: r.hooks.Finish, Warn: r.hooks.Warn,
		OnEvent: func(e train.Event) { r.step(name, "fine-tuning", e.Step, c.Steps) },
	})
	if err != nil {
		return err
	}
	s.tuned, s.freed = result.UNet.Tensors, result.Free
	if result.Adapter != nil {
		merged, made, err := s.model.Merge(result.UNet, result.Adapter, result.Factors)
		s.freed = func() {
			engine.Free(made...)
			result.Free()
		}
		if err != nil {
			return err
		}
		s.tuned = merged.Tensors
	}
	return run.Finish()
}

// product is v ↦ Hv for the Hessian of the denoising error by θ.
func (s *subject) product(ctx context.Context, p denoise.Point, b *denoise.Batch) hypergrad.Product[denoise.Vector] {
	return func(v denoise.Vector) (denoise.Vector, error) {
		return s.net.HessianProduct(ctx, p, s.theta, denoise.Loss{}, b, v)
	}
}

// signs draws a probe of independent signs, the same for all models of one architecture.
func (s *subject) signs(seed uint64, keys ...any) denoise.Vector {
	return s.draw(func(name string, n int) []float32 {
		out := make([]float32, n)
		for i, x := range hypergrad.Rademacher(random.New(seed, append(keys, name)...), n) {
			out[i] = float32(x)
		}
		return out
	})
}

// normals draws a vector of independent normal numbers.
func (s *subject) normals(seed uint64, keys ...any) denoise.Vector {
	return s.draw(func(name string, n int) []float32 { return random.New(seed, append(keys, name)...).Normals(n) })
}

func (s *subject) draw(values func(name string, n int) []float32) denoise.Vector {
	specs := s.theta.Specs(s.net)
	out := make(denoise.Vector, len(specs))
	for i, spec := range specs {
		out[i] = engine.Float32s(values(spec.Name, spec.Size()), spec.EngineShape()...)
	}
	return out
}

// size is how many numbers θ has.
func (s *subject) size() int {
	n := 0
	for _, spec := range s.theta.Specs(s.net) {
		n += spec.Size()
	}
	return n
}

// probe is ⟨z, Hz⟩ for draw i of the set's pictures and of the signs z, with H = sign·∇²error: one term of Hutchinson's
// estimate of the trace of the Hessian of the loss over all pictures, noise and timesteps. As every probe has pictures of
// its own, the spread of the terms holds both kinds of chance.
func (s *subject) probe(ctx context.Context, set *denoise.Sampler, seed uint64, sign float64, i int) (float64, error) {
	b, err := set.Batch(ctx, i)
	if err != nil {
		return 0, err
	}
	defer b.Free()
	p, err := s.point(s.unet)
	if err != nil {
		return 0, err
	}
	z := s.signs(seed, "probe", i)
	defer z.Free()
	value, err := quadraticForm(s.space, s.product(ctx, p, b), z)
	return sign * value, err
}

// quadraticForm is ⟨v, Hv⟩.
func quadraticForm[V any](space hypergrad.Space[V], product hypergrad.Product[V], v V) (float64, error) {
	h, err := product(v)
	if err != nil {
		return 0, err
	}
	defer space.Release(h)
	value, err := space.Dot(v, h)
	if err == nil && (math.IsNaN(value) || math.IsInf(value, 0)) {
		err = fmt.Errorf("⟨z, Hz⟩ is %v: the model's weights are too large, or have diverged; make the model again with a lower learning rate", value)
	}
	return value, err
}

// spectrum is that of the Hessian of sign·error at θ, for draw i of the set's pictures.
func (s *subject) spectrum(ctx context.Context, set *denoise.Sampler, o Options, sign float64, i int) (Spectrum, error) {
	b, err := set.Batch(ctx, i)
	if err != nil {
		return Spectrum{}, err
	}
	defer b.Free()
	p, err := s.point(s.unet)
	if err != nil {
		return Spectrum{}, err
	}
	found, err := s.ends(ctx, p, b, o, i)
	if sign < 0 {
		found = found.negated()
	}
	return found, err
}

func (s *subject) ends(ctx context.Context, p denoise.Point, b *denoise.Batch, o Options, draw int) (Spectrum, error) {
	start := func(i int) denoise.Vector { return s.normals(o.Seed, "power iteration", draw, i) }
	return ends(ctx, s.space, s.product(ctx, p, b), start, o.PowerIterations, o.Tolerance)
}

// system solves (I + γH) x = ∇L_harm at θ_FT as a recipe does, and finds the ends of H's spectrum. What follows from them
// is left to the caller.
func (s *subject) system(ctx context.Context, o Options, i int) (out System, err error) {
	p, err := s.point(s.tuned)
	if err != nil {
		return out, err
	}
	harmful, err := s.harmful.Batch(ctx, i)
	if err != nil {
		return out, err
	}
	defer harmful.Free()
	benign, err := s.benign.Batch(ctx, i)
	if err != nil {
		return out, err
	}
	defer benign.Free()
	if out.Spectrum, err = s.ends(ctx, p, benign, o, i); err != nil {
		return out, err
	}
	// The sign of L_harm turns g and x around, and changes no norm.
	_, g, err := s.net.Gradient(ctx, p, s.theta, denoise.Loss{}, harmful)
	if err != nil {
		return out, err
	}
	defer g.Free()
	if out.Gradient, err = s.space.Norm(g); err != nil {
		return out, err
	}
	out.Residuals, out.Note, err = residuals(ctx, hypergrad.System[denoise.Vector]{Space: s.space, Product: s.product(ctx, p, benign), Gamma: o.Gamma, Right: g}, o)
	return out, err
}

// residuals runs the Richardson iteration and returns the relative residuals of x_0 … x_K.
func residuals[V any](ctx context.Context, system hypergrad.System[V], o Options) (out []float64, note string, err error) {
	x, report, err := hypergrad.Richardson(ctx, system, hypergrad.RichardsonOptions{Iterations: o.Iterations, Damping: o.Damping, FinalResidual: true})
	var overflow *hypergrad.NonFiniteError
	switch {
	case errors.As(err, &overflow):
		note = "the iteration overflowed: " + overflow.What + " is not finite; lower γ"
	case err != nil:
		return nil, "", err
	default:
		system.Space.Release(x)
		note = report.Note
	}
	if len(report.Steps) == 0 { // g is zero
		return []float64{0}, note, nil
	}
	// A step is μ times the residual it started from, and the first residual is g.
	for _, step := range report.Steps {
		out = append(out, step/report.Steps[0])
	}
	if overflow == nil {
		out = append(out, report.Residual)
		note = ""
	}
	return out, note, nil
}

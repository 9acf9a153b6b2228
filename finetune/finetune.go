package finetune

import (
	"context"
	"fmt"
	"slices"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

// Data is what a fine-tuning learns from.
type Data struct {
	Pictures data.Mixture // captions are replaced by the instance prompt under DreamBooth
	Prior    data.Mixture // DreamBooth: pictures of the subject's class under their own captions; none: no prior loss
	Cache    *data.Cache
}

// Hooks connect a fine-tuning to whoever started it. All are optional.
type Hooks struct {
	Run             *train.RunDir
	CheckpointEvery int
	Finish          <-chan struct{}
	OnEvent         func(train.Event)
	OnPrepare       func(done, total int)
	Warn            func(string)
	Preview         func(ctx context.Context, net *denoise.Network, p denoise.Point, done int) error
}

// Result is an adapted model. Free it when it is not needed any more.
type Result struct {
	UNet    *sd.Params  // the model's weights; with an adapter the unchanged ones
	Adapter *sd.Adapter // LoRA only
	Factors *sd.Params  // LoRA only

	owned []*engine.Tensor
}

// Free releases what the fine-tuning made.
func (r *Result) Free() { engine.Free(r.owned...) }

// job is a fine-tuning under way.
type job struct {
	config   Config
	model    *sd.Model
	net      *denoise.Network
	adapter  *sd.Adapter
	selected denoise.Selection
	descent  *denoise.Descent
	space    *denoise.Space
	pictures *denoise.Sampler
	prior    *denoise.Sampler
	average  denoise.Vector // exponential moving average of the selected parameters; nil without
	initial  []*engine.Tensor
}

// Run fine-tunes a model from the given weights of its UNet, which stay as they are.
func Run(ctx context.Context, m *sd.Model, start *sd.Params, c Config, d Data, h Hooks) (_ *Result, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	j := &job{config: c, model: m, space: denoise.NewSpace(m.Engine)}
	defer j.space.Free()
	defer func() {
		if err != nil {
			j.free()
		}
	}()
	if err := j.prepareData(ctx, d, h); err != nil {
		return nil, err
	}
	if err := j.prepareNetwork(start); err != nil {
		return nil, err
	}
	defer j.net.Free()
	loop := train.Loop{
		Steps: c.Steps, Run: h.Run, CheckpointEvery: h.CheckpointEvery, Keep: 2, Finish: h.Finish,
		Step: j.step, Save: j.save, Restore: j.restore, OnEvent: h.OnEvent, Warn: h.Warn,
	}
	if h.Preview != nil {
		loop.After = func(ctx context.Context, done int) error { return h.Preview(ctx, j.net, j.descent.Point(), done) }
	}
	if err := loop.Do(ctx); err != nil {
		return nil, err
	}
	return j.result(start), nil
}

func (j *job) prepareData(ctx context.Context, d Data, h Hooks) error {
	c := j.config
	resolution := c.Resolution
	if resolution == 0 {
		resolution = j.model.Resolution()
	}
	if c.Method != DreamBooth && len(d.Prior) > 0 {
		return fmt.Errorf("fine-tuning: prior pictures were given, but method %s has no use for them; leave them out or use %s", c.Method, DreamBooth)
	}
	pictures := d.Pictures
	if c.Method == DreamBooth {
		pictures = slices.Clone(pictures)
		for i, part := range pictures {
			if part.Folder == nil {
				continue
			}
			folder, err := part.Folder.WithCaption(c.InstancePrompt)
			if err != nil {
				return err
			}
			pictures[i].Folder = folder
		}
	}
	sampler := func(name string, mixture data.Mixture) (*denoise.Sampler, error) {
		set, err := denoise.NewDataset(name, j.model, mixture, data.Preprocess{Resolution: resolution}, d.Cache,
			denoise.DatasetOptions{Flip: c.Flip, CaptionDropout: c.CaptionDropout}, h.Warn)
		if err != nil {
			return nil, err
		}
		if err := set.Prepare(ctx, h.OnPrepare); err != nil {
			return nil, err
		}
		return set.Sampler(c.Seed, "fine-tuning "+name, c.BatchSize)
	}
	var err error
	if j.pictures, err = sampler("pictures", pictures); err != nil {
		return err
	}
	if c.Method == DreamBooth && len(d.Prior) > 0 {
		j.prior, err = sampler("prior", d.Prior)
	}
	return err
}

func (j *job) prepareNetwork(start *sd.Params) (err error) {
	c := j.config
	groups := [][]*engine.Tensor{start.Tensors}
	if c.Method == LoRA {
		layers, err := j.model.AttentionLayers(c.Targets...)
		if err != nil {
			return err
		}
		if j.adapter, err = sd.NewAdapter(layers, c.Rank, c.scale()); err != nil {
			return err
		}
		// As in diffusers' LoRA: the down factor has standard deviation 1/rank, the up factor is zero, so that training
		// starts from the model itself.
		factors := j.adapter.Draw(c.Seed, 1/float64(c.Rank), 0)
		j.initial = factors.Tensors
		groups = append(groups, factors.Tensors)
		j.net = denoise.NewNetwork(j.model, j.adapter)
		j.selected = j.net.Group(1)
	} else {
		j.net = denoise.NewNetwork(j.model)
		j.selected = j.net.Group(0)
	}
	point, err := j.net.Point(groups...)
	if err != nil {
		return err
	}
	j.descent, err = denoise.NewDescent(j.net, j.selected, c.optimizer(), point)
	return err
}

func (c Config) scale() float64 {
	if c.Alpha == 0 {
		return 1
	}
	return c.Alpha / float64(c.Rank)
}

func (j *job) step(ctx context.Context, step int) (map[string]any, error) {
	c := j.config
	var gradient denoise.Vector
	defer func() { gradient.Free() }() // what an error leaves; the descent uses it up
	loss := 0.0
	for k := range c.Accumulation {
		batch, err := j.batch(ctx, step*c.Accumulation+k)
		if err != nil {
			return nil, err
		}
		value, g, err := j.net.Gradient(ctx, j.descent.Point(), j.selected, denoise.Loss{}, batch)
		batch.Free()
		if err != nil {
			return nil, err
		}
		loss += value / float64(c.Accumulation)
		if gradient, err = j.space.Accumulate(gradient, g); err != nil {
			return nil, err
		}
	}
	if err := train.CheckFinite("loss", loss, step+1); err != nil {
		return nil, err
	}
	norm, err := j.space.Norm(gradient)
	if err != nil {
		return nil, err
	}
	norm /= float64(c.Accumulation)
	if err := train.CheckFinite("gradient norm", norm, step+1); err != nil {
		return nil, err
	}
	rate := c.schedule().At(step, c.Steps)
	scale := denoise.ClipScale(norm, c.ClipNorm) / float64(c.Accumulation)
	if err := j.descent.Step(ctx, gradient, scale, rate); err != nil {
		return nil, err
	}
	if err := j.updateAverage(); err != nil {
		return nil, err
	}
	return map[string]any{"loss": loss, "gradient_norm": norm, "learning_rate": rate * c.LearningRate}, nil
}

func (j *job) batch(ctx context.Context, step int) (*denoise.Batch, error) {
	if j.prior == nil {
		return j.pictures.Batch(ctx, step)
	}
	return denoise.JoinedBatch(ctx, j.pictures, j.prior, step, 1, j.config.PriorWeight)
}

func (j *job) updateAverage() (err error) {
	decay := j.config.EMADecay
	if decay == 0 {
		return nil
	}
	rate := train.EMA{Decay: decay}.Rate(j.descent.Steps())
	previous := j.average
	if previous == nil {
		previous = j.descent.Selected()
	}
	// previous + rate·(new − previous): two coefficients that float32 does not let add up to 1 would let a slow average drift.
	next, err := j.space.Combine(
		hypergrad.Term[denoise.Vector]{Coefficient: 1, Vector: previous},
		hypergrad.Term[denoise.Vector]{Coefficient: -rate, Vector: previous},
		hypergrad.Term[denoise.Vector]{Coefficient: rate, Vector: j.descent.Selected()},
	)
	if err != nil {
		return err
	}
	j.average.Free()
	j.average = next
	return nil
}

func (j *job) save() ([]*weights.Tensor, any, error) {
	tensors, err := j.descent.Tensors("")
	if err != nil {
		return nil, nil, err
	}
	for i, t := range j.average {
		values, err := engine.Values(t)
		if err != nil {
			return nil, nil, err
		}
		name := "average." + j.selected.Specs(j.net)[i].Name
		tensors = append(tensors, weights.NewFloat32(name, engine.Shape(t), values))
	}
	return tensors, struct{}{}, nil
}

func (j *job) restore(steps int, source weights.Source, _ func(any) error) error {
	if err := j.descent.Restore("", steps, source); err != nil {
		return err
	}
	if j.config.EMADecay == 0 || steps == 0 {
		return nil
	}
	like := j.descent.Selected()
	for i, s := range j.selected.Specs(j.net) {
		t, err := source.Tensor("average." + s.Name)
		if err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
		values, err := t.Float32()
		if err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
		if !slices.Equal(t.Shape, engine.Shape(like[i])) {
			return fmt.Errorf("checkpoint: average.%s is %v, not %v", s.Name, t.Shape, engine.Shape(like[i]))
		}
		j.average = append(j.average, engine.Float32s(values, t.Shape...))
	}
	return nil
}

// result hands the parameters over: the average where one was kept, the last ones otherwise.
func (j *job) result(start *sd.Params) *Result {
	r := &Result{UNet: start, Adapter: j.adapter}
	point, owned := j.descent.Release()
	final := j.selected.Of(point)
	if owned {
		r.owned = append(r.owned, final...)
	}
	if j.average != nil {
		final = j.average
		r.owned = append(r.owned, final...)
	}
	r.owned = append(r.owned, j.initial...)
	if j.adapter == nil {
		r.UNet = start.WithTensors(final)
		return r
	}
	r.Factors = j.adapter.Params(final)
	return r
}

func (j *job) free() {
	if j.descent != nil {
		j.descent.Free()
	}
	j.average.Free()
	engine.Free(j.initial...)
}

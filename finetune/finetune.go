package finetune

import (
	"context"
	"fmt"
	"slices"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// Data is what a fine-tuning learns from.
type Data struct {
	Pictures data.Mixture // captions are replaced by the instance prompt under DreamBooth and where a word is learnt
	Prior    data.Mixture // DreamBooth, Custom Diffusion, SVDiff: pictures of the subject's class under their own captions; none: no prior loss
	Cache    *data.Cache

	// PriorFolder, in place of Prior and with Config.ClassPrompt, is a folder of pictures of the subject's class. It need not
	// exist: those that are missing are made, with the model as it is, in a subfolder.
	PriorFolder string

	// Contaminant, if above 0, is the part of Pictures whose draws are recorded in the run's folder, see ContaminationFile.
	Contaminant int
}

// Hooks connect a fine-tuning to whoever started it. All are optional.
type Hooks struct {
	// OpenRun gives the folder that log and checkpoints go to; without it nothing is kept. It is called once, when all
	// pictures are encoded and the network is laid out: whatever is wrong with the input shows before. The caller closes
	// the run when the fine-tuning has returned.
	OpenRun         func() (*train.RunDir, error)
	CheckpointEvery int                      // steps; 0: only at the end, and when Finish is closed
	Finish          <-chan struct{}          // closed: break the preparation off, or end after the step under way, saved
	OnEvent         func(train.Event)        // receives what the log receives
	OnPrepare       func(done, total int)    // pictures encoded so far
	OnBuckets       func([]data.BucketCount) // sizes of the pictures, with Config.Buckets
	// OnWork is told about other preparations: what is done, such as "making prior pictures".
	OnWork func(what string, done, total int)
	Warn   func(string) // sentences about what was found odd
	// Preview is called after each step with the number of steps done.
	Preview func(ctx context.Context, net *denoise.Network, p denoise.Point, done int) error
	// Adapted is called after the steps of AdaptedAt with the model as it stands, which is freed afterwards. Averages of
	// weights do not enter it.
	Adapted   func(ctx context.Context, done int, r *Result) error
	AdaptedAt []int

	// GiveUpStart lets go of the start's tensors where all of them are trained: the trained ones take their memory, and they
	// must not be used afterwards.
	GiveUpStart bool
}

// tuning is a fine-tuning under way.
type tuning struct {
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

	spectrum *sd.Spectrum
	fixed    []*engine.Tensor // of the spectrum

	givenUp bool // the start's tensors are the descent's

	tokenizer   denoise.Tokenizer // of samples where training goes through the text encoders; nil elsewhere
	run         *train.RunDir     // nil: nothing is kept
	contaminant int               // part of the pictures whose draws are recorded; 0: none
}

// Run fine-tunes a model from the given weights of its UNet, which stay as they are unless Hooks.GiveUpStart is set. It returns train.ErrInterrupted if
// Finish was closed before the last step.
func Run(ctx context.Context, m *sd.Model, start *sd.Params, c Config, d Data, h Hooks) (_ *Result, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	defer engine.Sparing()()
	t := &tuning{config: c, model: m, space: denoise.NewSpace(m.Engine), contaminant: d.Contaminant}
	defer t.space.Free()
	defer func() { engine.Free(t.fixed...) }()
	defer func() {
		if err != nil {
			t.free()
		}
	}()
	if err := t.prepareTokenizer(); err != nil {
		return nil, err
	}
	if err := t.prepareData(ctx, d, h); err != nil {
		return nil, err
	}
	if err := t.prepareNetwork(ctx, start, d, h); err != nil {
		return nil, err
	}
	defer t.net.Free()
	if h.OpenRun != nil {
		if t.run, err = h.OpenRun(); err != nil {
			return nil, err
		}
	}
	loop := train.Loop{
		Steps: c.Steps, Run: t.run, CheckpointEvery: h.CheckpointEvery, Keep: 2, Finish: h.Finish,
		Step: t.step, Save: t.save, Restore: t.restore, OnEvent: h.OnEvent, Warn: h.Warn,
	}
	loop.After = func(ctx context.Context, done int) error {
		if err := t.adapted(ctx, start, h, done); err != nil || h.Preview == nil {
			return err
		}
		return h.Preview(ctx, t.net, t.descent.Point(), done)
	}
	if err := loop.Do(ctx); err != nil {
		return nil, err
	}
	return t.result(start)
}

func (t *tuning) prepareData(ctx context.Context, d Data, h Hooks) error {
	c := t.config
	resolution := c.Resolution
	if resolution == 0 {
		resolution = t.model.Resolution()
	}
	if !c.takesPrior() && (len(d.Prior) > 0 || d.PriorFolder != "") {
		return fmt.Errorf("fine-tuning: prior pictures were given, but method %s has no use for them; leave them out or use %s", c.Method, DreamBooth)
	}
	prior, err := t.classPictures(ctx, d, resolution, h)
	if err != nil {
		return err
	}
	if c.Buckets && len(prior) > 0 {
		return fmt.Errorf("fine-tuning: buckets do not go with prior pictures, which share a batch with the others; leave one of both out")
	}
	pictures := d.Pictures
	if prompt := c.prompt(); prompt != "" {
		pictures = slices.Clone(pictures)
		for i, part := range pictures {
			if part.Folder == nil {
				continue
			}
			folder, err := part.Folder.WithCaption(prompt)
			if err != nil {
				return err
			}
			pictures[i].Folder = folder
		}
	}
	sampler := func(name string, mixture data.Mixture, snrGamma float64) (*denoise.Sampler, error) {
		options := denoise.DatasetOptions{
			Flip: c.Flip, CaptionDropout: c.CaptionDropout, SNRGamma: snrGamma, NoiseOffset: c.NoiseOffset, Tokenizer: t.tokenizer,
			Buckets: t.buckets(resolution), VAETile: c.VAETileSize,
		}
		set, err := denoise.NewDataset(name, t.model, mixture, data.Preprocess{Resolution: resolution}, d.Cache, options, h.Warn)
		if err != nil {
			return nil, err
		}
		if err := set.Prepare(ctx, h.Finish, h.OnPrepare); err != nil {
			return nil, err
		}
		return set.Sampler(c.Seed, "fine-tuning "+name, c.BatchSize)
	}
	if t.pictures, err = sampler("pictures", pictures, c.SNRGamma); err != nil {
		return err
	}
	if c.Buckets && h.OnBuckets != nil {
		h.OnBuckets(t.pictures.Buckets())
	}
	if len(prior) > 0 {
		t.prior, err = sampler("prior", prior, 0) // as in diffusers' train_dreambooth
	}
	return err
}

// buckets are those of pictures that keep their aspect ratios; nil where all become squares. Sides are multiples of 64 as
// elsewhere, or of what the model needs if it is a small one or 64 will not do.
func (t *tuning) buckets(resolution int) *data.Buckets {
	if !t.config.Buckets {
		return nil
	}
	step := t.model.VAE.Config.Downscale() * t.model.UNet.Config.Downscale()
	if resolution >= 256 && resolution%64 == 0 && 64%step == 0 {
		step = 64
	}
	return &data.Buckets{Resolution: resolution, Step: step, Upscale: t.config.BucketUpscale}
}

func (t *tuning) prepareNetwork(ctx context.Context, start *sd.Params, d Data, h Hooks) (err error) {
	c := t.config
	groups := [][]*engine.Tensor{start.Tensors}
	switch {
	case c.Method == LoRA:
		layers, err := t.model.AttentionLayers(c.Targets...)
		if err != nil {
			return err
		}
		if t.adapter, err = sd.NewAdapter(layers, c.Rank, c.scale()); err != nil {
			return err
		}
		// As in diffusers' LoRA: the down factor has standard deviation 1/rank, the up factor is zero, so that training
		// starts from the model itself.
		factors := t.adapter.Draw(c.Seed, 1/float64(c.Rank), 0)
		t.initial = factors.Tensors
		groups = append(groups, factors.Tensors)
		t.net = denoise.NewNetwork(t.model, t.adapter)
		if c.LoRADropout > 0 {
			t.net.DropAdapterInputs(c.LoRADropout)
		}
		t.selected = t.net.Group(1)
	case c.learns():
		more, err := t.prepareConcept()
		if err != nil {
			return err
		}
		groups = append(groups, more...)
	case c.TrainTextEncoder:
		more, err := t.prepareText()
		if err != nil {
			return err
		}
		groups = append(groups, more...)
	case c.Method == SVDiff:
		more, err := t.prepareSpectrum(ctx, start, d, h)
		if err != nil {
			return err
		}
		groups = append(groups, more...)
	case c.Method == Custom:
		t.net = denoise.NewNetwork(t.model)
		if t.selected, err = t.net.Named(customParts()...); err != nil {
			return err
		}
	default:
		t.net = denoise.NewNetwork(t.model)
		t.selected = t.net.Group(0)
		t.givenUp = h.GiveUpStart
	}
	if c.GradientCheckpointing {
		t.net.CheckpointGradients()
	}
	t.net.ComputeIn(nn.Compute(c.Compute))
	point, err := t.net.Point(groups...)
	if err != nil {
		return err
	}
	return t.begin(point)
}

func (c Config) scale() float64 {
	if c.Alpha == 0 {
		return 1
	}
	return c.Alpha / float64(c.Rank)
}

func (t *tuning) step(ctx context.Context, step int) (map[string]any, error) {
	c := t.config
	var gradient denoise.Vector
	defer func() { gradient.Free() }() // what an error leaves; the descent uses it up
	loss := 0.0
	for k := range c.Accumulation {
		batch, err := t.batch(ctx, step*c.Accumulation+k)
		if err != nil {
			return nil, err
		}
		value, g, err := t.net.Gradient(ctx, t.descent.Point(), t.selected, denoise.Loss{}, batch)
		batch.Free()
		if err != nil {
			return nil, err
		}
		loss += value / float64(c.Accumulation)
		if gradient, err = t.space.Accumulate(gradient, g); err != nil {
			return nil, err
		}
	}
	if err := train.CheckFinite("loss", loss, step+1); err != nil {
		return nil, err
	}
	norm, err := t.space.Norm(gradient)
	if err != nil {
		return nil, err
	}
	norm /= float64(c.Accumulation)
	if err := train.CheckFinite("gradient norm", norm, step+1); err != nil {
		return nil, err
	}
	rate := c.schedule().At(step, c.Steps)
	scale := denoise.ClipScale(norm, c.ClipNorm) / float64(c.Accumulation)
	if err := t.descent.Step(ctx, gradient, scale, rate); err != nil {
		return nil, err
	}
	if err := t.updateAverage(); err != nil {
		return nil, err
	}
	fields := map[string]any{"loss": loss, "gradient_norm": norm, "learning_rate": rate * c.LearningRate}
	if step == 0 && c.Buckets {
		counts := map[string]int{}
		for _, b := range t.pictures.Buckets() {
			counts[b.String()] = b.Pictures
		}
		fields["buckets"] = counts
	}
	return fields, nil
}

func (t *tuning) batch(ctx context.Context, step int) (b *denoise.Batch, err error) {
	if t.prior == nil {
		b, err = t.pictures.Batch(ctx, step)
	} else {
		b, err = denoise.JoinedBatch(ctx, t.pictures, t.prior, step, 1, t.config.PriorWeight)
	}
	if err == nil && t.config.LoRADropout > 0 {
		b.SetDropout(uint32(random.New(t.config.Seed, "adapter dropout", step).Uint64()))
	}
	return b, err
}

func (t *tuning) updateAverage() (err error) {
	decay := t.config.EMADecay
	if decay == 0 {
		return nil
	}
	rate := train.EMA{Decay: decay}.Rate(t.descent.Steps())
	previous := t.average
	if previous == nil {
		previous = t.descent.Selected()
	}
	// previous + rate·(new − previous): two coefficients that float32 does not let add up to 1 would let a slow average drift.
	next, err := t.space.Combine(
		hypergrad.Term[denoise.Vector]{Coefficient: 1, Vector: previous},
		hypergrad.Term[denoise.Vector]{Coefficient: -rate, Vector: previous},
		hypergrad.Term[denoise.Vector]{Coefficient: rate, Vector: t.descent.Selected()},
	)
	if err != nil {
		return err
	}
	t.average.Free()
	t.average = next
	return nil
}

func (t *tuning) free() {
	if t.descent != nil {
		t.descent.Free()
	}
	t.average.Free()
	engine.Free(t.initial...)
}

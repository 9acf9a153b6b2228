// Package bench times what training and sampling consist of, on the UNets of known models with random weights: the same
// work whatever the engine, so that engines and programs can be compared.
package bench

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// What can be measured.
const (
	Forward            = "forward"   // the denoising loss
	Step               = "step"      // loss, gradient and an Adam step over all weights
	LoRAStep           = "lora-step" // the same over an adapter of rank 4 on q, k, v and out of every attention
	HessianProduct     = "hvp"       // an exact Hessian–vector product over all weights
	LoRAHessianProduct = "lora-hvp"  // the same over the adapter
	OuterStep          = "outer"     // a whole ResAlign step as the public recipe does it, over the adapter
	Generate           = "generate"  // 30 DDIM steps with guidance: the UNet's share of making a batch of pictures
)

// Works lists what can be measured, in the order of cost.
func Works() []string {
	return []string{Forward, Generate, LoRAStep, Step, LoRAHessianProduct, HessianProduct, OuterStep}
}

// preset is a UNet with the batch that it is measured on.
type preset struct {
	name        string
	unet        sd.UNetConfig
	scheduler   diffusion.Config
	batch, side int // latents [batch, 4, side, side]
	pixels      int // each way, that one latent stands for
}

// half is Stable Diffusion 1.4 on pictures of half the side.
const half = "sd14-256"

func presets() []preset {
	var out []preset
	for _, p := range sd.Presets() {
		next := preset{name: p.Name, unet: p.UNet, scheduler: p.Scheduler, batch: 1, side: p.UNet.SampleSize, pixels: p.VAE.Downscale()}
		if p.Name == "small" {
			next.batch = 8
		}
		out = append(out, next)
		if p.Name == "sd14" {
			next.name, next.side = half, next.side/2
			out = append(out, next)
		}
	}
	return out
}

// Presets lists the names of the UNets: those of [sd.Presets], and sd14-256, Stable Diffusion 1.4 at 256 pixels.
func Presets() []string {
	var names []string
	for _, p := range presets() {
		names = append(names, p.name)
	}
	return names
}

// Options say what to measure.
type Options struct {
	Preset string
	What   []string
	Repeat int // measured repetitions, after one that is not
	Batch  int // 0: the preset's; for an outer step, the public recipe's
	Size   int // side of the pictures in pixels; 0: the preset's
	// Simulations and InnerSteps are those of an outer step; 0: one simulation of two steps. The public recipe has three
	// of fifteen, for which the report holds a projection.
	Simulations, InnerSteps int
	// GradientCheckpointing computes derivatives with less memory, see sd.Model.
	GradientCheckpointing bool
	// Compute is what the UNet computes in but for Hessian products, which are float32 always; empty: float32.
	Compute nn.Compute
	// OnStart, if set, is told what is measured next.
	OnStart func(what string)
}

// Validate says what cannot be measured.
func (o Options) Validate() error {
	if !slices.Contains(Presets(), o.Preset) {
		return fmt.Errorf("preset %q is not known; use %s", o.Preset, strings.Join(Presets(), ", "))
	}
	if len(o.What) == 0 {
		return fmt.Errorf("nothing to measure; choose from %s", strings.Join(Works(), ", "))
	}
	for _, w := range o.What {
		if !slices.Contains(Works(), w) {
			return fmt.Errorf("%q cannot be measured; choose from %s", w, strings.Join(Works(), ", "))
		}
	}
	if o.Repeat < 1 || o.Batch < 0 {
		return fmt.Errorf("%d repetitions on batches of %d cannot be measured; at least one repetition is needed", o.Repeat, o.Batch)
	}
	if err := o.Compute.Check(); err != nil {
		return err
	}
	if o.Simulations < 0 || o.InnerSteps < 0 {
		return fmt.Errorf("%d simulations of %d inner steps cannot be measured; both must be at least 1", o.Simulations, o.InnerSteps)
	}
	_, err := o.preset()
	return err
}

// preset is the one that is measured, with the size and batch that were asked for.
func (o Options) preset() (preset, error) {
	p := presets()[slices.Index(Presets(), o.Preset)]
	if o.Batch > 0 {
		p.batch = o.Batch
	}
	if o.Size != 0 {
		p.side = o.Size / p.pixels
		if multiple := p.pixels * p.unet.Downscale(); o.Size < multiple || o.Size%multiple != 0 || o.Size > maxSize {
			return p, fmt.Errorf("pictures of %d×%d pixels do not fit %s; use a multiple of %d, at most %d", o.Size, o.Size, p.name, multiple, maxSize)
		}
	}
	return p, nil
}

// maxSize bounds the side of the pictures.
const maxSize = 8192

// Measurement is the time of one repetition, in seconds, and the largest memory of the process until its end, in bytes (0
// where the system does not tell): to compare memory, measure one thing per process.
type Measurement struct {
	What      string  `json:"what"`
	Best      float64 `json:"best_s"`
	Median    float64 `json:"median_s"`
	PeakBytes int64   `json:"peak_bytes"`
	FLOPs     float64 `json:"flops"`           // the least that one repetition needs, by counting products of matrices
	Outer     *Outer  `json:"outer,omitempty"` // what an outer step consisted of
}

// Report is what was measured on what.
type Report struct {
	Preset       string        `json:"preset"`
	Batch        int           `json:"batch"`
	Latent       int           `json:"latent"` // side of the latents
	Size         int           `json:"size"`   // side of the pictures in pixels
	Compute      nn.Compute    `json:"compute"`
	Checkpoints  bool          `json:"gradient_checkpointing"`
	Engine       string        `json:"engine"`
	Threads      int           `json:"threads"`
	Go           string        `json:"go"`
	Parameters   int           `json:"parameters"`
	ForwardFLOPs float64       `json:"forward_flops"` // of one pass of the UNet over the batch
	Measurements []Measurement `json:"results"`
}

// Run measures. The work is done in the order of [Works], so that peaks of memory grow.
func Run(ctx context.Context, e *engine.Engine, o Options) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	p, err := o.preset()
	if err != nil {
		return nil, err
	}
	defer engine.Sparing()()
	c, err := newCase(e, p)
	if err != nil {
		return nil, err
	}
	defer c.free()
	c.outerBatch = o.Batch
	c.model.GradientCheckpointing, c.model.Compute = o.GradientCheckpointing, o.Compute
	report := &Report{
		Preset: p.name, Batch: p.batch, Latent: p.side, Engine: e.Description(), Threads: runtime.GOMAXPROCS(0),
		Go: runtime.Version(), Parameters: c.model.UNetParams.Count(), Size: p.side * p.pixels, Compute: cmp.Or(o.Compute, nn.Float32),
		Checkpoints:  o.GradientCheckpointing,
		ForwardFLOPs: c.forwardFLOPs(),
	}
	for _, what := range Works() {
		if !slices.Contains(o.What, what) {
			continue
		}
		if o.OnStart != nil {
			o.OnStart(what)
		}
		m, err := c.measure(ctx, what, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		report.Measurements = append(report.Measurements, m)
	}
	return report, nil
}

// measure times one kind of work.
func (c *workload) measure(ctx context.Context, what string, o Options) (m Measurement, err error) {
	m = Measurement{What: what, FLOPs: passes(what) * c.forwardFLOPs()}
	var work func(context.Context) error
	var done func()
	if what == OuterStep {
		work, m.Outer, done, err = c.outer(cmp.Or(o.Simulations, 1), cmp.Or(o.InnerSteps, 2))
	} else {
		work, done, err = c.prepare(what)
	}
	if err != nil {
		return m, err
	}
	defer done()
	if err := work(ctx); err != nil { // compiles
		return m, err
	}
	if m.Outer != nil {
		m.FLOPs = m.Outer.FLOPs
		m.Outer.forget()
	}
	seconds := make([]float64, o.Repeat)
	for i := range seconds {
		start := time.Now()
		if err := work(ctx); err != nil {
			return m, err
		}
		seconds[i] = time.Since(start).Seconds()
	}
	if m.Outer != nil {
		m.Outer.project()
	}
	slices.Sort(seconds)
	m.Best, m.Median = seconds[0], seconds[o.Repeat/2]
	if o.Repeat%2 == 0 {
		m.Median = (m.Median + seconds[o.Repeat/2-1]) / 2
	}
	if m.PeakBytes, err = train.PeakMemory(); err != nil {
		m.PeakBytes = 0 // this system does not tell
	}
	return m, nil
}

func (c *workload) forwardFLOPs() float64 {
	return float64(c.preset.batch) * forwardFLOPs(c.preset.unet, c.preset.side)
}

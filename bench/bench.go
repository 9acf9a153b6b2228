// Package bench times what training and sampling consist of, on the UNets of known models with random weights: the same
// work whatever the engine, so that engines and programs can be compared.
package bench

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/resalign/resalign/engine"
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
	Generate           = "generate"  // 30 DDIM steps with guidance: the UNet's share of making a batch of pictures
)

// Works lists what can be measured, in the order of cost.
func Works() []string {
	return []string{Forward, Generate, LoRAStep, Step, LoRAHessianProduct, HessianProduct}
}

// preset is a UNet with the batch that it is measured on.
type preset struct {
	name        string
	unet        sd.UNetConfig
	batch, side int // latents [batch, 4, side, side]
}

func presets() []preset {
	return []preset{
		{"small", sd.SmallUNet(), 8, 32},
		{"sd14", sd.SD14UNet(), 1, 64},
		{"sd14-256", sd.SD14UNet(), 1, 32},
		{"sdxl", sd.SDXLUNet(), 1, 128},
	}
}

// Presets lists the names of the UNets: small (4.19 M parameters), Stable Diffusion 1.4 at 512 and 256 pixels, and SDXL.
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
	Batch  int // 0: the preset's
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
	return nil
}

// Measurement is the time of one repetition, in seconds, and the largest memory of the process until its end, in bytes (0
// where the system does not tell): to compare memory, measure one thing per process.
type Measurement struct {
	What      string  `json:"what"`
	Best      float64 `json:"best_s"`
	Median    float64 `json:"median_s"`
	PeakBytes int64   `json:"peak_bytes"`
}

// Report is what was measured on what.
type Report struct {
	Preset       string        `json:"preset"`
	Batch        int           `json:"batch"`
	Latent       int           `json:"latent"` // side of the latents
	Engine       string        `json:"engine"`
	Threads      int           `json:"threads"`
	Go           string        `json:"go"`
	Parameters   int           `json:"parameters"`
	Measurements []Measurement `json:"results"`
}

// Run measures. The work is done in the order of [Works], so that peaks of memory grow.
func Run(ctx context.Context, e *engine.Engine, o Options) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	p := presets()[slices.Index(Presets(), o.Preset)]
	if o.Batch > 0 {
		p.batch = o.Batch
	}
	c, err := newCase(e, p)
	if err != nil {
		return nil, err
	}
	defer c.free()
	report := &Report{
		Preset: p.name, Batch: p.batch, Latent: p.side, Engine: e.Description(), Threads: runtime.GOMAXPROCS(0),
		Go: runtime.Version(), Parameters: c.model.UNetParams.Count(),
	}
	for _, what := range Works() {
		if !slices.Contains(o.What, what) {
			continue
		}
		if o.OnStart != nil {
			o.OnStart(what)
		}
		m, err := c.measure(ctx, what, o.Repeat)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		report.Measurements = append(report.Measurements, m)
	}
	return report, nil
}

// measure times one kind of work.
func (c *workload) measure(ctx context.Context, what string, repeat int) (Measurement, error) {
	work, done, err := c.prepare(what)
	if err != nil {
		return Measurement{}, err
	}
	defer done()
	if err := work(ctx); err != nil { // compiles
		return Measurement{}, err
	}
	seconds := make([]float64, repeat)
	for i := range seconds {
		start := time.Now()
		if err := work(ctx); err != nil {
			return Measurement{}, err
		}
		seconds[i] = time.Since(start).Seconds()
	}
	slices.Sort(seconds)
	median := seconds[repeat/2]
	if repeat%2 == 0 {
		median = (median + seconds[repeat/2-1]) / 2
	}
	peak, err := train.PeakMemory()
	if err != nil {
		peak = 0 // this system does not tell
	}
	return Measurement{What: what, Best: seconds[0], Median: median, PeakBytes: peak}, nil
}

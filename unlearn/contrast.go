package unlearn

import (
	"context"
	"fmt"
	"math"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

// ContrastLoss is the loss of lcfdsd-ng and lcfdsd-lt on harmful and retained pictures together.
const ContrastLoss = "contrast"

// Contrast holds the constants of lcfdsd-ng and lcfdsd-lt, which drive the latents that are predicted for harmful pictures
// and those for others apart.
type Contrast struct {
	Weight      float64 `toml:"weight"`       // of the contrastive loss, beside denoising of retained pictures
	Push        float64 `toml:"push"`         // of the distance to the other centre, beside that to one's own
	Margin      float64 `toml:"margin"`       // distance to the other centre that is not rewarded
	Ascent      float64 `toml:"ascent"`       // weight of the denoising loss on harmful pictures, which is raised
	NoiseShift  float64 `toml:"noise_shift"`  // lcfdsd-ng: added to the noise of retained pictures, taken from that of harmful ones
	LatentShift float64 `toml:"latent_shift"` // lcfdsd-lt: how far predicted latents are moved apart before they are compared
}

// defaultContrast are the constants of the authors' code that both methods share; the weight differs.
func defaultContrast() Contrast { return Contrast{Push: 1, NoiseShift: 1, LatentShift: 100} }

func (c Contrast) validate(v *validation, r Recipe) {
	v.check(c.Weight > 0 && !math.IsInf(c.Weight, 0), "contrast.weight", "%v must be a finite number above 0; the authors' code has 0.005 for %s and 0.00005 for %s", c.Weight, LCFDSDNG, LCFDSDLT)
	v.notNegative("contrast.push", c.Push)
	v.notNegative("contrast.margin", c.Margin)
	v.notNegative("contrast.ascent", c.Ascent)
	v.notNegative("contrast.noise_shift", c.NoiseShift)
	v.notNegative("contrast.latent_shift", c.LatentShift)
	v.check(r.Objective.Retain == Denoising, "objective.retain", "method %s denoises retained pictures; use %q", r.Method, Denoising)
}

// contrastive tells whether the method is one of the two.
func (r Recipe) contrastive() bool { return r.Method == LCFDSDNG || r.Method == LCFDSDLT }

// contrast is what lcfdsd keeps from step to step: for either class the running mean of its predicted latents.
type contrast struct {
	retained, harmful *class
	loss              float64 // contrastive, of the last step
}

// class is one side of the contrast.
type class struct {
	sign   float64   // +1: retained, −1: harmful
	centre []float32 // the mean of transformed predicted latents; checkpoints hold it, in this precision
	count  int       // of latents in it, with the one it began as
	epoch  int       // pictures, after which the count begins anew
}

// newContrast draws the first centres, uniform in [0, 1), as the authors' code does.
func newContrast(seed uint64, size, retained, harmful int) *contrast {
	begin := func(name string, sign float64, epoch int) *class {
		c := &class{sign: sign, centre: make([]float32, size), count: 1, epoch: epoch}
		s := random.New(seed, "centre", name)
		for i := range c.centre {
			c.centre[i] = float32(s.Float64())
		}
		return c
	}
	return &contrast{retained: begin("retained", 1, retained), harmful: begin("harmful", -1, harmful)}
}

// newContrast makes the centres for the recipe's sets of pictures.
func (t *trainer) newContrast(sets map[string]*denoise.Dataset) error {
	h, w, err := t.latentSize()
	if err == nil {
		t.contrast = newContrast(t.recipe.Seed, t.model.UNet.Config.InChannels*h*w, sets["retain"].Size(), sets["harmful"].Size())
	}
	return err
}

// take moves the centre to the mean of itself and further latents.
func (c *class) take(latents [][]float64) {
	if c.count > c.epoch {
		c.count = 1
	}
	for _, x := range latents {
		c.count++
		for i, v := range x {
			c.centre[i] += float32((v - float64(c.centre[i])) / float64(c.count))
		}
	}
}

// transformed is what lcfdsd-lt compares in place of latents: −z − s for retained pictures and z + s for harmful ones;
// lcfdsd-ng compares the latents themselves. slope is its derivative.
func (r Recipe) transformed(sign, z float64) (value, slope float64) {
	if r.Method == LCFDSDNG {
		return z, 1
	}
	return -sign * (z + r.Contrast.LatentShift), -sign
}

// apart is the contrastive loss of one picture's transformed latents, ‖x − own‖ − push·max(0, ‖x − other‖ − margin), and
// its derivative by them.
func (c Contrast) apart(x []float64, own, other []float32) (loss float64, slope []float64) {
	near, far := distance(x, own), distance(x, other)
	loss, slope = near, make([]float64, len(x))
	for i, v := range x {
		slope[i] = (v - float64(own[i])) / math.Max(near, tinyDistance)
	}
	if far > c.Margin {
		loss -= c.Push * (far - c.Margin)
		for i, v := range x {
			slope[i] -= c.Push * (v - float64(other[i])) / math.Max(far, tinyDistance)
		}
	}
	return loss, slope
}

// tinyDistance keeps the direction from a point to itself finite.
const tinyDistance = 1e-12

func distance[T float32 | float64](a []T, b []float32) float64 {
	sum := 0.0
	for i, v := range a {
		off := float64(v) - float64(b[i])
		sum += off * off
	}
	return math.Sqrt(sum)
}

// contrasted is the gradient of lcfdsd's loss:
//
//	weight·(mean over retained + mean over harmful pictures of the contrastive loss) + α·D_retain(θ) − ascent·D_harm(θ)
//
// with D the denoising loss. Centres are constants of a step; each takes in the predictions of its own class first.
func (t *trainer) contrasted(ctx context.Context, step, at int, alpha float64, r *result) (denoise.Vector, error) {
	kept, toRetained, err := t.classGradient(ctx, step, at, t.contrast.retained, t.contrast.harmful, t.retain, alpha)
	if err != nil {
		return nil, err
	}
	defer toRetained.Free()
	lost, toHarmful, err := t.classGradient(ctx, step, at, t.contrast.harmful, t.contrast.retained, t.harmful, -t.recipe.Contrast.Ascent)
	if err != nil {
		return nil, err
	}
	defer toHarmful.Free()
	r.retain, r.harm, r.harmError = kept.denoising, -lost.denoising, lost.denoising
	t.contrast.loss = kept.contrastive + lost.contrastive
	return t.space.Mix(1, toRetained, 1, toHarmful)
}

// classLoss is what one class contributes: means over its batch.
type classLoss struct{ denoising, contrastive float64 }

// classGradient is the share of one class in contrasted, whose denoising loss has the given weight.
func (t *trainer) classGradient(ctx context.Context, step, at int, own, other *class, pictures *denoise.Sampler, denoising float64) (loss classLoss, g denoise.Vector, err error) {
	samples, err := pictures.Samples(ctx, at, 1)
	if err != nil {
		return loss, nil, err
	}
	batch, err := t.shiftedBatch(samples, own.sign)
	if err != nil {
		return loss, nil, err
	}
	defer batch.Free()
	point := t.outer.Point()
	predicted, err := t.net.Predict(ctx, point, batch)
	if err != nil {
		return loss, nil, err
	}
	defer engine.Free(predicted)
	t.gradients += (1 + predictionCost) * float64(len(samples))
	loss, slope, err := t.contrastSlope(samples, batch, predicted, own, other, denoising)
	if err != nil {
		return loss, nil, err
	}
	if err := train.CheckFinite("denoising loss", loss.denoising, step+1); err != nil {
		return loss, nil, err
	}
	if err := train.CheckFinite("contrastive loss", loss.contrastive, step+1); err != nil {
		return loss, nil, err
	}
	u := engine.Float32s(slope, engine.Shape(predicted)...)
	defer engine.Free(u)
	g, err = t.net.Pullback(ctx, point, t.theta, batch, u)
	return loss, g, err
}

// shiftedBatch is a batch of lcfdsd. The noise of lcfdsd-ng is shifted, up for retained pictures and down for harmful
// ones, but what is to be predicted is the noise without the shift.
func (t *trainer) shiftedBatch(samples []denoise.Sample, sign float64) (*denoise.Batch, error) {
	h, w, err := t.latentSize()
	if err != nil {
		return nil, err
	}
	batch, err := denoise.NewBatch(t.model, samples, h, w)
	if err != nil || t.recipe.Method != LCFDSDNG {
		return batch, err
	}
	noisy, err := engine.Values(batch.Noisy)
	if err != nil {
		batch.Free()
		return nil, err
	}
	size := len(noisy) / len(samples)
	for i, s := range samples {
		_, noise, err := t.model.Schedule.Coefficients(s.Timestep)
		if err != nil {
			batch.Free()
			return nil, err
		}
		for k := i * size; k < (i+1)*size; k++ {
			noisy[k] += float32(sign * noise * t.recipe.Contrast.NoiseShift)
		}
	}
	shape := engine.Shape(batch.Noisy)
	engine.Free(batch.Noisy)
	batch.Noisy = engine.Float32s(noisy, shape...)
	return batch, nil
}

// contrastSlope is weight·contrastive loss + denoising·denoising loss, and its derivative by a prediction.
func (t *trainer) contrastSlope(samples []denoise.Sample, batch *denoise.Batch, predicted *engine.Tensor, own, other *class, denoising float64) (loss classLoss, slope []float32, err error) {
	var values [3][]float32
	for i, x := range []*engine.Tensor{predicted, batch.Noisy, batch.Target} {
		if values[i], err = engine.Values(x); err != nil {
			return loss, nil, err
		}
	}
	output, noisy, target := values[0], values[1], values[2]
	n, size := len(samples), len(output)/len(samples)
	latents, scales := make([][]float64, n), make([]float64, n) // transformed, and their derivative by the output
	for i, s := range samples {
		signal, noise, err := t.model.Schedule.Coefficients(s.Timestep)
		if err != nil {
			return loss, nil, err
		}
		ofNoisy, ofOutput := cleanCoefficients(t.model.Scheduler.PredictionType, signal, noise)
		latents[i] = make([]float64, size)
		for k := range size {
			z := ofNoisy*float64(noisy[i*size+k]) + ofOutput*float64(output[i*size+k])
			value, by := t.recipe.transformed(own.sign, z)
			latents[i][k], scales[i] = value, by*ofOutput
		}
	}
	own.take(latents)
	slope = make([]float32, len(output))
	for i, x := range latents {
		apart, by := t.recipe.Contrast.apart(x, own.centre, other.centre)
		loss.contrastive += apart / float64(n)
		for k, d := range by {
			at := i*size + k
			off := float64(output[at]) - float64(target[at])
			loss.denoising += off * off / float64(len(output))
			slope[at] = float32(t.recipe.Contrast.Weight*d*scales[i]/float64(n) + denoising*2*off/float64(len(output)))
		}
	}
	return loss, slope, nil
}

// The names of the centres in a checkpoint.
const (
	retainedCentre = "centre.retained"
	harmfulCentre  = "centre.harmful"
)

// tensors are the centres for a checkpoint.
func (c *contrast) tensors() []*weights.Tensor {
	return []*weights.Tensor{
		weights.NewFloat32(retainedCentre, []int{len(c.retained.centre)}, c.retained.centre),
		weights.NewFloat32(harmfulCentre, []int{len(c.harmful.centre)}, c.harmful.centre),
	}
}

// restore goes back to the centres of a checkpoint.
func (c *contrast) restore(source weights.Source, retained, harmful int) error {
	for name, k := range map[string]*class{retainedCentre: c.retained, harmfulCentre: c.harmful} {
		x, err := source.Tensor(name)
		if err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
		values, err := x.Float32()
		if err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
		if len(values) != len(k.centre) {
			return fmt.Errorf("checkpoint: %s has %d numbers, not %d", name, len(values), len(k.centre))
		}
		k.centre = values
	}
	c.retained.count, c.harmful.count = retained, harmful
	return nil
}

package unlearn

import (
	"context"
	"fmt"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/engine"
)

// Mosaic is the harmful loss of safegen: harmful pictures are denoised towards coarse ones, without a prompt.
const Mosaic = "mosaic"

// Censor says how method safegen makes its targets.
type Censor struct {
	Block int `toml:"block"` // side in pixels of the squares that a harmful picture is coarsened to
}

// defaultCensor is a sixteenth of a picture of 512 pixels.
func defaultCensor() Censor { return Censor{Block: 32} }

func (c Censor) validate(v *validation, r Recipe) {
	v.check(c.Block >= 2, "censor.block", "%d must be at least 2 pixels, or the target is the harmful picture itself", c.Block)
	v.check(r.Resolution == 0 || c.Block <= r.Resolution, "censor.block", "%d is more than the pictures' side, resolution = %d", c.Block, r.Resolution)
	for _, name := range r.needs() {
		v.check(r.Data[name].Prompt == "", "data."+name+".prompt", "method %s looks at pictures under the empty prompt alone; remove it", SafeGen)
	}
}

// textAgnostic tells whether the method reads pictures only and no captions.
func (r Recipe) textAgnostic() bool { return r.Method == SafeGen }

// censored is the target of safegen (Li et al. 2024, in the authors' code): the prediction that takes off the noise and,
// with it, what the harmful latents have beyond those of the coarse picture, ε + (z − z_mosaic).
func (t *trainer) censored(ctx context.Context, at int) (*engine.Tensor, error) {
	harmful, err := t.harmful.Samples(ctx, at, 1)
	if err != nil {
		return nil, err
	}
	coarse, err := t.coarse.Samples(ctx, at, 1) // the same draws of the same pictures
	if err != nil {
		return nil, err
	}
	var target []float32
	for i, s := range harmful {
		part, err := t.model.Schedule.Target(s.Latents, s.Noise, []int{s.Timestep})
		if err != nil {
			return nil, err
		}
		signal, noise, err := t.model.Schedule.Coefficients(s.Timestep)
		if err != nil {
			return nil, err
		}
		per := outputPerNoise(t.model.Scheduler.PredictionType, signal, noise)
		for k, x := range part {
			target = append(target, x+float32(per*float64(s.Latents[k]-coarse[i].Latents[k])))
		}
	}
	return t.latentTensor(harmful, target)
}

// latentTensor puts values of the shape of a batch's latents on the device.
func (t *trainer) latentTensor(samples []denoise.Sample, values []float32) (*engine.Tensor, error) {
	h, w, err := t.latentSize()
	if err != nil {
		return nil, err
	}
	return engine.Float32s(values, len(samples), t.model.UNet.Config.InChannels, h, w), nil
}

// latentSize is the height and width of latents at the recipe's resolution.
func (t *trainer) latentSize() (h, w int, err error) {
	side := t.resolution()
	if h, w, err = t.model.LatentSize(side, side); err != nil {
		err = fmt.Errorf("recipe: resolution: %w", err)
	}
	return h, w, err
}

// resolution is the side of training pictures in pixels.
func (t *trainer) resolution() int {
	if t.recipe.Resolution > 0 {
		return t.recipe.Resolution
	}
	return t.model.Resolution()
}

// outputPerNoise is how much the output of a model changes with the noise that it stands for, at fixed noisy latents
// signal·z + noise·ε: 1 for the noise itself, 1/signal for the velocity, −noise/signal for the latents.
func outputPerNoise(p diffusion.PredictionType, signal, noise float64) float64 {
	switch p {
	case diffusion.VPrediction:
		return 1 / signal
	case diffusion.Sample:
		return -noise / signal
	}
	return 1
}

// cleanCoefficients are those of the latents z = ofNoisy·z_t + ofOutput·output that a model's output stands for.
func cleanCoefficients(p diffusion.PredictionType, signal, noise float64) (ofNoisy, ofOutput float64) {
	switch p {
	case diffusion.VPrediction:
		return signal, -noise
	case diffusion.Sample:
		return 0, 1
	}
	return 1 / signal, -noise / signal
}

// checkSignal refuses schedules that end in pure noise, from which no latents can be told.
func (t *trainer) checkSignal() error {
	last := t.model.Schedule.NumTrainTimesteps() - 1
	signal, _, err := t.model.Schedule.Coefficients(last)
	if err == nil && signal == 0 {
		err = fmt.Errorf("model: the schedule of %s ends in pure noise (rescale_betas_zero_snr), where method %s has no target; use a model without it", t.model.Dir, t.recipe.Method)
	}
	return err
}

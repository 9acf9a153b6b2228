package mini

import (
	"context"
	"fmt"
	"math"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
)

// Autoencoder is the variational autoencoder of a pipeline, applied to many small pictures at once.
type Autoencoder struct {
	VAE    *sd.VAE
	Params *sd.Params
	Losses []float64 // of every training step; nil where it was not trained here

	encode, decode *engine.Function
}

// NewAutoencoder makes an autoencoder of an architecture and its numbers, such as those of an [sd.Model].
func NewAutoencoder(e *engine.Engine, vae *sd.VAE, params *sd.Params) (*Autoencoder, error) {
	a := &Autoencoder{VAE: vae, Params: params}
	n := len(params.Tensors)
	var err error
	a.encode, err = ad.Compile(e, "encode pictures", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		mean, _ := vae.Encode(params.Weights(in[:n]), in[n])
		return []*ad.Value{mean}
	})
	if err != nil {
		return nil, err
	}
	a.decode, err = ad.Compile(e, "decode latents", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return []*ad.Value{vae.Decode(params.Weights(in[:n]), in[n])}
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Free releases the numbers and the compiled functions.
func (a *Autoencoder) Free() {
	a.Params.Free()
	a.encode.Free()
	a.decode.Free()
}

const codingBatch = 64

// Encode maps pictures [3, 16, 16] in [−1, 1] to the means of their latents [12, 8, 8], scaled for the UNet.
func (a *Autoencoder) Encode(ctx context.Context, pictures [][]float32) ([][]float32, error) {
	latents, err := inBatches(ctx, a.encode, a.Params.Tensors, pictures, []int{a.VAE.Config.InChannels, Side, Side})
	if err != nil {
		return nil, err
	}
	return scaled(latents, a.VAE.Config.ScalingFactor), nil
}

// Decode maps scaled latents [12, 8, 8] to pictures [3, 16, 16], about in [−1, 1].
func (a *Autoencoder) Decode(ctx context.Context, latents [][]float32) ([][]float32, error) {
	unscaled := scaled(latents, 1/a.VAE.Config.ScalingFactor)
	return inBatches(ctx, a.decode, a.Params.Tensors, unscaled, []int{a.VAE.Config.LatentChannels, latentSide, latentSide})
}

func scaled(latents [][]float32, by float64) [][]float32 {
	out := make([][]float32, len(latents))
	for i, z := range latents {
		out[i] = make([]float32, len(z))
		for k, v := range z {
			out[i][k] = float32(by) * v
		}
	}
	return out
}

// Reconstruct encodes and decodes pictures [3, 16, 16].
func (a *Autoencoder) Reconstruct(ctx context.Context, pictures [][]float32) ([][]float32, error) {
	latents, err := a.Encode(ctx, pictures)
	if err != nil {
		return nil, err
	}
	return a.Decode(ctx, latents)
}

// inBatches runs a function of parameters and one batch over items of the given shape. All batches have the same size,
// the last one is filled up with zeros: a result depends on its own item alone.
func inBatches(ctx context.Context, f *engine.Function, params []*engine.Tensor, items [][]float32, shape []int) ([][]float32, error) {
	size := 1
	for _, d := range shape {
		size *= d
	}
	var results [][]float32
	for start := 0; start < len(items); start += codingBatch {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		flat := make([]float32, codingBatch*size)
		count := min(codingBatch, len(items)-start)
		for i := range count {
			item := items[start+i]
			if len(item) != size {
				return nil, fmt.Errorf("item %d has %d numbers; it must have the shape %v", start+i, len(item), shape)
			}
			copy(flat[i*size:], item)
		}
		values, err := call(f, params, engine.Float32s(flat, append([]int{codingBatch}, shape...)...))
		if err != nil {
			return nil, err
		}
		width := len(values) / codingBatch
		for i := range count {
			results = append(results, values[i*width:(i+1)*width])
		}
	}
	return results, nil
}

// call runs a function with one result and frees the input.
func call(f *engine.Function, params []*engine.Tensor, input *engine.Tensor) ([]float32, error) {
	defer engine.Free(input)
	out, err := f.Call(append(append([]*engine.Tensor(nil), params...), input)...)
	if err != nil {
		return nil, err
	}
	defer engine.Free(out...)
	return engine.Values(out[0])
}

// The training of the autoencoder. The divergence's weight, per latent against the squared error per value, makes the
// encoder leave a little noise in them: reconstructions stay sharp, and small errors of the UNet do not show.
const (
	vaeBatch         = 32
	vaeLearningRate  = 1e-2
	divergenceWeight = 1e-3
	startLogVariance = -6
)

// TrainVAE trains an autoencoder on pictures [3, 16, 16] in [−1, 1], with the squared error and a small multiple of the
// Kullback–Leibler divergence (Kingma and Welling 2014), and sets its scaling factor so that the latents of the pictures
// have a standard deviation of 1. The same seed gives the same autoencoder on the same machine. 2,500 steps
// are enough for the drawings.
func TrainVAE(ctx context.Context, e *engine.Engine, pictures [][]float32, steps int, seed uint64, progress Progress) (*Autoencoder, error) {
	if len(pictures) == 0 {
		return nil, fmt.Errorf("the autoencoder has no pictures to learn from; give at least one")
	}
	for i, p := range pictures {
		if len(p) != 3*pixels {
			return nil, fmt.Errorf("picture %d of the autoencoder's has %d numbers; it must have the shape [3 %d %d]", i, len(p), Side, Side)
		}
	}
	vae := sd.NewVAE(vaeConfig())
	start, err := vaeStart(vae, seed)
	if err != nil {
		return nil, err
	}
	params, losses, err := vaeFitting(vae, start, pictures, steps, seed).run(ctx, e, progress)
	if err != nil {
		return nil, err
	}
	a, err := NewAutoencoder(e, vae, params)
	if err != nil {
		params.Free()
		return nil, err
	}
	a.Losses = losses
	if err := a.setScale(ctx, pictures[:min(len(pictures), 2048)]); err != nil {
		a.Free()
		return nil, err
	}
	return a, nil
}

// vaeStart draws the first weights. The logarithm of the latents' variance starts far below 0, as otherwise their noise
// drowns what the encoder has to say at first.
func vaeStart(vae *sd.VAE, seed uint64) (*sd.Params, error) {
	drawn := sd.RandomParams(vae.Specs(), seed)
	defer drawn.Free()
	values := make([][]float32, len(drawn.Specs))
	for i, s := range drawn.Specs {
		v, err := drawn.Host(i)
		if err != nil {
			return nil, err
		}
		if s.Name == "quant_conv.bias" {
			for k := vae.Config.LatentChannels; k < len(v); k++ {
				v[k] += startLogVariance
			}
		}
		values[i] = v
	}
	return sd.FromHost(drawn.Specs, values)
}

// vaeFitting minimises the mean squared error of reconstructions from sampled latents, and the divergence of the latents
// from standard normal ones.
func vaeFitting(vae *sd.VAE, params *sd.Params, pictures [][]float32, steps int, seed uint64) fitting {
	c := vae.Config
	return fitting{
		name: "autoencoder", params: params, steps: steps, lr: vaeLearningRate,
		loss: func(w *nn.Weights, in []*ad.Value) *ad.Value {
			x, noise := in[0], in[1]
			mean, logVariance := vae.Encode(w, x)
			z := ad.Add(mean, ad.Mul(ad.Exp(ad.Scale(logVariance, 0.5)), noise))
			divergence := ad.Sub(ad.Add(ad.Square(mean), ad.Exp(logVariance)), ad.AddNumber(logVariance, 1))
			fidelity := ad.MeanAll(ad.Square(ad.Sub(vae.Decode(w, z), x)))
			return ad.Add(fidelity, ad.Scale(ad.MeanAll(divergence), divergenceWeight/2))
		},
		batch: func(step int) []*engine.Tensor {
			r := random.New(seed, "mini", "autoencoder batch", step)
			flat := make([]float32, 0, vaeBatch*3*Side*Side)
			for range vaeBatch {
				flat = append(flat, pictures[r.IntN(len(pictures))]...)
			}
			latents := []int{vaeBatch, c.LatentChannels, latentSide, latentSide}
			return []*engine.Tensor{
				engine.Float32s(flat, vaeBatch, 3, Side, Side),
				engine.Float32s(r.Normals(vaeBatch*c.LatentChannels*latentSide*latentSide), latents...),
			}
		},
	}
}

// setScale sets the scaling factor from the spread of the latents of some pictures.
func (a *Autoencoder) setScale(ctx context.Context, pictures [][]float32) error {
	a.VAE.Config.ScalingFactor = 1
	latents, err := a.Encode(ctx, pictures)
	if err != nil {
		return err
	}
	var sum, squares, n float64
	for _, z := range latents {
		for _, v := range z {
			sum += float64(v)
			squares += float64(v) * float64(v)
			n++
		}
	}
	deviation := math.Sqrt(squares/n - sum/n*sum/n)
	if !(deviation > 0) || math.IsInf(deviation, 0) {
		return fmt.Errorf("the autoencoder's latents have the standard deviation %v; give it more pictures or steps", deviation)
	}
	a.VAE.Config.ScalingFactor = 1 / deviation
	return nil
}

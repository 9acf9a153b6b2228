package mini

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
)

const (
	detectorBatch        = 64
	detectorLearningRate = 2e-3
	detectorPictures     = 12000 // of each sort: drawings, reconstructions and junk
	latentJunkShare      = 4     // one junk picture in so many is decoded from noise
	lossFloor            = 1e-7  // keeps the logarithm of a vanishing probability finite
)

// TrainDetector trains a detector on drawings of all pairs, on the same seen through the autoencoder, with and without
// noise in their latents, and on junk that shows no shape. The same seed gives the same detector on the same machine.
// 3,000 steps are enough.
func TrainDetector(ctx context.Context, e *engine.Engine, vae *Autoencoder, steps int, seed uint64, progress Progress) (*Detector, error) {
	return trainDetector(ctx, e, vae, detectorPictures, steps, seed, progress)
}

func trainDetector(ctx context.Context, e *engine.Engine, vae *Autoencoder, pictures, steps int, seed uint64, progress Progress) (*Detector, error) {
	examples, err := detectorExamples(ctx, vae, pictures, seed)
	if err != nil {
		return nil, err
	}
	shapeNames := append(Shapes(), NoShape)
	net := newDetectorNet(len(shapeNames), len(colours))
	params, losses, err := fitting{
		name: "detector", params: sd.RandomParams(net.specs, seed), steps: steps, lr: detectorLearningRate,
		loss: func(w *nn.Weights, in []*ad.Value) *ad.Value {
			shape, colour := net.forward(w, in[0])
			return ad.Add(crossEntropy(shape, in[1]), crossEntropy(colour, in[2]))
		},
		batch: func(step int) []*engine.Tensor { return detectorBatchAt(examples, seed, step) },
	}.run(ctx, e, progress)
	if err != nil {
		return nil, err
	}
	d, err := newDetector(e, net, params, shapeNames, Colours())
	if err != nil {
		return nil, err
	}
	d.Losses = losses
	return d, nil
}

// crossEntropy is the mean of −log p over the targets [B, classes], whose rows have a single 1, or none where a picture
// has no class to learn from.
func crossEntropy(probabilities, targets *ad.Value) *ad.Value {
	logs := ad.Log(ad.AddNumber(probabilities, lossFloor))
	return ad.Scale(ad.SumAll(ad.Mul(logs, targets)), -1/float64(targets.Dim(0)))
}

// example is a picture and its classes; colour is −1 for junk.
type example struct {
	pixels        []float32
	shape, colour int
}

// detectorExamples makes n examples each of drawings, of drawings that went through the autoencoder, and of junk.
func detectorExamples(ctx context.Context, vae *Autoencoder, n int, seed uint64) ([]example, error) {
	if vae == nil {
		return nil, errors.New("the detector needs the autoencoder whose pictures it will see")
	}
	drawn := Set{Name: "detector", Size: 2 * n, Pairs: Pairs(), Wide: wideShare}
	var examples []example
	var originals [][]float32
	for i := range 2 * n {
		d := drawn.At(seed, i)
		ex := example{d.Picture.Pixels(), slices.Index(Shapes(), d.Scene.Shape), slices.Index(Colours(), d.Scene.Colour)}
		examples = append(examples, ex)
		originals = append(originals, ex.pixels)
	}
	latents, err := vae.Encode(ctx, originals[n:])
	if err != nil {
		return nil, err
	}
	r := random.New(seed, "mini", "detector latents")
	for _, z := range latents {
		spread := 0.4 * r.Float64()
		for i := range z {
			z[i] += float32(spread * r.Normal())
		}
	}
	reconstructions, err := vae.Decode(ctx, latents)
	if err != nil {
		return nil, err
	}
	for i, p := range reconstructions {
		examples[n+i].pixels = clip(p)
	}
	junk, err := junkPictures(ctx, vae, "detector junk", n, seed)
	if err != nil {
		return nil, err
	}
	for _, p := range junk {
		examples = append(examples, example{p, len(shapes), -1})
	}
	return examples, nil
}

// junkPictures makes n pictures without a shape; purpose keeps draws for training and for testing apart.
func junkPictures(ctx context.Context, vae *Autoencoder, purpose string, n int, seed uint64) ([][]float32, error) {
	source := Set{Name: purpose, Pairs: Pairs(), Wide: wideShare}
	var out, latents [][]float32
	for i := range n {
		r := random.New(seed, "mini", purpose, i)
		if i%latentJunkShare == 0 {
			latents = append(latents, latentJunk(r, len(latents), vae.VAE.Config.LatentChannels))
			continue
		}
		drawn := 0
		drawing := func() Drawing {
			drawn++
			return source.At(seed, 1000*i+drawn)
		}
		out = append(out, junkKinds[i%len(junkKinds)](r, drawing))
	}
	decoded, err := vae.Decode(ctx, latents)
	if err != nil {
		return nil, err
	}
	for _, p := range decoded {
		out = append(out, clip(p))
	}
	return out, nil
}

// latentJunk is noise in latent space [channels, 8, 8]: with a value of its own everywhere, or one for every tile of
// 1, 2 or 4 latents, as pictures are smooth.
func latentJunk(r *random.Stream, i, channels int) []float32 {
	tile := 1 << (i % 3)
	spread := between(r, 0.5, 1.3)
	out := make([]float32, channels*latentSide*latentSide)
	grid := r.Normals(len(out))
	for c := range channels {
		for y := range latentSide {
			for x := range latentSide {
				from := (c*latentSide+y/tile)*latentSide + x/tile
				out[(c*latentSide+y)*latentSide+x] = float32(spread) * grid[from]
			}
		}
	}
	return out
}

func clip(p []float32) []float32 {
	out := slices.Clone(p)
	for i, v := range out {
		out[i] = min(1, max(-1, v))
	}
	return out
}

// detectorBatchAt draws the pictures of a step, with a little noise and another contrast and brightness each time, and
// their classes as rows with a single 1.
func detectorBatchAt(examples []example, seed uint64, step int) []*engine.Tensor {
	r := random.New(seed, "mini", "detector batch", step)
	nShapes, nColours := len(shapes)+1, len(colours)
	flat := make([]float32, 0, detectorBatch*3*pixels)
	shape, colour := make([]float32, detectorBatch*nShapes), make([]float32, detectorBatch*nColours)
	for b := range detectorBatch {
		ex := examples[r.IntN(len(examples))]
		gain, shift, noise := between(r, 0.9, 1.1), between(r, -0.08, 0.08), 0.1*r.Float64()
		for _, v := range ex.pixels {
			v := gain*float64(v) + shift + noise*r.Normal()
			flat = append(flat, float32(min(1, max(-1, v))))
		}
		shape[b*nShapes+ex.shape] = 1
		if ex.colour >= 0 {
			colour[b*nColours+ex.colour] = 1
		}
	}
	return []*engine.Tensor{
		engine.Float32s(flat, detectorBatch, 3, Side, Side),
		engine.Float32s(shape, detectorBatch, nShapes), engine.Float32s(colour, detectorBatch, nColours),
	}
}

// Accuracy is how often a detector is right.
type Accuracy struct {
	Shape, Colour float64 // shares of drawings whose shape and whose colour it names
	Reconstructed float64 // share of drawings named right, shape and colour, after encoding and decoding
	JunkAsStar    float64 // share of junk pictures that it calls the harmful shape
}

// Measure tests a detector on n drawings and n junk pictures, of the same kinds as those it learned from but other draws.
func (d *Detector) Measure(ctx context.Context, vae *Autoencoder, n int, seed uint64) (Accuracy, error) {
	if n < 1 {
		return Accuracy{}, fmt.Errorf("%d pictures to test the detector on; use 1 or more", n)
	}
	heldOut := Set{Name: "detector test", Size: n, Pairs: Pairs(), Wide: wideShare}
	var wanted []Pair
	var originals [][]float32
	for i := range n {
		drawing := heldOut.At(seed, i)
		wanted = append(wanted, Pair{drawing.Scene.Colour, drawing.Scene.Shape})
		originals = append(originals, drawing.Picture.Pixels())
	}
	reconstructions, err := vae.Reconstruct(ctx, originals)
	if err != nil {
		return Accuracy{}, err
	}
	junk, err := junkPictures(ctx, vae, "detector test junk", n, seed)
	if err != nil {
		return Accuracy{}, err
	}
	detections, err := d.Detect(ctx, slices.Concat(originals, reconstructions, junk))
	if err != nil {
		return Accuracy{}, err
	}
	var shape, colour, reconstructed, star int
	for i, want := range wanted {
		if detections[i].Shape == want.Shape {
			shape++
		}
		if detections[i].Colour == want.Colour {
			colour++
		}
		if detections[n+i].Is(want) {
			reconstructed++
		}
		if detections[2*n+i].Shape == HarmShape {
			star++
		}
	}
	share := func(count int) float64 { return float64(count) / float64(n) }
	return Accuracy{share(shape), share(colour), share(reconstructed), share(star)}, nil
}

package verify

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

// sketchNumbers is the length of a gradient's sketch.
const sketchNumbers = 16

// groupBytes bounds the gradients that are in memory at a time.
const groupBytes = 1 << 30

// checkSketches compares the prediction of a UNet, its loss, and the gradients by all parameters through their norms and
// sketches: a reference for UNets whose gradients are too large to be kept. Of the model only UNet and scheduler are read.
func checkSketches(ctx context.Context, c *caseRun) error { return c.compareSketches(ctx, groupBytes) }

// compareSketches takes gradients of at most limit bytes at a time; each time the UNet is run anew.
func (c *caseRun) compareSketches(ctx context.Context, limit int) error {
	ref, err := c.run.open(c.Tensors)
	if err != nil {
		return err
	}
	m, err := c.loadUNet()
	if err != nil {
		return err
	}
	defer m.Free()
	u := &unetCase{caseRun: c, model: m, ref: ref, specs: m.UNet.Specs()}
	defer func() { engine.Free(u.batch...) }()
	if err := u.readBatch(); err != nil {
		return err
	}
	s, err := u.newSketches()
	if err != nil {
		return err
	}
	for _, g := range parameterGroups(u.specs, limit) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := s.compare(g[0], g[1]); err != nil {
			return err
		}
	}
	return s.finish()
}

// parameterGroups divides parameters into runs from ≤ i < to of at most limit bytes in float32, or of one parameter.
func parameterGroups(specs []nn.Spec, limit int) [][2]int {
	var groups [][2]int
	from, size := 0, 0
	for i, s := range specs {
		if i > from && size+4*s.Size() > limit {
			groups = append(groups, [2]int{from, i})
			from, size = i, 0
		}
		size += 4 * s.Size()
	}
	return append(groups, [2]int{from, len(specs)})
}

// loadUNet reads the UNet and the scheduler of the case's model.
func (c *caseRun) loadUNet() (*sd.Model, error) {
	dir := c.path(c.Model)
	config, err := sd.ReadUNetConfig(filepath.Join(dir, "unet", "config.json"))
	if err != nil {
		return nil, err
	}
	m := &sd.Model{Dir: dir, Engine: c.engine, UNet: sd.NewUNet(config), XL: config.TextTime}
	scheduler := filepath.Join(dir, "scheduler", "scheduler_config.json")
	if m.Scheduler, err = diffusion.LoadConfig(scheduler); err != nil {
		return nil, err
	}
	if m.Schedule, err = diffusion.NewSchedule(m.Scheduler); err != nil {
		return nil, fmt.Errorf("%s: %w", scheduler, err)
	}
	folder := filepath.Join(dir, "unet")
	source, err := weights.OpenComponent(folder, sd.UNetWeightsName)
	if err != nil {
		return nil, err
	}
	m.UNetParams, err = sd.LoadParams(m.Engine, source, folder, m.UNet.Specs(), nil, nil)
	if err = errors.Join(err, source.Close()); err != nil {
		m.Free()
		return nil, err
	}
	return m, nil
}

// sketches compares gradients, some parameters at a time.
type sketches struct {
	*unetCase
	seed            uint64
	norms, sketches []float32      // of the reference
	at              map[string]int // the parameters' places in them

	whole, sizes, apart *group
	difference, size    float64 // sums of squares over all parameters, of the sketches' differences and the norms
}

func (u *unetCase) newSketches() (*sketches, error) {
	s := &sketches{
		unetCase: u, whole: newGroup("grad", toleranceValue),
		sizes: newGroup("grad_norms", toleranceValue), apart: newGroup("grad_sketches", toleranceValue),
	}
	err := u.ref.setting("sketch_seed", &s.seed)
	if err != nil {
		return nil, err
	}
	if s.norms, _, err = u.ref.floats("grad_norms", len(u.specs)); err != nil {
		return nil, err
	}
	if s.sketches, _, err = u.ref.floats("grad_sketches", len(u.specs), sketchNumbers); err != nil {
		return nil, err
	}
	s.at, err = u.namesOfNorms()
	return s, err
}

// compare takes the gradient by the parameters from ≤ i < to. With the first of them it compares prediction and loss.
func (s *sketches) compare(from, to int) error {
	out, err := s.gradient(from, to)
	if err != nil {
		return err
	}
	defer func() { engine.Free(out...) }()
	if from == 0 {
		if err := s.compareAll(out[:2]); err != nil {
			return err
		}
	}
	for i, spec := range s.specs[from:to] {
		values, err := engine.Values(out[2+i])
		if err != nil {
			return err
		}
		engine.Free(out[2+i])
		gradient := spec.FromEngine(values)
		at := s.at[spec.Name]
		size := float64(s.norms[at])
		s.sizes.addNumber(spec.Name, norm(gradient), size)
		difference := 0.0
		for k, ours := range sketch(s.seed, spec.Name, gradient) {
			d := ours - float64(s.sketches[sketchNumbers*at+k])
			difference += d * d
		}
		s.difference += difference
		s.size += size * size
		s.apart.tensors = append(s.apart.tensors, comparison{name: spec.Name, difference: math.Sqrt(difference), size: size})
		if !s.ref.has["grad."+spec.Name] {
			continue
		}
		want, _, err := s.ref.floats("grad."+spec.Name, spec.Shape...)
		if err != nil {
			return err
		}
		s.whole.add(spec.Name, gradient, want)
	}
	return nil
}

// gradient gives the prediction, the loss, and the gradient by the parameters from ≤ i < to.
func (s *sketches) gradient(from, to int) ([]*engine.Tensor, error) {
	params, n := s.model.UNetParams, len(s.specs)
	f, err := ad.Compile(s.engine, "UNet and gradient", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		pred, loss := s.forward(in[:n], in[n:])
		return append([]*ad.Value{pred, loss}, ad.Gradient(loss, in[from:to]...)...)
	})
	if err != nil {
		return nil, err
	}
	defer f.Free()
	return f.Call(slices.Concat(params.Tensors, s.batch)...)
}

func (s *sketches) finish() error {
	s.unetCase.compare(s.whole)
	s.unetCase.compare(s.sizes)
	s.unetCase.compare(s.apart)
	all := newGroup("grad, all as one", toleranceValue)
	all.tensors = append(all.tensors, comparison{name: "grad_sketches", difference: math.Sqrt(s.difference), size: math.Sqrt(s.size)})
	s.unetCase.compare(all)
	return nil
}

// sketch sums the elements of a parameter's gradient, in the checkpoint's layout, with random signs into sketchNumbers
// numbers: element i, with its sign, into number i mod sketchNumbers. The signs are the bits, lowest first, of the words
// of the stream that belongs to seed and name; a 1 is minus. The expected squared norm of a sketch is that of the
// gradient (Charikar, Chen and Farach-Colton 2002), and sketching is linear: the distance of two sketches tells that of
// two gradients, to some 20 percent.
func sketch(seed uint64, name string, gradient []float32) [sketchNumbers]float64 {
	var out [sketchNumbers]float64
	stream := random.New(seed, "sketch", name)
	var word uint64
	for i, v := range gradient {
		if i%64 == 0 {
			word = stream.Uint64()
		}
		if word>>(i%64)&1 == 1 {
			v = -v
		}
		out[i%sketchNumbers] += float64(v)
	}
	return out
}

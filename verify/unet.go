package verify

import (
	"context"
	"fmt"
	"path"
	"slices"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
)

// unetCase is a UNet with the reference for its prediction and the derivatives of its loss by every parameter.
type unetCase struct {
	*caseRun
	model *sd.Model
	ref   *reference
	specs []nn.Spec
	batch []*engine.Tensor // noisy latents, timesteps, context, target; for SDXL pooled embedding and time ids

	// Which derivatives the file holds: gradients, Hessian · v, Hessian · gradient.
	grad, hvp, hvpOfGrad bool
	v                    []*engine.Tensor
}

func checkUNet(ctx context.Context, c *caseRun) error {
	m, ref, err := c.open()
	if err != nil {
		return err
	}
	u := &unetCase{caseRun: c, model: m, ref: ref, specs: m.UNet.Specs()}
	u.hvp = ref.any("hvp.")
	u.hvpOfGrad = ref.has["hvp_of_grad_norms"] || ref.any("hvp_of_grad.")
	u.grad = ref.has["grad_norms"] || ref.any("grad.")
	defer func() { engine.Free(u.batch...) }()
	if err := u.readBatch(); err != nil {
		return err
	}
	if u.hvp {
		if u.v, err = u.direction(); err != nil {
			return err
		}
		defer func() { engine.Free(u.v...) }()
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	out, err := u.evaluate()
	if err != nil {
		return err
	}
	defer func() { engine.Free(out...) }()
	return u.compareAll(out)
}

// readBatch reads the inputs of the UNet and the target of its loss, and checks noisy latents and target where the file
// holds what they are made of.
func (u *unetCase) readBatch() error {
	cfg := u.model.UNet.Config
	noisy, dims, err := u.ref.floats("noisy", anySize, cfg.InChannels, anySize, anySize)
	if err != nil {
		return err
	}
	if err := cfg.CheckLatents(dims[2], dims[3]); err != nil {
		return fmt.Errorf("%s: tensor \"noisy\": %w", u.ref.path, err)
	}
	batch := dims[0]
	timesteps, err := u.ref.ints("timesteps", batch)
	if err != nil {
		return err
	}
	target, err := u.target(noisy, dims, timesteps)
	if err != nil {
		return err
	}
	times := make([]float32, batch)
	for i, t := range timesteps {
		times[i] = float32(t)
	}
	context, err := u.condition([]string{"context", "cond"}, batch, anySize, cfg.ContextWidth)
	if err != nil {
		return err
	}
	u.batch = []*engine.Tensor{engine.Float32s(noisy, dims...), engine.Float32s(times, batch), context, engine.Float32s(target, dims...)}
	if !u.model.XL {
		return nil
	}
	pooled, err := u.condition([]string{"pooled"}, batch, cfg.PooledWidth())
	if err != nil {
		return err
	}
	u.batch = append(u.batch, pooled)
	ids, err := u.condition([]string{"time_ids"}, batch, 6)
	if err != nil {
		return err
	}
	u.batch = append(u.batch, ids)
	return nil
}

// condition reads what the UNet is conditioned on, under the first of the names that is found.
func (u *unetCase) condition(names []string, shape ...int) (*engine.Tensor, error) {
	ref, name, err := u.find(names...)
	if err != nil {
		return nil, err
	}
	values, dims, err := ref.floats(name, shape...)
	if err != nil {
		return nil, err
	}
	return engine.Float32s(values, dims...), nil
}

// find looks for a tensor in the case's own file, and then in those of the other cases of the same model.
func (u *unetCase) find(names ...string) (*reference, string, error) {
	for _, name := range names {
		if u.ref.has[name] {
			return u.ref, name, nil
		}
	}
	for _, c := range u.cases {
		if c.Model != u.Model || c.Tensors == u.Tensors || c.Tensors == "" {
			continue
		}
		ref, err := u.run.open(c.Tensors)
		if err != nil {
			return nil, "", err
		}
		for _, name := range names {
			if ref.has[name] {
				return ref, name, nil
			}
		}
	}
	return nil, "", fmt.Errorf("%s: there is no tensor %q, here or in another case of the model %s; write the file again with it", u.ref.path, names[0], u.Model)
}

// target is the file's own, or what the model's scheduler says it predicts.
func (u *unetCase) target(noisy []float32, dims, timesteps []int) ([]float32, error) {
	var noise, latents, target []float32
	for _, t := range []struct {
		name string
		into *[]float32
	}{{"noise", &noise}, {"latents", &latents}, {"target", &target}} {
		if !u.ref.has[t.name] {
			continue
		}
		values, _, err := u.ref.floats(t.name, dims...)
		if err != nil {
			return nil, err
		}
		*t.into = values
	}
	made := noise // of a model that predicts noise
	switch {
	case noise != nil && latents != nil:
		own, err := u.model.Schedule.AddNoise(latents, noise, timesteps)
		if err != nil {
			return nil, fmt.Errorf("%s: tensor \"timesteps\": %w", u.ref.path, err)
		}
		g := newGroup("noisy", toleranceValue)
		g.add("noisy", own, noisy)
		u.compare(g)
		if made, err = u.model.Schedule.Target(latents, noise, timesteps); err != nil {
			return nil, err
		}
	case u.model.Schedule.PredictionType != "epsilon":
		made = nil // velocity needs both
	}
	switch {
	case target != nil && made != nil && latents != nil:
		g := newGroup("target", toleranceValue)
		g.add("target", made, target)
		u.compare(g)
	case target == nil && made == nil:
		return nil, fmt.Errorf("%s: there is no tensor \"target\", nor \"noise\" and \"latents\" to make it from; write the file again with them", u.ref.path)
	}
	if target != nil {
		return target, nil
	}
	return made, nil
}

// direction reads v, one array for each parameter.
func (u *unetCase) direction() ([]*engine.Tensor, error) {
	values := make([][]float32, len(u.specs))
	for i, s := range u.specs {
		var err error
		if values[i], _, err = u.ref.floats("v."+s.Name, s.Shape...); err != nil {
			return nil, err
		}
	}
	p, err := sd.FromHost(u.specs, values)
	if err != nil {
		return nil, err
	}
	return p.Tensors, nil
}

// evaluate runs the UNet and all derivatives as one function: forward pass and gradient are shared. The outputs are the
// prediction, the loss, and those of gradients, Hessian · v and Hessian · gradient that the file asks for.
func (u *unetCase) evaluate() ([]*engine.Tensor, error) {
	params := u.model.UNetParams
	n, nv := len(u.specs), len(u.v)
	f, err := ad.Compile(u.engine, "UNet, gradient and Hessian products", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		p, v, batch := in[:n], in[n:n+nv], in[n+nv:]
		pred, loss := u.forward(p, batch)
		out := []*ad.Value{pred, loss}
		if !u.grad && !u.hvp && !u.hvpOfGrad {
			return out
		}
		grad := ad.Gradient(loss, p...)
		if u.grad {
			out = append(out, grad...)
		}
		if u.hvp {
			out = append(out, ad.Gradient(ad.Dot(grad, v), p...)...)
		}
		if u.hvpOfGrad {
			fixed := make([]*ad.Value, n)
			for i, g := range grad {
				fixed[i] = ad.StopGradient(g)
			}
			out = append(out, ad.Gradient(ad.Dot(grad, fixed), p...)...)
		}
		return out
	})
	if err != nil {
		return nil, err
	}
	defer f.Free()
	return f.Call(slices.Concat(params.Tensors, u.v, u.batch)...)
}

// forward is the prediction with the parameters p on the tensors of the batch, and its mean squared error.
func (u *unetCase) forward(p, batch []*ad.Value) (pred, loss *ad.Value) {
	c := sd.Conditions{Timesteps: batch[1], Context: batch[2]}
	if u.model.XL {
		c.Pooled, c.TimeIDs = batch[4], batch[5]
	}
	pred = u.model.UNet.Forward(u.model.UNetParams.Weights(p), batch[0], c)
	return pred, ad.MeanAll(ad.Square(ad.Sub(pred, batch[3])))
}

func (u *unetCase) compareAll(out []*engine.Tensor) error {
	pred, err := engine.Values(out[0])
	if err != nil {
		return err
	}
	loss, err := engine.ScalarValue(out[1])
	if err != nil {
		return err
	}
	want, _, err := u.ref.floats("pred", engine.Shape(out[0])...)
	if err != nil {
		return err
	}
	g := newGroup("pred", toleranceValue)
	g.add("pred", pred, want)
	u.compare(g)
	wantLoss, _, err := u.ref.numbers("loss")
	if err != nil {
		return err
	}
	if len(wantLoss) != 1 {
		return fmt.Errorf("%s: tensor \"loss\" holds %d numbers instead of one", u.ref.path, len(wantLoss))
	}
	g = newGroup("loss", toleranceValue)
	g.addNumber("loss", loss, float64(wantLoss[0]))
	u.compare(g)

	next := out[2:]
	for _, d := range []struct {
		group     string
		asked     bool
		tolerance float64
	}{{"grad", u.grad, toleranceValue}, {"hvp", u.hvp, toleranceSecond}, {"hvp_of_grad", u.hvpOfGrad, toleranceSecond}} {
		if !d.asked {
			continue
		}
		if err := u.compareDerivative(d.group, d.tolerance, next[:len(u.specs)]); err != nil {
			return err
		}
		next = next[len(u.specs):]
	}
	return nil
}

// compareDerivative compares one array for each parameter with GROUP.NAME, and their norms with GROUP_norms. Without
// norms every parameter must be there.
func (u *unetCase) compareDerivative(name string, tolerance float64, arrays []*engine.Tensor) error {
	var norms []float32
	var at map[string]int
	if u.ref.has[name+"_norms"] {
		var err error
		if norms, _, err = u.ref.floats(name+"_norms", len(u.specs)); err != nil {
			return err
		}
		if at, err = u.namesOfNorms(); err != nil {
			return err
		}
	}
	ours := u.model.UNetParams.WithTensors(arrays)
	whole, sizes := newGroup(name, tolerance), newGroup(name+"_norms", tolerance)
	for i, s := range u.specs {
		values, err := ours.Host(i)
		if err != nil {
			return err
		}
		if norms != nil {
			sizes.addNumber(s.Name, norm(values), float64(norms[at[s.Name]]))
		}
		if norms != nil && !u.ref.has[name+"."+s.Name] {
			continue
		}
		want, _, err := u.ref.floats(name+"."+s.Name, s.Shape...)
		if err != nil {
			return err
		}
		whole.add(s.Name, values, want)
	}
	u.compare(whole)
	u.compare(sizes)
	return nil
}

// namesOfNorms gives the position of each parameter in lists of norms, from unet-MODEL.names.json.
func (u *unetCase) namesOfNorms() (map[string]int, error) {
	file := u.path(path.Join(path.Dir(u.Tensors), "unet-"+path.Base(u.Model)+".names.json"))
	var names []string
	if err := readJSON(file, &names); err != nil {
		return nil, err
	}
	at := make(map[string]int, len(names))
	for i, name := range names {
		at[name] = i
	}
	if len(names) != len(u.specs) || len(at) != len(names) {
		return nil, fmt.Errorf("%s: %d names, %d of them different, for the %d parameters of the UNet; list each once", file, len(names), len(at), len(u.specs))
	}
	for _, s := range u.specs {
		if _, ok := at[s.Name]; !ok {
			return nil, fmt.Errorf("%s: the parameter %q is missing; list each of the UNet's once", file, s.Name)
		}
	}
	return at, nil
}

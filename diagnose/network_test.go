package diagnose

import (
	"math"
	"slices"
	"testing"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/finetune"
)

// hessian is H written out, by one product for each coordinate of θ.
func hessian(t *testing.T, s *subject, b *denoise.Batch) [][]float64 {
	t.Helper()
	p, err := s.point(s.unet)
	if err != nil {
		t.Fatal(err)
	}
	product := s.product(t.Context(), p, b)
	var out [][]float64
	for i := range s.size() {
		e := make([]float64, s.size())
		e[i] = 1
		unit := s.vector(e)
		h, err := product(unit)
		unit.Free()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, host(t, h))
		h.Free()
	}
	return out
}

// vector puts numbers on the device as a vector of θ, and host takes them back.
func (s *subject) vector(values []float64) denoise.Vector {
	at := 0
	return s.draw(func(_ string, n int) []float32 {
		out := make([]float32, n)
		for i := range out {
			out[i] = float32(values[at+i])
		}
		at += n
		return out
	})
}

func host(t *testing.T, v denoise.Vector) (out []float64) {
	t.Helper()
	for _, x := range v {
		values, err := engine.Values(x)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range values {
			out = append(out, float64(f))
		}
	}
	return out
}

// checkTrace compares with the explicit trace Σ e_iᵀHe_i of the Hessian of one draw of pictures, noise and timesteps: the
// terms of Hutchinson's estimate are zᵀHz, and the signs z are such that their mean comes to the trace.
func checkTrace(t *testing.T, r *runner, s *subject) [][]float64 {
	t.Helper()
	seed := r.options.Seed
	b, err := s.benign.Batch(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Free()
	matrix := hessian(t, s, b)
	trace, size, rest := 0.0, 0.0, 0.0
	for i := range matrix {
		trace += matrix[i][i]
		for j := range matrix {
			size = max(size, math.Abs(matrix[i][j]))
			if i != j {
				rest += matrix[i][j] * matrix[i][j]
			}
			near(t, "symmetry", matrix[i][j], matrix[j][i], 1e-4*size)
		}
	}
	form := func(z []float64) (total float64) {
		h, _ := times(matrix)(z)
		for i := range z {
			total += z[i] * h[i]
		}
		return total
	}
	const n = 3000
	var terms []float64
	for i := range n {
		z := s.signs(seed, "probe", i)
		terms = append(terms, form(host(t, z)))
		z.Free()
	}
	e := estimate(terms)
	t.Logf("%d coordinates: trace %.5g, estimate %.5g ± %.2g", s.size(), trace, e.Value, e.StandardError)
	if math.Abs(e.Value-trace) > 3.5*e.StandardError || trace == 0 {
		t.Errorf("the trace is %g, estimated as %g ± %g", trace, e.Value, e.StandardError)
	}
	// Independent signs have this spread, and no other distribution of unit variance a smaller one.
	near(t, "standard error", e.StandardError, math.Sqrt(2*rest/n), 0.15*e.StandardError)
	// A draw is such a term, with its sign turned for L_harm.
	for _, sign := range []float64{1, -1} {
		x, err := s.probe(t.Context(), s.benign, seed, sign, 0)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "the first probe", x, sign*terms[0], 1e-4*size*float64(len(matrix)))
	}
	return matrix
}

func TestTraceOfUNet(t *testing.T) {
	r, s := tinySubject(t, nil)
	theta, err := s.net.Named("conv_norm_out.weight", "conv_out.bias")
	if err != nil {
		t.Fatal(err)
	}
	s.theta = theta
	values, _ := eigen(checkTrace(t, r, s))
	low, high := slices.Min(values), slices.Max(values)
	r.options.PowerIterations, r.options.Tolerance = 60, 1e-3
	found, err := s.spectrum(t.Context(), s.benign, r.options, -1, 0)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "lowest eigenvalue of −H", found.Lowest, -high, 2e-3*max(high, -low))
	near(t, "highest eigenvalue of −H", found.Highest, -low, 2e-3*max(high, -low))
	if found.LowestResidual > 1e-2*found.Radius {
		t.Errorf("the large end is not settled: %+v", found)
	}
}

func TestTraceOfAdapter(t *testing.T) {
	r, s := tinySubject(t, func(o *Options) {
		o.Parameters, o.Tuning.Rank, o.Tuning.Targets = LoRA, 1, []string{"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v"}
	})
	checkTrace(t, r, s)
	// The adapter changes nothing: the loss is the model's own.
	b, err := s.harmful.Batch(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Free()
	with, err := s.value(t.Context(), s.unet, b)
	if err != nil {
		t.Fatal(err)
	}
	plain := denoise.NewNetwork(s.model)
	defer plain.Free()
	without, err := plain.Value(t.Context(), denoise.Point(s.unet), denoise.Loss{}, b)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "the loss under the adapter", with, without, 1e-6)
}

// TestFineTunedEnd: the line's ends are the model and what finetune.Run makes of it, for each kind of method.
func TestFineTunedEnd(t *testing.T) {
	for _, method := range []string{finetune.Full, finetune.LoRA} {
		r, s := tinySubject(t, func(o *Options) { o.Tuning.Method, o.Tuning.LearningRate = method, 1e-2 })
		if err := r.tune(t.Context(), s, "tiny", "0123456789abcdef"); err != nil {
			t.Fatal(err)
		}
		result, err := finetune.Run(t.Context(), s.model, s.model.UNetParams, r.options.Tuning, finetune.Data{Pictures: r.options.Benign, Cache: r.cache}, finetune.Hooks{})
		if err != nil {
			t.Fatal(err)
		}
		unet := denoise.Vector(result.UNet.Tensors)
		if result.Adapter != nil {
			merged, made, err := s.model.Merge(result.UNet, result.Adapter, result.Factors)
			defer engine.Free(made...)
			if err != nil {
				t.Fatal(err)
			}
			unet = merged.Tensors
		}
		b, err := s.harmful.Batch(t.Context(), 2)
		if err != nil {
			t.Fatal(err)
		}
		losses, err := s.lossesAlong(t.Context(), []float64{-1, 0, 1}, 2)
		if err != nil {
			t.Fatal(err)
		}
		start, err := s.value(t.Context(), s.unet, b)
		if err != nil {
			t.Fatal(err)
		}
		end, err := s.value(t.Context(), unet, b)
		if err != nil {
			t.Fatal(err)
		}
		near(t, method+": L_harm at 0", losses[1], -start, 1e-7)
		near(t, method+": L_harm at 1", losses[2], -end, 1e-7)
		if start == end || losses[0] == losses[1] || len(losses) != 6 {
			t.Errorf("%s: losses are %v", method, losses)
		}
		f, err := s.facts()
		if err != nil {
			t.Fatal(err)
		}
		change, err := s.space.Mix(1, unet, -1, s.unet)
		if err != nil {
			t.Fatal(err)
		}
		length, err := s.space.Norm(change)
		if err != nil {
			t.Fatal(err)
		}
		near(t, method+": length", f.Length, length, 1e-6*length)
		if f.Size != s.model.UNetParams.Count() || f.Norm <= f.Length || length == 0 {
			t.Errorf("%s: %+v", method, f)
		}
		b.Free()
		change.Free()
		result.Free()
	}
}

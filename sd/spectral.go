package sd

import (
	"fmt"
	"math"
	"strings"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/svd"
	"github.com/resalign/resalign/weights"
)

// Spectrum describes the singular value decompositions of a UNet's weights, whose singular values SVDiff shifts (Han et al.
// 2023): W(δ) = U·diag(relu(σ + δ))·Vᵀ. Kernels are taken as matrices of one row for each output; weights with one axis,
// those of normalisations, as matrices of one row; biases stay as they are. Like the networks it holds the architecture;
// its numbers are the shifts and, fixed, U, σ and Vᵀ.
type Spectrum struct{ Matrices []SpectralMatrix }

// SpectralMatrix is one of the decomposed weights.
type SpectralMatrix struct {
	Module string // path of the module
	Index  int    // of its weight among the UNet's parameters
	Rank   int    // number of singular values
	spec   nn.Spec
}

// vectorShare is what the shifts of weights with one axis count. Published learning rates are 1e-3 for matrices and
// kernels and 1e-6 for these (the defaults of svdiff-pytorch); to optimizers whose steps do not depend on the gradient's
// length the share is the same as a rate.
const vectorShare = 1e-3

// Vector tells whether the weight has one axis.
func (s SpectralMatrix) Vector() bool { return len(s.spec.Shape) == 1 }

// Size is the weight as a matrix.
func (s SpectralMatrix) Size() (rows, columns int) {
	if s.Vector() {
		return 1, s.spec.Size()
	}
	return s.spec.Shape[0], s.spec.Size() / s.spec.Shape[0]
}

// NewSpectrum lists the weights of the UNet.
func (m *Model) NewSpectrum() *Spectrum {
	s := &Spectrum{}
	for i, spec := range m.UNet.Specs() {
		module, ok := strings.CutSuffix(spec.Name, ".weight")
		if !ok {
			continue
		}
		matrix := SpectralMatrix{Module: module, Index: i, spec: spec}
		matrix.Rank = min(matrix.Size())
		s.Matrices = append(s.Matrices, matrix)
	}
	return s
}

// Specs lists the shifts, MODULE.delta [rank], one for each matrix.
func (s *Spectrum) Specs() []nn.Spec {
	specs := make([]nn.Spec, len(s.Matrices))
	for i, m := range s.Matrices {
		specs[i] = nn.Spec{Name: m.Module + ".delta", Shape: []int{m.Rank}, Init: nn.Zeros}
	}
	return specs
}

// FixedSpecs lists what does not move, three arrays for each matrix: MODULE.u [rows, rank], MODULE.sigma [rank] and
// MODULE.v, Vᵀ in the shape of the weight in the engine, with the rank in place of the outputs.
func (s *Spectrum) FixedSpecs() []nn.Spec {
	var specs []nn.Spec
	for _, m := range s.Matrices {
		rows, _ := m.Size()
		v := []int{m.Rank, m.spec.Size()}
		if !m.Vector() {
			v = m.spec.EngineShape()
			v[0] = m.Rank
		}
		specs = append(specs,
			nn.Spec{Name: m.Module + ".u", Shape: []int{rows, m.Rank}},
			nn.Spec{Name: m.Module + ".sigma", Shape: []int{m.Rank}},
			nn.Spec{Name: m.Module + ".v", Shape: v})
	}
	return specs
}

// Decompose computes U, σ and Vᵀ of a weight from its numbers in the engine's layout, one after the other.
func (s SpectralMatrix) Decompose(d *svd.Decomposer, weight []float32) ([]float32, error) {
	rows, columns := s.Size()
	f, err := d.Decompose(weight, rows, columns)
	if err != nil {
		return nil, fmt.Errorf("parameter %q: %w", s.spec.Name, err)
	}
	out := make([]float32, 0, len(f.U)+len(f.S)+len(f.Vt))
	for _, part := range [][]float64{f.U, f.S, f.Vt} {
		for _, v := range part {
			out = append(out, float32(v))
		}
	}
	return out, nil
}

// Fixed puts what Decompose computed on the device, in the order of FixedSpecs.
func (s SpectralMatrix) Fixed(parts []float32) []*engine.Tensor {
	rows, columns := s.Size()
	u, v := rows*s.Rank, s.Rank*columns
	shape := []int{s.Rank, columns}
	if !s.Vector() {
		shape = s.spec.EngineShape()
		shape[0] = s.Rank
	}
	return []*engine.Tensor{
		engine.Float32s(parts[:u], rows, s.Rank), engine.Float32s(parts[u:u+s.Rank], s.Rank), engine.Float32s(parts[u+s.Rank:][:v], shape...),
	}
}

// change is relu(σ + δ) − σ: what a shift does to the singular values. It is exactly zero where the shift is.
func (s SpectralMatrix) change(shift, sigma *ad.Value) *ad.Value {
	if s.Vector() {
		shift = ad.Scale(shift, vectorShare)
	}
	positive := ad.Neg(ad.Minimum(ad.Neg(ad.Add(sigma, shift)), 0))
	return ad.Sub(positive, sigma)
}

// Apply returns weights with shifted singular values, given the shifts and the fixed arrays in the order of their specs.
// Matrices and kernels get the difference as an adapter on top, W·x + U·(relu(σ + δ) − σ)·Vᵀ·x, which costs less than to
// put the matrix together where pictures are small, and leaves the model exactly as it is where all shifts are zero.
func (s *Spectrum) Apply(w *nn.Weights, base, shifts, fixed []*ad.Value) *nn.Weights {
	adapter := map[string]nn.Factors{}
	var names []string
	var values []*ad.Value
	for i, m := range s.Matrices {
		u, sigma, v := fixed[3*i], fixed[3*i+1], fixed[3*i+2]
		change := ad.Reshape(m.change(shifts[i], sigma), 1, m.Rank)
		if m.Vector() {
			direction := ad.MatMul(ad.Mul(u, change), v, false, false)
			names = append(names, m.spec.Name)
			values = append(values, ad.Add(base[m.Index], ad.Reshape(direction, m.spec.Shape...)))
			continue
		}
		up := ad.Mul(u, change)
		if m.spec.Layout == nn.Kernel {
			up = ad.Reshape(up, up.Dim(0), 1, 1, m.Rank)
		}
		adapter[m.Module] = nn.Factors{Down: v, Up: up, Scale: 1}
	}
	return w.With(names, values).WithAdapter(adapter)
}

// MergeSpectrum puts the weights with shifted singular values together: W + U·diag(relu(σ + δ) − σ)·Vᵀ, as new tensors
// for all weights of the spectrum. The others are shared with base, so only the new ones, which are returned as well, may
// be freed.
func (m *Model) MergeSpectrum(base *Params, s *Spectrum, shifts, fixed []*engine.Tensor) (merged *Params, made []*engine.Tensor, err error) {
	tensors := append([]*engine.Tensor(nil), base.Tensors...)
	for i, matrix := range s.Matrices {
		f, err := m.function(fmt.Sprintf("merge spectrum, vector %t", matrix.Vector()), func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
			rank := in[1].Size()
			change := ad.Mul(in[2], ad.Reshape(matrix.change(in[1], in[3]), 1, rank))
			product := ad.MatMul(change, ad.Reshape(in[4], rank, in[4].Size()/rank), false, false)
			return []*ad.Value{ad.Add(in[0], ad.Reshape(product, in[0].Dims()...))}
		})
		if err != nil {
			return nil, made, err
		}
		out, err := f.Call(base.Tensors[matrix.Index], shifts[i], fixed[3*i], fixed[3*i+1], fixed[3*i+2])
		if err != nil {
			return nil, made, err
		}
		tensors[matrix.Index] = out[0]
		made = append(made, out[0])
	}
	return base.WithTensors(tensors), made, nil
}

// WriteShifts writes shifts as a safetensors file with one tensor, MODULE.delta, for each matrix, as svdiff-pytorch does:
// what is added to the singular values, which are sorted from the largest on. With the model that they were learnt for they
// give the merged weights.
func (s *Spectrum) WriteShifts(path string, shifts []*engine.Tensor) error {
	var out []*weights.Tensor
	for i, spec := range s.Specs() {
		values, err := engine.Values(shifts[i])
		if err != nil {
			return err
		}
		if s.Matrices[i].Vector() {
			for k := range values {
				values[k] *= vectorShare
			}
		}
		for _, v := range values {
			if x := float64(v); math.IsNaN(x) || math.IsInf(x, 0) {
				return fmt.Errorf("%s: the shifts of %s are not finite; use a smaller learning rate", path, s.Matrices[i].Module)
			}
		}
		out = append(out, weights.NewFloat32(spec.Name, spec.Shape, values))
	}
	return weights.Write(path, out, map[string]string{"format": "pt"})
}

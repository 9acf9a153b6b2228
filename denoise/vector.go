package denoise

import (
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/hypergrad"
)

// Vector is a direction in parameter space: one tensor for each selected parameter, on the device.
type Vector []*engine.Tensor

// Free releases the tensors.
func (v Vector) Free() { engine.Free(v...) }

// Space is the vector arithmetic of hypergradient solvers on the device. It may be used concurrently.
type Space struct {
	engine *engine.Engine

	mu        sync.Mutex
	functions map[string]*engine.Function
}

var _ hypergrad.Space[Vector] = (*Space)(nil)

// NewSpace makes the arithmetic of one engine.
func NewSpace(e *engine.Engine) *Space {
	return &Space{engine: e, functions: map[string]*engine.Function{}}
}

func (s *Space) function(g Graph) (*engine.Function, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := s.functions[g.Key]; ok {
		return f, nil
	}
	f, err := g.shared(s.engine)
	if err == nil {
		s.functions[g.Key] = f
	}
	return f, err
}

// pairwise is a graph that does the same to the tensors of two vectors, one after the other.
func pairwise(name string, n int, f func(a, b *ad.Value) *ad.Value) Graph {
	name = fmt.Sprintf("%s of %d", name, n)
	return Graph{name, "vectors: " + name, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		out := make([]*ad.Value, n)
		for i := range out {
			out[i] = f(in[i], in[n+i])
		}
		return out
	}}
}

// InnerProductGraph is the graph of [Space.Dot] for vectors of n tensors: the inner products tensor by tensor.
func InnerProductGraph(n int) Graph {
	return pairwise("inner product", n, func(a, b *ad.Value) *ad.Value { return ad.SumAll(ad.Mul(a, b)) })
}

// ProductGraph is the graph of [Space.Multiply] for vectors of n tensors.
func ProductGraph(n int) Graph { return pairwise("product", n, ad.Mul) }

// CombinationGraph is the graph of [Space.Combine] for k vectors of n tensors: the vectors, then the coefficients, to the sum.
func CombinationGraph(k, n int) Graph {
	name := fmt.Sprintf("combination of %d×%d", k, n)
	return Graph{name, "vectors: " + name, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		out := make([]*ad.Value, n)
		for i := range out {
			for j := range k {
				term := scaled(in[j*n+i], in[k*n+j])
				if out[i] == nil {
					out[i] = term
				} else {
					out[i] = ad.Add(out[i], term)
				}
			}
		}
		return out
	}}
}

// Dot is ⟨a, b⟩; the sums over each tensor are added up in float64.
func (s *Space) Dot(a, b Vector) (float64, error) {
	if len(a) != len(b) || len(a) == 0 {
		return 0, fmt.Errorf("inner product of %d and %d tensors", len(a), len(b))
	}
	f, err := s.function(InnerProductGraph(len(a)))
	if err != nil {
		return 0, err
	}
	sums, err := f.Call(slices.Concat(a, b)...)
	if err != nil {
		return 0, err
	}
	defer engine.Free(sums...)
	total := 0.0
	for _, t := range sums {
		x, err := engine.ScalarValue(t)
		if err != nil {
			return 0, err
		}
		total += x
	}
	return total, nil
}

// Combine is Σ cᵢ·vᵢ.
func (s *Space) Combine(terms ...hypergrad.Term[Vector]) (Vector, error) {
	if len(terms) == 0 {
		return nil, fmt.Errorf("a combination of no vectors")
	}
	n, k := len(terms[0].Vector), len(terms)
	inputs := make([]*engine.Tensor, 0, k*(n+1))
	for _, t := range terms {
		if len(t.Vector) != n {
			return nil, fmt.Errorf("a combination of vectors of %d and %d tensors", n, len(t.Vector))
		}
		inputs = append(inputs, t.Vector...)
	}
	coefficients := make([]*engine.Tensor, k)
	for i, t := range terms {
		coefficients[i] = engine.Scalar(t.Coefficient)
	}
	defer engine.Free(coefficients...)
	f, err := s.function(CombinationGraph(k, n))
	if err != nil {
		return nil, err
	}
	return f.Call(append(inputs, coefficients...)...)
}

// Multiply is the elementwise product a∘b.
func (s *Space) Multiply(a, b Vector) (Vector, error) {
	if len(a) != len(b) {
		return nil, fmt.Errorf("a product of vectors of %d and %d tensors", len(a), len(b))
	}
	f, err := s.function(ProductGraph(len(a)))
	if err != nil {
		return nil, err
	}
	return f.Call(slices.Concat(a, b)...)
}

// Release frees v.
func (s *Space) Release(v Vector) { v.Free() }

// Free releases the compiled functions.
func (s *Space) Free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.functions {
		f.Free()
	}
	clear(s.functions)
}

// Norm is ‖v‖.
func (s *Space) Norm(v Vector) (float64, error) {
	square, err := s.Dot(v, v)
	return math.Sqrt(square), err
}

// Mix is a·x + b·y.
func (s *Space) Mix(a float64, x Vector, b float64, y Vector) (Vector, error) {
	return s.Combine(hypergrad.Term[Vector]{Coefficient: a, Vector: x}, hypergrad.Term[Vector]{Coefficient: b, Vector: y})
}

// Accumulate returns sum + v and frees both; a nil sum stands for zero.
func (s *Space) Accumulate(sum, v Vector) (Vector, error) {
	if sum == nil {
		return v, nil
	}
	next, err := s.Mix(1, sum, 1, v)
	sum.Free()
	v.Free()
	return next, err
}

// ClipScale is the factor that brings a gradient of the given norm below limit, as torch's clip_grad_norm_ computes it;
// a limit of 0 is none.
func ClipScale(norm, limit float64) float64 {
	if limit == 0 {
		return 1
	}
	return min(1, limit/(norm+clipEps))
}

const clipEps = 1e-6

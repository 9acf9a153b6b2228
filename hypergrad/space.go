package hypergrad

import (
	"fmt"
	"math"

	"github.com/resalign/resalign/random"
)

// Space is the vector arithmetic that the solvers need.
//
// Vectors are immutable: no operation changes its operands, and every returned vector is new, never an alias of an
// operand. Solvers release each vector that they obtained from a Space or a Product as soon as it is no longer needed,
// and never one that the caller passed in. The vector that a solver returns belongs to the caller.
type Space[V any] interface {
	// Dot returns the inner product ⟨a, b⟩. Sum it in float64 where the vectors are long.
	Dot(a, b V) (float64, error)
	// Combine returns Σ cᵢ vᵢ of one or more terms. A single term with coefficient 0 gives the zero vector.
	Combine(terms ...Term[V]) (V, error)
	// Release frees the memory of v, which is not used again. It may do nothing.
	Release(v V)
}

// Term is one summand c·v of a linear combination.
type Term[V any] struct {
	Coefficient float64
	Vector      V
}

// Product returns H·v for a fixed symmetric matrix H, most often a Hessian that is never formed. The result is a new
// vector.
type Product[V any] func(v V) (V, error)

// Float64 is the Space of []float64 vectors.
type Float64 struct{}

// Dot returns Σ aᵢbᵢ.
func (Float64) Dot(a, b []float64) (float64, error) {
	if len(a) != len(b) {
		return 0, fmt.Errorf("inner product of vectors with %d and %d elements; they must be equally long", len(a), len(b))
	}
	sum := 0.0
	for i, x := range a {
		sum += x * b[i]
	}
	return sum, nil
}

// Combine returns Σ cᵢ vᵢ.
func (Float64) Combine(terms ...Term[[]float64]) ([]float64, error) {
	if len(terms) == 0 {
		return nil, fmt.Errorf("linear combination of no vectors; give at least one term")
	}
	sum := make([]float64, len(terms[0].Vector))
	for _, t := range terms {
		if len(t.Vector) != len(sum) {
			return nil, fmt.Errorf("sum of vectors with %d and %d elements; they must be equally long", len(sum), len(t.Vector))
		}
		for i, x := range t.Vector {
			sum[i] += t.Coefficient * x
		}
	}
	return sum, nil
}

// Release does nothing; the garbage collector frees slices.
func (Float64) Release([]float64) {}

// Rademacher draws n independent signs ±1, the probes of [Hutchinson].
func Rademacher(stream *random.Stream, n int) []float64 {
	signs := make([]float64, n)
	var bits uint64
	for i := range signs {
		if i%64 == 0 {
			bits = stream.Uint64()
		}
		signs[i] = 1 - 2*float64(bits&1)
		bits >>= 1
	}
	return signs
}

// norm returns ‖v‖, or an error that names what when v holds a NaN or an infinity (or its square overflows).
func norm[V any](space Space[V], what string, v V) (float64, error) {
	square, err := space.Dot(v, v)
	if err != nil {
		return 0, fmt.Errorf("norm of %s: %w", what, err)
	}
	if math.IsNaN(square) || math.IsInf(square, 0) || square < 0 {
		return 0, &NonFiniteError{What: what, Value: square}
	}
	return math.Sqrt(square), nil
}

// NonFiniteError says that a vector holds a NaN or an infinity, or is too long for float64.
type NonFiniteError struct {
	What  string  // the vector, e.g. "the right-hand side g"
	Value float64 // its squared norm
}

func (e *NonFiniteError) Error() string {
	return fmt.Sprintf("%s is not finite (squared norm %v); lower the learning rate or γ, or look for a loss that overflows",
		e.What, e.Value)
}

package unlearn

import (
	"context"
	"fmt"
	"math"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/sd"
)

// Agreement is how a hypergradient compares with a reference for the same simulation.
type Agreement struct {
	Cosine   float64 `json:"cosine"`
	Length   float64 `json:"length"` // in lengths of the reference
	Residual float64 `json:"residual"`
}

// Agree takes hypergradients at the recipe's model in several ways – the first is the reference – for a number of draws of
// pictures, noise and simulation, without training. The result has one list for each draw, in the order of ways. It is how
// approximations are judged: Unrolled through all steps of a simulation is its exact derivative.
func Agree(ctx context.Context, e *engine.Engine, r Recipe, ways []Hypergradient, draws int, h Hooks) ([][]Agreement, error) {
	for _, way := range ways {
		r.Hypergradient = way
		if problems := r.Validate(); len(problems) > 0 {
			return nil, &recipe.Error{Name: "recipe", Problems: problems}
		}
	}
	if len(ways) == 0 || draws < 1 {
		return nil, fmt.Errorf("unlearn: %d ways and %d draws leave nothing to compare", len(ways), draws)
	}
	m, err := sd.Load(e, r.Model)
	if err != nil {
		return nil, err
	}
	defer m.Free()
	m.GradientCheckpointing, m.Compute = r.Memory.GradientCheckpointing, nn.Compute(r.Memory.Compute)
	cache, err := data.OpenCache(r.Cache, cacheMemory, h.warn)
	if err != nil {
		return nil, err
	}
	t, err := newTrainer(ctx, m, r, cache, h)
	if err != nil {
		return nil, err
	}
	defer t.free()
	out := make([][]Agreement, draws)
	for draw := range out {
		if out[draw], err = t.agree(ctx, draw, ways); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (t *trainer) agree(ctx context.Context, draw int, ways []Hypergradient) ([]Agreement, error) {
	harm, err := t.harmBatch(ctx, draw)
	if err != nil {
		return nil, err
	}
	defer harm.free()
	v := t.draw(draw)[0]
	v.chain.free()
	v.chain = nil // every draw begins anew
	end, err := t.simulate(ctx, v, draw, ways...)
	if err != nil {
		return nil, err
	}
	defer end.free()
	right, err := t.afterwards(ctx, draw, v, end, harm, 1, &result{})
	if err != nil {
		return nil, err
	}
	defer right.Free()
	var reference denoise.Vector
	defer func() { reference.Free() }()
	length := 0.0
	out := make([]Agreement, len(ways))
	for i, way := range ways {
		var report result
		x, err := t.through(ctx, way, draw, v, end, harm, right, 1, &report)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", way.Solver, err)
		}
		if reference == nil {
			if reference, err = t.space.Mix(1, x, 0, x); err == nil {
				length, err = t.space.Norm(x)
			}
			if err != nil {
				x.Free()
				return nil, err
			}
		}
		dot, errDot := t.space.Dot(x, reference)
		norm, errNorm := t.space.Norm(x)
		x.Free()
		if errDot != nil || errNorm != nil {
			return nil, fmt.Errorf("%s: %w, %w", way.Solver, errDot, errNorm)
		}
		out[i] = Agreement{Cosine: dot / (norm * length), Length: norm / length, Residual: report.report.Residual}
		if norm == 0 || length == 0 || math.IsNaN(norm) {
			return nil, fmt.Errorf("%s: the hypergradient has the length %v, the reference %v; nothing can be compared with that", way.Solver, norm, length)
		}
	}
	return out, nil
}

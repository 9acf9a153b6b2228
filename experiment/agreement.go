package experiment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

// Approximation is how a way of taking the hypergradient compares with the exact derivative of a simulation, at a model
// whose concept was erased.
type Approximation struct {
	Seed      uint64  `json:"seed"`
	Optimizer string  `json:"optimizer"` // of the simulation
	Steps     int     `json:"steps"`
	Way       string  `json:"way"`
	Gamma     float64 `json:"gamma"`
	unlearn.Agreement
}

// way is a way of taking the hypergradient.
type way struct {
	name   string
	solver unlearn.Hypergradient
}

// ways of a simulation of some steps; the first is exact.
func ways(optimizer string, steps int) []way {
	plain := unlearn.Hypergradient{Solver: unlearn.FirstOrder, Iterations: 1, Damping: 1, Metric: unlearn.PlainMetric, Products: "exact"}
	unrolled := plain
	unrolled.Solver, unrolled.Iterations = unlearn.Unrolled, steps
	list := []way{{"exact", unrolled}, {"first order", plain}}
	if steps > 8 {
		unrolled.Iterations = 8
		list = append(list, way{"unrolled, last 8 steps", unrolled})
	}
	for _, gamma := range []float64{0.1, 1} {
		h := plain
		h.Solver, h.Iterations, h.Gamma, h.Products = unlearn.ConjugateGradient, 8, gamma, unlearn.GaussNewton
		list = append(list, way{"implicit", h})
		if optimizer == train.Adam {
			h.Metric = unlearn.AdamMetric
			list = append(list, way{"implicit, Adam's metric", h})
		}
	}
	return list
}

const agreementFile = "agreement.json"

// agree compares the ways on simulations that begin at an erased model.
func (x *Experiment) agree(ctx context.Context, s studyScale) (out []Approximation, err error) {
	path := filepath.Join(x.out, agreementFile)
	b, err := os.ReadFile(path)
	if err == nil {
		if err := json.Unmarshal(b, &out); err != nil {
			return nil, fmt.Errorf("study: %s is damaged: %w; remove it to measure again", path, err)
		}
		return out, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("study: %w", err)
	}
	m, err := x.method(ctx, "erased", x.recipe("erased", unlearn.Ascent, s.erase))
	if err != nil {
		return nil, err
	}
	err = x.stage("agreement", func() (bool, error) {
		for _, sim := range []unlearn.Simulation{
			{Optimizer: train.SGD, LearningRate: sgdRate}, {Optimizer: train.Adam, LearningRate: rate},
		} {
			for _, sim.Steps = range s.simulated {
				found, err := x.compareWays(ctx, m.Dir, sim, s.agreement)
				if err != nil {
					return false, err
				}
				out = append(out, found...)
			}
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	if b, err = json.MarshalIndent(out, "", "  "); err != nil {
		return nil, fmt.Errorf("study: %w", err)
	}
	return out, files.WriteBytes(path, append(b, '\n'))
}

func (x *Experiment) compareWays(ctx context.Context, model string, sim unlearn.Simulation, draws int) (out []Approximation, err error) {
	sim.Name, sim.Data, sim.ClipNorm = "benign", "simulated", clip
	r := x.recipe("agreement", unlearn.ResAlign, 1)
	r.Model, r.Objective.Cap = model, 0
	r.Data["simulated"], r.Simulations = x.simulated(), []unlearn.Simulation{sim}
	var list []unlearn.Hypergradient
	named := ways(sim.Optimizer, sim.Steps)
	for _, w := range named {
		list = append(list, w.solver)
	}
	rows, err := unlearn.Agree(ctx, x.engine, r, list, draws, unlearn.Hooks{})
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		for i, a := range row {
			out = append(out, Approximation{Seed: x.seed, Optimizer: sim.Optimizer, Steps: sim.Steps, Way: named[i].name, Gamma: list[i].Gamma, Agreement: a})
		}
	}
	return out, nil
}

package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/resalign/resalign/unlearn"
)

// Switch is a setting of a recipe that saves memory.
type Switch struct {
	Set   string `json:"set"`        // as for --set
	Peak  int64  `json:"peak_bytes"` // the plan with it, as PeakHigh
	Fits  bool   `json:"fits"`
	Costs string `json:"costs"` // what one gives up
}

// candidate is a switch before it is tried.
type candidate struct {
	set, costs string
	apply      func(r *unlearn.Recipe)
}

// switches plans again with each switch that changes anything and returns the three that save most.
func switches(c *compiler, o Options, p *Plan) ([]Switch, error) {
	var out []Switch
	for _, s := range candidates(o) {
		with := o
		with.Recipe.Data = maps.Clone(o.Recipe.Data)
		with.Recipe.Simulations = slices.Clone(o.Recipe.Simulations)
		s.apply(&with.Recipe)
		next, err := planOnce(c, with, switchCourses)
		if err != nil {
			return nil, fmt.Errorf("with %s: %w", s.set, err)
		}
		if next.PeakHigh < p.PeakHigh {
			out = append(out, Switch{Set: s.set, Peak: next.PeakHigh, Fits: next.Fits, Costs: s.costs})
		}
	}
	slices.SortStableFunc(out, func(a, b Switch) int { return cmp.Compare(a.Peak, b.Peak) })
	return out[:min(3, len(out))], nil
}

// switchCourses is fewer than a plan has: switches are many, and what they save is more than what the collector varies.
const switchCourses = 2

// candidates lists the switches that this recipe has not set yet.
func candidates(o Options) []candidate {
	r := o.Recipe
	var out []candidate
	add := func(useful bool, set, costs string, apply func(r *unlearn.Recipe)) {
		if useful {
			out = append(out, candidate{set, costs, apply})
		}
	}
	add(!r.Memory.GradientCheckpointing, `memory.gradient_checkpointing=true`, "a forward pass more for each derivative",
		func(r *unlearn.Recipe) { r.Memory.GradientCheckpointing = true })
	simulates, h := r.Method == unlearn.ResAlign, r.Hypergradient
	second := simulates && h.Solver != unlearn.FirstOrder
	add(second && h.Products == exactProducts, `hypergradient.products=central_differences`, "products to 1e-5 in place of exact ones",
		func(r *unlearn.Recipe) { r.Hypergradient.Products = centralDifferences })
	add(second && h.Products == exactProducts && h.Solver != unlearn.Unrolled, `hypergradient.products=gauss_newton`, "the curvature of the network itself",
		func(r *unlearn.Recipe) { r.Hypergradient.Products = unlearn.GaussNewton })
	add(second && h.Metric != unlearn.AdamMetric, `hypergradient.solver=first_order`, "the second order, and with it much of the resilience",
		func(r *unlearn.Recipe) { r.Hypergradient.Solver = unlearn.FirstOrder })
	add(second && h.Solver == unlearn.Unrolled && h.Iterations > 1, fmt.Sprintf("hypergradient.iterations=%d", h.Iterations/2), "the earlier half of the recorded steps",
		func(r *unlearn.Recipe) { r.Hypergradient.Iterations /= 2 })
	add(r.Trainable.Parameters == "all", `trainable.parameters=lora`, "all weights as θ; an adapter takes their place",
		func(r *unlearn.Recipe) {
			r.Trainable.Parameters = "lora"
			r.Trainable.Rank = max(1, r.Trainable.Rank)
		})
	add(r.Trainable.Parameters == "lora" && r.Trainable.Rank > 1, fmt.Sprintf("trainable.rank=%d", max(1, r.Trainable.Rank/2)), "capacity of the adapter",
		func(r *unlearn.Recipe) { r.Trainable.Rank = max(1, r.Trainable.Rank/2) })
	all := simulates && slices.ContainsFunc(r.Simulations, func(s unlearn.Simulation) bool {
		return s.Adapts == unlearn.AllWeights || r.Trainable.Parameters == "all" && s.Adapts != unlearn.FreshAdapter
	})
	add(all, `adapts = "fresh" in every [[simulation]]`, "simulations of full fine-tuning", func(r *unlearn.Recipe) {
		for i := range r.Simulations {
			r.Simulations[i].Adapts = unlearn.FreshAdapter
		}
	})
	chains := simulates && slices.ContainsFunc(r.Simulations, func(s unlearn.Simulation) bool { return s.ChainReset > 1 })
	add(chains, `chain_reset = 0 in every [[simulation]]`, "deep simulations", func(r *unlearn.Recipe) {
		for i := range r.Simulations {
			r.Simulations[i].ChainReset = 0
		}
	})
	for _, name := range slices.Sorted(maps.Keys(r.Data)) {
		size := r.Data[name].Batch
		if size == 0 && name == "retain" {
			size = 4
		}
		add(size > 1, fmt.Sprintf("data.%s.batch=%d", name, size/2), "smoothness of the gradient", func(r *unlearn.Recipe) {
			d := r.Data[name]
			d.Batch = size / 2
			r.Data[name] = d
		})
	}
	side := cmp.Or(r.Resolution, o.Model.resolution())
	_, err := o.Model.latents(1, side/2, side/2)
	add(err == nil && side >= 2*o.Model.VAE.Downscale()*o.Model.UNet.Downscale(), fmt.Sprintf("resolution=%d", side/2), "fine detail of the training pictures",
		func(r *unlearn.Recipe) { r.Resolution = side / 2 })
	return out
}

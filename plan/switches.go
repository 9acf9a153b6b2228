package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/unlearn"
)

// Switch is a setting that saves memory.
type Switch struct {
	Set   string `json:"set"`        // as for --set; of a fine-tuning, flags
	Peak  int64  `json:"peak_bytes"` // the plan with it, as PeakHigh
	Fits  bool   `json:"fits"`
	Costs string `json:"costs"` // what one gives up
}

// candidate is a switch before it is tried.
type candidate struct {
	set, costs string
	apply      func(o *Options)
}

// switches plans again with each switch that changes anything and returns the three that save most. Compilers of devices take
// long, so they are asked about these three only.
func switches(c *compiler, o Options, p *Plan) ([]Switch, error) {
	list := o.recipeSwitches()
	if o.Job != nil {
		list = o.jobSwitches()
	}
	if c.device == nil {
		tried, err := o.try(c, list, p)
		if err != nil {
			return nil, err
		}
		return tried.switches(), nil
	}
	estimates, err := newCompiler(o.XLA)
	if err != nil {
		return nil, err
	}
	defer estimates.backend.Finalize()
	estimated, err := planOnce(estimates, o, 1)
	if err != nil {
		return nil, err
	}
	best, err := o.try(estimates, list, estimated)
	if err != nil {
		return nil, err
	}
	tried, err := o.try(c, best.candidates(), p)
	if err != nil {
		return nil, err
	}
	return tried.switches(), nil
}

// trials are switches that were tried, those that save most first.
type trials []trial

type trial struct {
	candidate
	with *Plan
}

// try plans with each of the switches and returns the best three of those that are worthwhile.
func (o Options) try(c *compiler, list []candidate, without *Plan) (trials, error) {
	var out trials
	for _, s := range list {
		with := o
		with.Recipe.Data = maps.Clone(o.Recipe.Data)
		with.Recipe.Simulations = slices.Clone(o.Recipe.Simulations)
		if o.Job != nil {
			job := *o.Job
			with.Job = &job
		}
		s.apply(&with)
		next, err := planOnce(c, with, switchCourses)
		if err != nil {
			return nil, fmt.Errorf("with %s: %w", s.set, err)
		}
		if float64(next.PeakHigh) < worthwhile*float64(without.PeakHigh) {
			out = append(out, trial{s, next})
		}
	}
	slices.SortStableFunc(out, func(a, b trial) int { return cmp.Compare(a.with.PeakHigh, b.with.PeakHigh) })
	return out[:min(3, len(out))], nil
}

func (ts trials) candidates() []candidate {
	var out []candidate
	for _, t := range ts {
		out = append(out, t.candidate)
	}
	return out
}

func (ts trials) switches() []Switch {
	var out []Switch
	for _, t := range ts {
		out = append(out, Switch{Set: t.set, Peak: t.with.PeakHigh, Fits: t.with.Fits, Costs: t.costs})
	}
	return out
}

// switchCourses is fewer than a plan has: switches are many, and what they save is more than what the collector varies.
const switchCourses = 2

// worthwhile is what a switch must leave of the memory at most; less may be chance.
const worthwhile = 0.95

// What switches give up, in recipes and for fine-tuning.
const (
	costOfCheckpoints = "a forward pass more for each derivative"
	costOfHalf        = "digits of predictions and gradients; on the Go engine up to twice the time"
	costOfRank        = "capacity of the adapter"
	costOfBatch       = "smoothness of the gradient"
	costOfResolution  = "fine detail of the training pictures"
	costOfTiles       = "some of what the VAE sees beyond a tile"
)

// halved is half the side of training pictures, if the model takes that.
func (o Options) halved(resolution int) (side int, ok bool) {
	full := cmp.Or(resolution, o.Model.resolution())
	_, err := o.Model.latents(1, full/2, full/2)
	return full / 2, err == nil && full >= 2*o.Model.VAE.Downscale()*o.Model.UNet.Downscale()
}

// tile is half the side of training pictures as the side of tiles, if they are not encoded by tiles and the VAE takes that.
func (o Options) tile(resolution, now int) (side int, ok bool) {
	side = cmp.Or(resolution, o.Model.resolution()) / 2
	tile, err := o.Model.skeleton().TileSize(side)
	return side, now == 0 && err == nil && tile == side
}

// recipeSwitches lists the switches that the recipe has not set yet.
func (o Options) recipeSwitches() []candidate {
	r := o.Recipe
	var out []candidate
	if o.closedForm() {
		return nil // what it needs is the model
	}
	add := func(useful bool, set, costs string, apply func(r *unlearn.Recipe)) {
		if useful {
			out = append(out, candidate{set, costs, func(o *Options) { apply(&o.Recipe) }})
		}
	}
	add(!r.Memory.GradientCheckpointing, `memory.gradient_checkpointing=true`, costOfCheckpoints, func(r *unlearn.Recipe) { r.Memory.GradientCheckpointing = true })
	add(!o.half(), `memory.compute=bfloat16`, costOfHalf, func(r *unlearn.Recipe) { r.Memory.Compute = string(nn.BFloat16) })
	tile, tiles := o.tile(r.Resolution, r.Memory.VAETileSize)
	add(tiles, fmt.Sprintf("memory.vae_tile_size=%d", tile), costOfTiles, func(r *unlearn.Recipe) { r.Memory.VAETileSize = tile })
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
	o.parameterSwitches(add)
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
		add(size > 1, fmt.Sprintf("data.%s.batch=%d", name, size/2), costOfBatch, func(r *unlearn.Recipe) {
			d := r.Data[name]
			d.Batch = size / 2
			r.Data[name] = d
		})
	}
	side, ok := o.halved(r.Resolution)
	add(ok, fmt.Sprintf("resolution=%d", side), costOfResolution, func(r *unlearn.Recipe) { r.Resolution = side })
	return out
}

// parameterSwitches are those of what is trained.
func (o Options) parameterSwitches(add func(useful bool, set, costs string, apply func(r *unlearn.Recipe))) {
	own := []string{unlearn.ESDX, unlearn.ESDU, unlearn.SafeGen} // choose their parameters themselves
	trains := o.Recipe.Trainable
	add(trains.Parameters == "all" && !slices.Contains(own, o.Recipe.Method), `trainable.parameters=lora`, "all weights as θ; an adapter takes their place", func(r *unlearn.Recipe) {
		r.Trainable.Parameters = "lora"
		r.Trainable.Rank = max(1, r.Trainable.Rank)
	})
	add(trains.Parameters == "lora" && trains.Rank > 1, fmt.Sprintf("trainable.rank=%d", max(1, trains.Rank/2)), costOfRank,
		func(r *unlearn.Recipe) { r.Trainable.Rank = max(1, r.Trainable.Rank/2) })
}

// jobSwitches lists the flags that a fine-tuning has not set yet.
func (o Options) jobSwitches() []candidate {
	j := *o.Job
	var out []candidate
	add := func(useful bool, set, costs string, apply func(j *finetune.Job)) {
		if useful {
			out = append(out, candidate{set, costs, func(o *Options) { apply(o.Job) }})
		}
	}
	add(!j.GradientCheckpointing, "--gradient-checkpointing", costOfCheckpoints, func(j *finetune.Job) { j.GradientCheckpointing = true })
	add(!o.half(), "--compute bfloat16", costOfHalf, func(j *finetune.Job) { j.Compute = string(nn.BFloat16) })
	tile, tiles := o.tile(j.Resolution, j.VAETileSize)
	add(tiles, fmt.Sprintf("--vae-tile-size %d", tile), costOfTiles, func(j *finetune.Job) { j.VAETileSize = tile })
	add(j.Method == finetune.Full && !j.TrainTextEncoder, "--method lora", "all weights; an adapter takes their place", func(j *finetune.Job) { j.Method = finetune.LoRA })
	add(j.TrainTextEncoder, "--train-text-encoder=false", "training of the text encoder", func(j *finetune.Job) { j.TrainTextEncoder = false })
	add(j.EMADecay > 0, "--ema-decay 0", "the average of the weights", func(j *finetune.Job) { j.EMADecay = 0 })
	add(j.Method == finetune.LoRA && j.Rank > 1, fmt.Sprintf("--rank %d", max(1, j.Rank/2)), costOfRank, func(j *finetune.Job) { j.Rank = max(1, j.Rank/2) })
	add(j.BatchSize > 1, fmt.Sprintf("--batch-size %d --accumulation %d", j.BatchSize/2, 2*j.Accumulation), "time: more, smaller batches", func(j *finetune.Job) {
		j.BatchSize, j.Accumulation = j.BatchSize/2, 2*j.Accumulation
	})
	side, ok := o.halved(j.Resolution)
	add(ok, fmt.Sprintf("--resolution %d", side), costOfResolution, func(j *finetune.Job) { j.Resolution = side })
	return out
}

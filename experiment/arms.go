// Package experiment is the built-in experiment: it unlearns a red star from the miniature model by several methods,
// lets benign fine-tuning loose on the results, and shows what comes back. It is made of the product's own parts –
// recipes, a diffusers directory, image folders, a detector, an audit – and special-cases nothing.
package experiment

import (
	"cmp"
	"path/filepath"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

// Names of the models compared.
const (
	Base     = "base"
	ESD      = "esd"
	Ascent   = "ascent"         // as many outer steps as resalign
	Matched  = "ascent-matched" // as many gradient evaluations as resalign
	ResAlign = "resalign"
)

// Sizes of the calibrated recipes. With all weights of the miniature trainable, Adam at 5e-4 and batches of 16 erase the
// concept within the steps of scale.erase; more retention is needed once the harmful loss is only held.
const (
	batchSize   = 16
	rate        = 5e-4
	clip        = 1.0
	errorCap    = 0.2 // unbounded ascent destroys so small a model within 40 steps
	eraseRetain = 5.0
	holdRetain  = 10.0
	resilience  = 0.8
)

// folders of the drawn world.
func (x *Experiment) folder(parts ...string) string {
	return filepath.Join(append([]string{x.out, "data"}, parts...)...)
}

// recipe is what all methods have in common.
func (x *Experiment) recipe(name, method string, steps int) unlearn.Recipe {
	r := unlearn.Defaults()
	r.Model, r.Out = filepath.Join(x.out, "model"), filepath.Join(x.out, "runs", name)
	r.Method, r.Seed = method, x.seed
	if x.engine != nil {
		r.Engine = x.engine.Kind()
	}
	r.Trainable = unlearn.Trainable{Parameters: "all"}
	r.Outer = unlearn.Outer{Steps: steps, Optimizer: train.Adam, LearningRate: rate, ClipNorm: clip, SimulationsPerStep: 1}
	r.Objective = unlearn.Objective{Harm: unlearn.Ascent, Cap: errorCap, Alpha: eraseRetain, AlphaFinal: eraseRetain}
	r.Data = map[string]unlearn.Dataset{
		"harmful": {Folder: x.folder("harm"), Batch: batchSize},
		"retain": {Batch: batchSize, Parts: []unlearn.Part{
			{Folder: x.folder("retain", "ordinary"), Weight: 0.5},
			{Folder: x.folder("retain", "stars"), Weight: 0.25},
			{Folder: x.folder("retain", "red"), Weight: 0.25},
		}},
	}
	r.Checkpoint = unlearn.Checkpoint{Every: 20, Keep: 1}
	return r
}

func (x *Experiment) esd() unlearn.Recipe {
	r := x.recipe(ESD, unlearn.ESD, x.scale.erase)
	r.Objective.Harm, r.Objective.Eta = unlearn.ESD, 1
	return r
}

func (x *Experiment) ascent(name string, steps int) unlearn.Recipe {
	return x.recipe(name, unlearn.Ascent, steps)
}

// resalign erases first, as ascent does, and then holds the harmful loss up at the end of a simulated fine-tuning that
// continues from outer step to outer step.
func (x *Experiment) resalign() unlearn.Recipe {
	r := x.recipe(ResAlign, unlearn.ResAlign, x.scale.erase+x.scale.hold)
	off, on, alpha := 0.0, resilience, holdRetain
	r.Phases = []unlearn.Phase{{Steps: x.scale.erase, Lambda: &off}, {Steps: x.scale.hold, Lambda: &on, Alpha: &alpha}}
	r.Data["simulated"] = x.simulated()
	r.Simulations = []unlearn.Simulation{{
		Name: "benign", Data: "simulated", Steps: 8, Optimizer: train.Adam, LearningRate: rate, ClipNorm: clip, ChainReset: 10,
	}}
	r.Hypergradient = unlearn.Hypergradient{Solver: unlearn.Richardson, Iterations: 2, Gamma: 0.01, Damping: 1, Metric: unlearn.PlainMetric, Products: "exact"}
	return r
}

// simulated are the pictures of simulated fine-tuning.
func (x *Experiment) simulated() unlearn.Dataset {
	return unlearn.Dataset{Batch: batchSize, Parts: []unlearn.Part{
		{Folder: x.folder("simulation", "diverse"), Weight: 0.8},
		{Folder: x.folder("simulation", "subject-a"), Weight: 0.1},
		{Folder: x.folder("simulation", "subject-b"), Weight: 0.1},
	}}
}

// fineTuning is the evaluation's fine-tuning: all weights, AdamW.
func (x *Experiment) fineTuning() finetune.Config {
	c := finetune.Defaults(finetune.Full)
	c.BatchSize, c.Accumulation, c.LearningRate, c.WeightDecay, c.ClipNorm, c.Flip = batchSize, 1, rate, 0.01, clip, false
	c.Seed = x.seed
	return c
}

// sampling is how pictures are made: as good as 15 steps on this model.
func (x *Experiment) sampling() generate.Options {
	return generate.Options{Steps: 8, Guidance: 4, Scheduler: "ddim", Batch: min(16, x.pictures)}
}

// adaptationData is what an adaptation learns from.
func (x *Experiment) adaptationData(a adaptation) (data.Mixture, error) {
	pictures, err := x.open(cmp.Or(a.pictures, "evaluation/"+a.name))
	if err != nil || a.harmful == 0 {
		return pictures, err
	}
	harmful, err := x.open("evaluation", "harm")
	if err != nil {
		return nil, err
	}
	return data.Contaminated(pictures[0].Folder, harmful[0].Folder, a.harmful)
}

// open reads one folder of the world as a mixture of its own.
func (x *Experiment) open(parts ...string) (data.Mixture, error) {
	folder, err := data.ReadFolder(x.folder(parts...))
	if err != nil {
		return nil, err
	}
	return data.Mixture{{Folder: folder, Weight: 1}}, nil
}

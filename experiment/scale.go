package experiment

import (
	"slices"

	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/mini"
)

// scale is how large the experiment is. All of its parts follow from these numbers.
type scale struct {
	erase, hold int          // outer steps of the two phases of resalign; ascent has as many in all, esd the first
	adaptations []adaptation // what the evaluation does to the models
	sets        []mini.Set   // the drawings
	harmBatches int          // of 32 pictures each, on which the error on harmful pictures is measured
	matched     int          // about how many steps the matched ascent will have; it only serves to tell the time left
	prompts     mini.Variety // how many ways of asking pictures are made from
}

// published is the scale of the calibrated recipes and of docs/results.md.
func published() scale {
	return scale{
		erase: 60, hold: 40, matched: 300, harmBatches: 8, sets: mini.Sets(),
		adaptations: []adaptation{{name: "diverse", steps: []int{50, 100, 200}}, {name: "subject", steps: []int{100}}},
	}
}

// adaptation is a fine-tuning on a set of the evaluation, and after how many steps the models are measured.
type adaptation struct {
	name     string
	steps    []int
	pictures string  // the set; empty: the evaluation's of the adaptation's name
	harmful  float64 // share of harmful pictures mixed in
	prior    string  // DreamBooth: the set of pictures of the subject's class
	config   *finetune.Config
}

// fineTuning is the adaptation's configuration: its own, or that of the demo.
func (a adaptation) fineTuning(x *Experiment) finetune.Config {
	if a.config == nil {
		return x.fineTuning()
	}
	c := *a.config
	c.Seed = x.seed
	return c
}

// work is how many steps the fine-tunings of one model take together, and how many cells they give beside that of the
// model as it is.
func (s scale) work() (steps, cells int) {
	for _, a := range s.adaptations {
		steps += slices.Max(a.steps)
		cells += len(a.steps)
	}
	return steps, cells
}

package experiment

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/mini"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

// Study asks what the demo cannot: whether simulated fine-tuning and the gradient through it pay at equal compute and equal
// depth of erasure, with the seed as the unit, against fine-tuning of several kinds, to 1,000 steps.
//
// Every arm spends the same number of gradients: one whose steps are dearer takes fewer of them. Arms with simulations end
// deeper than ascent does under the same bound of the error, so there is a second ascent with a higher bound, which ends
// deeper than any of them.
type Study struct {
	Rows      []audit.Row
	Agreement []Approximation
	Recipes   []NamedRecipe // of the first seed
	Seeds     []uint64
	arms      []string
}

// StudyOptions are the settings of a study.
type StudyOptions struct {
	Out      string
	Seeds    int // how many, from 42 on
	Pictures int
}

// StudyDefaults are those of `make results`.
func StudyDefaults() StudyOptions { return StudyOptions{Out: "results", Seeds: 5, Pictures: 200} }

const firstSeed = 42

// studyScale is how large a study is.
type studyScale struct {
	scale
	budget    float64 // gradients of one picture that each arm spends
	agreement int     // draws for each seed on which hypergradients are compared; 0: none
	simulated []int   // steps of the simulations that they are compared on
}

func publishedStudy() studyScale {
	return studyScale{
		budget: 10_000, agreement: 2, simulated: []int{5, 20},
		scale: scale{
			erase: 60, harmBatches: 8, sets: mini.Sets(), prompts: mini.Varied,
			adaptations: []adaptation{
				{name: "diverse", steps: []int{100, 200, 500, 1000}},
				{name: "harmful-5", pictures: "evaluation/diverse", harmful: 0.05, steps: []int{100}},
				{name: "subject", steps: []int{100}},
			},
		},
	}
}

// sgdRate is well below 2/24, the largest step at which gradient descent is stable on the miniature.
const sgdRate = 0.05

// arm is one way of unlearning.
type arm struct {
	name, label string
	cap         float64             // the error of one picture from which on it is not raised further
	simulation  *unlearn.Simulation // nil: plain ascent
	solver      unlearn.Hypergradient
}

// Baseline is the arm that the others are compared with.
const studyBaseline = Ascent

// arms of the study. What differs between those with simulations is the optimizer that is simulated and how the derivative
// is taken through it.
func arms() []arm {
	simulation := func(optimizer string, rate float64) *unlearn.Simulation {
		return &unlearn.Simulation{Name: "benign", Data: "simulated", Steps: 8, Optimizer: optimizer, LearningRate: rate, ClipNorm: clip, ChainReset: 10}
	}
	adam, sgd := simulation(train.Adam, rate), simulation(train.SGD, sgdRate)
	first := unlearn.Hypergradient{Solver: unlearn.FirstOrder, Iterations: 1, Damping: 1, Metric: unlearn.PlainMetric, Products: "exact"}
	with := func(change func(h *unlearn.Hypergradient)) unlearn.Hypergradient {
		h := first
		change(&h)
		return h
	}
	conjugate := func(gamma float64) unlearn.Hypergradient {
		return with(func(h *unlearn.Hypergradient) {
			h.Solver, h.Iterations, h.Gamma, h.Products = unlearn.ConjugateGradient, 5, gamma, unlearn.GaussNewton
		})
	}
	return []arm{
		{Ascent, "ascent", errorCap, nil, unlearn.Hypergradient{}},
		{"adam-first-order", "Adam simulated, first order", errorCap, adam, first},
		{"ascent-deep", "ascent to a higher error", deepCap, nil, unlearn.Hypergradient{}},
		{"sgd-implicit", "SGD simulated, implicit (CG, γ = 1)", errorCap, sgd, conjugate(1)},
		{"adam-implicit", "Adam simulated, implicit (CG, γ = 0.1)", errorCap, adam, conjugate(0.1)},
	}
}

// deepCap lets ascent end deeper than the arms with simulations do under errorCap.
const deepCap = 0.3

// RunStudy does what is left of the study in o.Out. It returns train.ErrInterrupted if it was asked to finish early.
func RunStudy(ctx context.Context, e *engine.Engine, o StudyOptions, h Hooks) (*Study, error) {
	return runStudy(ctx, e, o, publishedStudy(), arms(), h)
}

func runStudy(ctx context.Context, e *engine.Engine, o StudyOptions, s studyScale, list []arm, h Hooks) (*Study, error) {
	if o.Out == "" {
		return nil, fmt.Errorf("study: there is no folder to work in; name one")
	}
	if o.Seeds < 1 || o.Seeds > 100 {
		return nil, fmt.Errorf("study: %d seeds must lie between 1 and 100", o.Seeds)
	}
	if o.Pictures < 1 || o.Pictures > maxPictures {
		return nil, fmt.Errorf("study: %d pictures of each prompt set must lie between 1 and %d", o.Pictures, maxPictures)
	}
	settings := struct {
		Engine string `json:"engine"`
	}{e.Kind()} // more seeds or other numbers of pictures go on with what is there
	if err := claim("study", o.Out, settings); err != nil {
		return nil, err
	}
	y := &Study{}
	for _, a := range list {
		y.arms = append(y.arms, a.name)
	}
	var parts []*Experiment
	for i := range o.Seeds {
		seed := uint64(firstSeed + i)
		x := &Experiment{out: filepath.Join(o.Out, fmt.Sprintf("seed-%d", seed)), seed: seed, pictures: o.Pictures, engine: e, hooks: h, scale: s.scale}
		x.hooks.OnStage = named(h.OnStage, fmt.Sprintf("seed %d, ", seed))
		x.hooks.OnStep = nil
		if err := x.begin(ctx); err != nil {
			return nil, err
		}
		parts, y.Seeds = append(parts, x), append(y.Seeds, seed)
	}
	return y, y.run(ctx, parts, s, list, h)
}

// run works through all jobs, seed by seed, several at once: operations of so small a model are too short to keep several
// threads busy.
func (y *Study) run(ctx context.Context, parts []*Experiment, s studyScale, list []arm, h Hooks) error {
	detectors := make([]*mini.Labeller, len(parts))
	for i, x := range parts {
		d, err := mini.OpenDetector(x.engine, filepath.Join(x.out, detectorFile))
		if err != nil {
			return err
		}
		defer d.Free()
		detectors[i] = d
	}
	var jobs []func(ctx context.Context) error
	var mu sync.Mutex
	rows := make([][][]audit.Row, len(parts))
	agreement := make([][]Approximation, len(parts))
	for i, x := range parts {
		rows[i] = make([][]audit.Row, 1+len(list))
		measured := func(at int, m audit.Model, adaptations []adaptation) error {
			found, err := x.measure(ctx, m, adaptations, detectors[i])
			mu.Lock()
			defer mu.Unlock()
			rows[i][at] = found
			return err
		}
		jobs = append(jobs, func(context.Context) error {
			return measured(0, audit.Model{Name: Base, Dir: filepath.Join(x.out, "model")}, nil)
		})
		for k, a := range list {
			jobs = append(jobs, func(ctx context.Context) error {
				m, err := x.method(ctx, a.name, x.armRecipe(a, s))
				if err != nil {
					return err
				}
				return measured(1+k, m, x.scale.adaptations)
			})
		}
		if s.agreement > 0 {
			jobs = append(jobs, func(ctx context.Context) (err error) {
				found, err := x.agree(ctx, s)
				mu.Lock()
				defer mu.Unlock()
				agreement[i] = found
				return err
			})
		}
	}
	if err := inOrder(ctx, "study", jobs, h); err != nil {
		return err
	}
	y.Rows = slices.Concat(slices.Concat(rows...)...)
	y.Agreement = slices.Concat(agreement...)
	for _, name := range y.arms {
		y.Recipes = append(y.Recipes, NamedRecipe{name, parts[0].recipes[name]})
	}
	return nil
}

// inOrder does the jobs, as many at once as there are threads, beginning them in order, and returns the first error. When
// one fails the others are broken off; when Finish is closed they save what they have.
func inOrder(ctx context.Context, name string, jobs []func(context.Context) error, h Hooks) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &work{slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)))}
	next := make(chan func(context.Context) error)
	var all sync.WaitGroup
	done := 0
	for range cap(w.slots) {
		all.Go(func() {
			for job := range next {
				err := w.do(ctx, h.Finish, func() error { return job(ctx) })
				if err != nil {
					w.fail(err)
					if !errors.Is(err, train.ErrInterrupted) {
						cancel(err)
					}
				}
				w.mu.Lock()
				if done++; h.OnStep != nil {
					h.OnStep(name, done, len(jobs))
				}
				w.mu.Unlock()
			}
		})
	}
	for _, job := range jobs {
		next <- job
	}
	close(next)
	all.Wait()
	return w.err
}

// armRecipe is the recipe of an arm: erase, then hold the depth for as many steps as the budget allows.
func (x *Experiment) armRecipe(a arm, s studyScale) unlearn.Recipe {
	direct := float64(batchSize) * (2 + 1.0/3) // the harmful gradient, the retained one, and what the latter is taught
	erasing := float64(s.erase) * direct
	if a.simulation == nil {
		r := x.recipe(a.name, unlearn.Ascent, max(1, int(math.Round(s.budget/direct))))
		r.Objective.Cap = a.cap
		return r
	}
	perStep := direct + float64(batchSize)*(float64(a.simulation.Steps)+1+products(a.solver, a.simulation.Steps))
	hold := max(1, int(math.Round((s.budget-erasing)/perStep)))
	r := x.recipe(a.name, unlearn.ResAlign, s.erase+hold)
	off, on, alpha := 0.0, resilience, holdRetain
	r.Phases = []unlearn.Phase{{Steps: s.erase, Lambda: &off}, {Steps: hold, Lambda: &on, Alpha: &alpha}}
	r.Data["simulated"] = x.simulated()
	r.Simulations = []unlearn.Simulation{*a.simulation}
	r.Hypergradient, r.Objective.Cap = a.solver, a.cap
	return r
}

// products is what a hypergradient costs, in gradients.
func products(h unlearn.Hypergradient, steps int) float64 {
	cost := 3.0
	if h.Products == unlearn.GaussNewton {
		cost = 5.0 / 3
	}
	switch h.Solver {
	case unlearn.Richardson:
		return cost * float64(h.Iterations-1)
	case unlearn.ConjugateGradient:
		return cost * float64(h.Iterations)
	case unlearn.Unrolled:
		return cost * float64(min(steps, h.Iterations))
	}
	return 0
}

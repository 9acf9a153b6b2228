package experiment

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/mini"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

// Options are the settings of the experiment.
type Options struct {
	Out      string
	Seed     uint64
	Pictures int // of each prompt set in each cell
}

// Defaults are those of `resalign demo`.
func Defaults() Options { return Options{Out: "demo", Seed: 42, Pictures: 100} }

// Hooks connect the experiment to whoever started it. All are optional.
type Hooks struct {
	Finish  <-chan struct{}
	OnStage func(name string, took time.Duration, found bool) // a stage is finished, or was found finished
	OnStep  func(stage string, done, total int)
	// Unlearn, if set, carries out a recipe file in a process of its own, so that what it costs can be told apart from what
	// goes on beside it.
	Unlearn func(ctx context.Context, recipe string, resume bool, finish <-chan struct{}) (Usage, error)
	Program string
	Command []string
}

// Usage is what making a model took, alone in its process.
type Usage struct {
	CPUSeconds float64 `json:"cpu_seconds"` // of all sessions
	PeakMemory int64   `json:"peak_memory"` // bytes
}

// Experiment is a run of the experiment in its folder.
type Experiment struct {
	out      string
	seed     uint64
	pictures int
	scale    scale
	engine   *engine.Engine
	hooks    Hooks

	mu          sync.Mutex
	stages      stages
	recipes     map[string]string
	done, total float64 // units of work; see stepUnits
}

// NamedRecipe is a recipe as it was run.
type NamedRecipe struct{ Name, Text string }

// Outcome is what the experiment found.
type Outcome struct {
	Rows    []audit.Row
	Seconds []Stage
	Recipes []NamedRecipe
}

// Stage is a part of the experiment and how long it took, over all sessions.
type Stage struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Usage   *Usage  `json:"usage,omitempty"` // where it was done in a process of its own
}

// Run does what is left of the experiment in o.Out. It returns train.ErrInterrupted if it was asked to finish early.
func Run(ctx context.Context, e *engine.Engine, o Options, h Hooks) (*Outcome, error) {
	return run(ctx, e, o, published(), h)
}

// maxPictures bounds what a typing mistake can ask of the memory.
const maxPictures = 100_000

func run(ctx context.Context, e *engine.Engine, o Options, s scale, h Hooks) (*Outcome, error) {
	if o.Out == "" {
		return nil, fmt.Errorf("demo: there is no folder to work in; name one")
	}
	if o.Pictures < 1 || o.Pictures > maxPictures {
		return nil, fmt.Errorf("demo: %d pictures of each prompt set must lie between 1 and %d", o.Pictures, maxPictures)
	}
	x := &Experiment{out: o.Out, seed: o.Seed, pictures: o.Pictures, engine: e, hooks: h, scale: s}
	settings := struct {
		Seed   uint64 `json:"seed"`
		Engine string `json:"engine"`
	}{o.Seed, e.Kind()} // the number of pictures is not among them: cells of another number are measured anew
	if err := claim("demo", x.out, settings); err != nil {
		return nil, err
	}
	if err := x.stages.open(filepath.Join(x.out, stagesFile)); err != nil {
		return nil, err
	}
	if err := x.prepare(ctx); err != nil {
		return nil, err
	}
	return x.compare(ctx)
}

// prepare draws the world and puts the carried model and detector in place.
func (x *Experiment) prepare(ctx context.Context) error {
	return x.stage("drawing", func() (bool, error) {
		marker := x.folder("prompts", "harm.csv") // the folder appears only when it is complete
		if _, err := os.Stat(marker); err == nil {
			return true, nil
		}
		if err := mini.WritePretrained(x.out); err != nil {
			return false, err
		}
		return false, mini.WriteWorld(ctx, x.folder(), x.seed, x.scale.sets, x.progress("drawing"))
	})
}

func (x *Experiment) progress(stage string) mini.Progress {
	return func(done, total int, _ string) {
		if x.hooks.OnStep != nil {
			x.hooks.OnStep(stage, done, total)
		}
	}
}

// method runs one recipe, or takes the model that an earlier session made with it.
func (x *Experiment) method(ctx context.Context, name string, r unlearn.Recipe) (audit.Model, error) {
	m := audit.Model{Name: name, Dir: filepath.Join(r.Out, "model")}
	text, err := recipe.Encode(r)
	if err != nil {
		return m, err
	}
	x.record(name, string(text))
	err = x.stage(name, func() (bool, error) {
		_, err := os.Stat(filepath.Join(r.Out, "run.json"))
		resume := err == nil
		if resume {
			done, err := finished(r.Out)
			if err != nil {
				return false, err
			}
			if done {
				return true, x.reuse(r)
			}
		}
		if x.hooks.Unlearn != nil {
			return false, x.apart(ctx, name, text, resume)
		}
		_, err = unlearn.Run(ctx, x.engine, r, unlearn.Hooks{
			Resume: resume, Finish: x.hooks.Finish, Program: x.hooks.Program, Command: x.hooks.Command,
			OnEvent: func(e train.Event) { x.advance(x.stepUnits(r, e.Step-1)) },
		})
		return false, err
	})
	if errors.Is(err, train.ErrInterrupted) {
		return m, err // which part was under way is of no interest
	}
	if err != nil {
		return m, fmt.Errorf("%s: %w", name, err)
	}
	events, err := train.ReadEvents(filepath.Join(r.Out, "events.jsonl"))
	if err != nil {
		return m, err
	}
	if len(events) == 0 {
		return m, fmt.Errorf("%s: the run's log is empty", r.Out)
	}
	gradients, ok := events[len(events)-1].Number("gradients")
	closedForm := r.Method == unlearn.UCE || r.Method == unlearn.RECE
	if !closedForm && !(ok && gradients > 0) {
		return m, fmt.Errorf("%s: the run's log does not say how many gradients it took; remove the folder to make the run again", r.Out)
	}
	m.Gradients = gradients
	return m, nil
}

// reuse takes the finished run of an earlier session, if it was made with the same recipe.
func (x *Experiment) reuse(r unlearn.Recipe) error {
	same, err := sameRecipe(r.Out, r)
	if err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("%s holds a run with another recipe; remove it, or name another folder for the experiment", r.Out)
	}
	for step := range r.Outer.Steps {
		x.advance(x.stepUnits(r, step))
	}
	return nil
}

// plan is the audit of one model, as it is and after each adaptation.
func (x *Experiment) plan(m audit.Model, adaptations []adaptation) (audit.Plan, error) {
	p := audit.Plan{
		Models: []audit.Model{m}, Harmful: score.Criterion{Labels: score.Labels{"shape": mini.HarmShape, "colour": mini.HarmColour}},
		Generate: x.sampling(), Seed: x.seed, Keep: 12, HarmBatches: x.scale.harmBatches, HarmBatch: 32,
		Harm:   audit.Prompts{List: prompts(mini.HarmPrompts(x.seed, x.scale.prompts)), Pictures: x.pictures},
		Benign: audit.Prompts{List: prompts(mini.BenignPrompts(x.seed, x.scale.prompts)), Pictures: x.pictures},
	}
	var err error
	if p.HarmData, err = x.open("evaluation", "harm"); err != nil {
		return p, err
	}
	for _, a := range adaptations {
		pictures, err := x.adaptationData(a)
		if err != nil {
			return p, err
		}
		cache, err := data.OpenCache("", 64<<20, nil)
		if err != nil {
			return p, err
		}
		learnt := finetune.Data{Pictures: pictures, Cache: cache}
		if a.prior != "" {
			if learnt.Prior, err = x.open(a.prior); err != nil {
				return p, err
			}
		}
		p.Adaptations = append(p.Adaptations, audit.Adaptation{
			Name: a.name, Config: a.fineTuning(x), Steps: a.steps, Data: learnt,
		})
	}
	return p, nil
}

func prompts(list []mini.Prompt) []audit.Prompt {
	out := make([]audit.Prompt, len(list))
	for i, p := range list {
		out[i] = audit.Prompt{Text: p.Text, Want: score.Labels{"shape": p.Shape, "colour": p.Colour}}
	}
	return out
}

// stage does one part of the experiment, adds its time to the account and reports it.
func (x *Experiment) stage(name string, do func() (found bool, err error)) error {
	started := time.Now()
	found, err := do()
	took := time.Since(started)
	x.mu.Lock()
	defer x.mu.Unlock()
	if !found {
		err = errors.Join(err, x.stages.add(name, took))
	}
	if err == nil && x.hooks.OnStage != nil {
		x.hooks.OnStage(name, took, found)
	}
	return err
}

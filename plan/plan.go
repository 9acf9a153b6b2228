// Package plan says what a run of unlearning or fine-tuning will need before it begins: parameters, memory and time. Nothing
// is guessed from rules of thumb. The very graphs of the run are compiled for the Go engine, from the model's configurations
// alone; then the run is gone through step by step on a machine that computes nothing but keeps account: which array lives
// how long, what the engine's pool and Go's garbage collector hold on to, and how much is multiplied and moved.
package plan

import (
	"cmp"
	"context"
	"runtime"
	"slices"

	_ "github.com/gomlx/compute/gobackend" // whose graphs are compiled

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/unlearn"
)

// Options say what is planned for which machine.
type Options struct {
	Recipe  unlearn.Recipe
	Job     *finetune.Job // a fine-tuning, in place of the recipe; nil: none
	Model   *Architecture
	XLA     bool           // plan the memory of an XLA device instead of the Go engine's; no times
	Device  *engine.Engine // with XLA: compiles the run's programs, which tells their memory. nil: it is estimated
	Timer   *engine.Engine // runs each of the run's programs on zeros, which tells times. nil: they are counted, none with XLA
	Threads int            // 0: as many as this machine has
	Memory  int64          // bytes that the run may take; 0: what this machine has left
	Rates   Rates          // zero: this machine's are measured, which takes two seconds or three
}

// Plan is what a run needs. Sizes are in bytes, times in seconds.
type Plan struct {
	Model       string     `json:"model"`
	Method      string     `json:"method"`
	Engine      string     `json:"engine"`   // go or xla
	Compiled    bool       `json:"compiled"` // with XLA: the device's compiler was asked, nothing is estimated
	Parameters  Parameters `json:"parameters"`
	Resident    []Item     `json:"resident"`    // what stays in memory over the steps
	Evaluations []Item     `json:"evaluations"` // what each kind of evaluation needs at its height, beside what stays
	Peak        int64      `json:"peak_bytes"`  // of the process, the middle of several courses of the collector; with XLA, of the device
	PeakLow     int64      `json:"peak_low_bytes"`
	PeakHigh    int64      `json:"peak_high_bytes"` // what the machine must have
	Memory      int64      `json:"memory_bytes"`    // what it has
	Fits        bool       `json:"fits"`
	Switches    []Switch   `json:"switches,omitempty"` // the three that help most, where the plan does not fit
	Timed       bool       `json:"timed"`              // the run's programs were run, none of its times is counted
	StepName    string     `json:"step_name"`          // what a step is: an outer step, an edit, a step
	StepFLOPs   float64    `json:"step_flops"`         // of a mean step, in products of matrices and on the host
	StepSeconds float64    `json:"step_s"`             // times are 0 with XLA where nothing was timed
	StepLow     float64    `json:"step_low_s"`         // StepSeconds is good to TimeError
	StepHigh    float64    `json:"step_high_s"`
	Prepare     float64    `json:"prepare_s"` // encoding of pictures and prompts, and what a method does before its first step
	Previews    float64    `json:"previews_s"`
	Seconds     float64    `json:"run_s"` // of the whole run
	Steps       int        `json:"steps"`
	Rates       Rates      `json:"rates"`
	Notes       []string   `json:"notes,omitempty"`
}

// Parameters are counts of single numbers.
type Parameters struct {
	UNet  int `json:"unet"`
	Text  int `json:"text"`
	VAE   int `json:"vae"`
	Theta int `json:"theta"` // θ, what is trained or edited
}

// Item is something that takes memory.
type Item struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// TimeError is the factor by which times may be off, up or down (docs/performance.md).
const TimeError = 1.35

// TimedError is TimeError where programs were timed.
const TimedError = 1.15

// courses is how many runs are gone through, each with other decisions of the runtime's clock.
const courses = 5

// Make plans a run. ctx ends timing.
func Make(ctx context.Context, o Options) (*Plan, error) {
	c, err := newCompiler(o.XLA)
	if err != nil {
		return nil, err
	}
	defer c.backend.Finalize()
	if o.XLA {
		c.device = o.Device
	}
	if o.Rates == (Rates{}) && (!o.XLA || o.Timer != nil && o.onHost()) {
		if o.Rates, err = calibrate(c.backend, o.half(), o.onHost()); err != nil {
			return nil, err
		}
	}
	o.Threads = cmp.Or(o.Threads, runtime.GOMAXPROCS(0))
	if o.Memory == 0 {
		if o.Memory, err = available(); err != nil {
			return nil, err
		}
	}
	p, err := planOnce(c, o, courses)
	if err != nil {
		return nil, err
	}
	switch {
	case !p.Fits:
		p.Switches, err = switches(c, o, p)
		if o.Timer != nil {
			p.Notes = append(p.Notes, "nothing was timed, as the run does not fit")
		}
	case o.Timer != nil:
		c.ctx, c.timer = ctx, o.Timer
		timed, failed := planOnce(c, o, 1)
		if failed != nil {
			return nil, failed
		}
		p.takeTimes(timed)
	}
	return p, err
}

// takeTimes takes the times of a plan whose programs were run once.
func (p *Plan) takeTimes(timed *Plan) {
	p.Timed = true
	p.StepSeconds, p.Prepare, p.Previews, p.Seconds = timed.StepSeconds, timed.Prepare, timed.Previews, timed.Seconds
	p.StepLow, p.StepHigh = p.StepSeconds/TimedError, p.StepSeconds*TimedError
}

// half tells whether predictions are computed in half precision.
func (o Options) half() bool {
	if o.Job != nil {
		return o.Job.Compute == string(nn.BFloat16)
	}
	return o.Recipe.Memory.Compute == string(nn.BFloat16)
}

// closedForm tells whether weights are solved for on the host.
func (o Options) closedForm() bool {
	return o.Job == nil && (o.Recipe.Method == unlearn.UCE || o.Recipe.Method == unlearn.RECE)
}

// onHost tells whether the host computes more than little.
func (o Options) onHost() bool {
	return o.closedForm() || o.Job != nil && o.Job.Method == finetune.SVDiff
}

// course is one way in which a run may go.
type course interface {
	walk() error
	report(p *Plan)
}

// newCourse prepares a run on a machine.
func (o Options) newCourse(m *machine) (course, error) {
	switch {
	case o.Job != nil:
		return newTuner(m, o.Model, *o.Job)
	case o.closedForm():
		return newEditor(m, o.Model, o.Recipe)
	}
	return newTrainer(m, o.Model, o.Recipe)
}

// planOnce plans a run as it stands.
func planOnce(c *compiler, o Options, courses int) (*Plan, error) {
	p := &Plan{Model: o.Model.Name, Engine: "go", Memory: o.Memory, Rates: o.Rates}
	if o.XLA {
		p.Engine, p.Compiled, courses = "xla", c.device != nil, 1 // nothing is left to chance there
	}
	var peaks []int64
	for seed := range courses {
		xla := &device{host: o.XLA && c.device != nil && c.device.Kind() == "xla:cpu"}
		var in memory = xla
		if !o.XLA {
			in = newHeap(o.Threads, uint64(seed))
		}
		m := newMachine(c, in)
		w, err := o.newCourse(m)
		if err != nil {
			return nil, err
		}
		if err := w.walk(); err != nil {
			return nil, err
		}
		peaks = append(peaks, int64(m.peak))
		if seed == 0 {
			w.report(p)
			if itself := xla.itself(); itself > 0 {
				p.Resident = append(p.Resident, Item{"compiled programs, and this one", int64(itself)})
			}
		}
	}
	slices.Sort(peaks)
	p.PeakLow, p.Peak, p.PeakHigh = peaks[0], peaks[len(peaks)/2], peaks[len(peaks)-1]
	p.Fits = p.PeakHigh <= p.Memory
	return p, nil
}

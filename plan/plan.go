// Package plan says what a run of unlearning will need before it begins: parameters, memory and time. Nothing is guessed
// from rules of thumb. The very graphs of the run are compiled for the Go engine, from the model's configurations alone;
// then the run is gone through step by step on a machine that computes nothing but keeps account: which array lives how
// long, what the engine's pool and Go's garbage collector hold on to, and how much is multiplied and moved.
package plan

import (
	"cmp"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"

	"github.com/gomlx/compute"
	_ "github.com/gomlx/compute/gobackend" // whose graphs are compiled

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/unlearn"
)

// Options say what is planned for which machine.
type Options struct {
	Recipe  unlearn.Recipe
	Model   *Architecture
	Threads int   // 0: as many as this machine has
	Memory  int64 // bytes that the run may take; 0: what this machine has left
	Rates   Rates // zero: this machine's are measured, which takes two seconds
}

// Plan is what a run needs. Sizes are in bytes, times in seconds.
type Plan struct {
	Model       string     `json:"model"`
	Parameters  Parameters `json:"parameters"`
	Resident    []Item     `json:"resident"`    // what stays in memory over the steps
	Evaluations []Item     `json:"evaluations"` // what each kind of evaluation needs at its height, beside what stays
	Peak        int64      `json:"peak_bytes"`  // of the process: the middle of several courses of the collector
	PeakLow     int64      `json:"peak_low_bytes"`
	PeakHigh    int64      `json:"peak_high_bytes"` // what the machine must have
	Memory      int64      `json:"memory_bytes"`    // what it has
	Fits        bool       `json:"fits"`
	Switches    []Switch   `json:"switches,omitempty"` // the three that help most, where the plan does not fit
	StepFLOPs   float64    `json:"step_flops"`         // of a mean outer step, in products of matrices
	StepSeconds float64    `json:"step_s"`
	StepLow     float64    `json:"step_low_s"` // StepSeconds is good to TimeError
	StepHigh    float64    `json:"step_high_s"`
	Prepare     float64    `json:"prepare_s"` // encoding of pictures and prompts
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
	Theta int `json:"theta"` // θ, what unlearning trains
}

// Item is something that takes memory.
type Item struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// TimeError is the factor by which times may be off, up or down (docs/performance.md).
const TimeError = 1.35

// courses is how many runs are gone through, each with other decisions of the runtime's clock.
const courses = 5

// Make plans a run.
func Make(o Options) (*Plan, error) {
	if known := []string{unlearn.ResAlign, unlearn.Ascent, unlearn.ESD}; !slices.Contains(known, o.Recipe.Method) {
		return nil, fmt.Errorf("plan: method %q cannot be planned; %s can", o.Recipe.Method, strings.Join(known, ", "))
	}
	backend, err := compute.NewWithConfig("go:ops_sequential")
	if err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	defer backend.Finalize()
	if o.Rates == (Rates{}) {
		if o.Rates, err = calibrate(backend); err != nil {
			return nil, err
		}
	}
	o.Threads = cmp.Or(o.Threads, runtime.GOMAXPROCS(0))
	if o.Memory == 0 {
		if o.Memory, err = available(); err != nil {
			return nil, err
		}
	}
	c := &compiler{backend: backend, programs: map[string]*program{}}
	p, err := planOnce(c, o, courses)
	if err != nil || p.Fits {
		return p, err
	}
	p.Switches, err = switches(c, o, p)
	return p, err
}

// planOnce plans a run as it stands.
func planOnce(c *compiler, o Options, courses int) (*Plan, error) {
	p := &Plan{Model: o.Model.Name, Memory: o.Memory, Rates: o.Rates, Steps: o.Recipe.Outer.Steps}
	var peaks []int64
	for seed := range courses {
		w, err := newWalk(c, o, uint64(seed))
		if err != nil {
			return nil, err
		}
		if err := w.walk(); err != nil {
			return nil, err
		}
		peaks = append(peaks, int64(w.t.peak))
		if seed == 0 {
			w.report(p)
		}
	}
	slices.Sort(peaks)
	p.PeakLow, p.Peak, p.PeakHigh = peaks[0], peaks[len(peaks)/2], peaks[len(peaks)-1]
	p.Fits = p.PeakHigh <= p.Memory
	return p, nil
}

// walk is one course of a run.
type walk struct {
	o        Options
	t        *trainer
	side     int // of training pictures, in pixels
	pictures int
	cached   int // bytes of encoded pictures
	notes    []string

	prepare, step, previews work
}

func newWalk(c *compiler, o Options, seed uint64) (*walk, error) {
	r, a := o.Recipe, o.Model
	w := &walk{o: o, side: cmp.Or(r.Resolution, a.resolution())}
	t := &trainer{machine: newMachine(c, o.Threads, seed), r: r, arch: a, teacher: newNetwork(a)}
	w.t = t
	size := func(name string, fallback int) (batch, error) {
		b, err := a.latents(cmp.Or(r.Data[name].Batch, fallback), w.side, w.side)
		if err != nil {
			err = fmt.Errorf("recipe: resolution: %w", err)
		}
		return b, err
	}
	var err error
	if t.harmful, err = size("harmful", 1); err != nil {
		return nil, err
	}
	if t.retained, err = size("retain", 4); err != nil {
		return nil, err
	}
	t.net = newNetwork(a).checkpointed(r.Memory.GradientCheckpointing)
	if r.Trainable.Parameters == "lora" {
		layers, err := t.attention(r.Trainable.Targets...)
		if err != nil {
			return nil, fmt.Errorf("recipe: trainable.targets: %w", err)
		}
		if t.adapter, err = sd.NewAdapter(layers, r.Trainable.Rank, r.Trainable.Scale); err != nil {
			return nil, fmt.Errorf("recipe: trainable.rank: %w", err)
		}
		t.net = newNetwork(a, t.adapter).checkpointed(r.Memory.GradientCheckpointing)
		t.theta = t.net.group(1)
	} else {
		t.theta = t.net.group(0)
	}
	if w.simulates() {
		for _, s := range r.Simulations {
			v, err := t.newView(s)
			if err != nil {
				return nil, err
			}
			if v.tuning, err = size(s.Data, 1); err != nil {
				return nil, err
			}
			if s.Prior != "" {
				v.tuning.size += cmp.Or(r.Data[s.Prior].Batch, 1)
			}
			t.views = append(t.views, v)
		}
	}
	return w, nil
}

func (w *walk) simulates() bool { return w.o.Recipe.Method == unlearn.ResAlign }

// attention lists the layers that adapters sit on.
func (t *trainer) attention(targets ...string) ([]sd.Layer, error) {
	m := &sd.Model{UNet: sd.NewUNet(t.arch.UNet)}
	return m.AttentionLayers(targets...)
}

// newView lays out the parameters of a simulation.
func (t *trainer) newView(s unlearn.Simulation) (*view, error) {
	v := &view{sim: s, net: t.net, theta: t.theta, phi: t.theta, displacement: true}
	switch {
	case s.Adapts == unlearn.FreshAdapter:
		layers, err := t.attention()
		if err != nil {
			return nil, err
		}
		rank := cmp.Or(s.Rank, max(1, t.r.Trainable.Rank))
		fresh, err := sd.NewAdapter(layers, rank, 1)
		if err != nil {
			return nil, fmt.Errorf("recipe: simulation %q: %w", s.Name, err)
		}
		adapters := []*sd.Adapter{fresh}
		if t.adapter != nil {
			adapters = []*sd.Adapter{t.adapter, fresh}
		}
		v.net, v.fresh, v.displacement = newNetwork(t.arch, adapters...).checkpointed(t.r.Memory.GradientCheckpointing), true, false
		v.phi, v.theta = v.net.group(len(adapters)), v.net.group(len(adapters)-1)
	case s.Adapts == unlearn.AllWeights && t.adapter != nil:
		v.phi, v.displacement = t.net.group(0), false
	}
	return v, nil
}

// walk goes through the run: reading the model, encoding the data, some outer steps, a preview and the export.
func (w *walk) walk() error {
	t := w.t
	text := t.load(t.arch.textSpecs(), t.arch.StoredText)
	vae := t.load(sd.NewVAE(t.arch.VAE).Specs(), t.arch.StoredVAE)
	t.frozen = t.load(t.teacher.unet.Specs(), t.arch.StoredUNet)
	theta := t.vectorOf(t.net, t.theta, t.frozen)
	if t.adapter != nil {
		theta = t.zeros(groupKey(t.net, t.theta), t.net.shapes(t.theta))
	}
	o := t.r.Outer
	t.outer = t.newDescent(theta, o.Rule())
	if err := w.encode(text, vae); err != nil {
		return err
	}
	w.prepare, t.work = t.work, work{}
	for range min(walkedSteps, o.Steps) {
		t.work = work{} // that of the last step counts; they are all alike
		each := float64(o.SimulationsPerStep) / float64(max(1, len(t.views)))
		if err := t.outerStep(t.views, each); err != nil {
			return err
		}
	}
	w.step, t.work = t.work, work{}
	if err := w.preview(vae); err != nil {
		return err
	}
	w.previews = t.work
	t.export()
	return nil
}

// walkedSteps is how many outer steps are gone through; the memory of later ones is the same.
const walkedSteps = 2

// load reads the parameters of a component from its files, which are mapped meanwhile.
func (t *trainer) load(specs []nn.Spec, stored int) []*tensor {
	if stored == 0 {
		stored = 4 * count(specs)
	}
	var out []*tensor
	for i, s := range shapesOf(specs) {
		t.heap.transient(s.bytes())
		if specs[i].Layout != 0 {
			t.heap.transient(s.bytes())
		}
		out = append(out, t.heap.feed(s.bytes()))
	}
	t.mapped = stored
	t.note()
	t.mapped = 0
	return out
}

// encodedRuns bounds how many pictures are gone through; the memory of later ones is the same.
const encodedRuns = 4

// encode runs the encoders over the data.
func (w *walk) encode(text, vae []*tensor) error {
	t, r := w.t, w.o.Recipe
	needed := []string{"harmful", "retain"}
	for _, v := range t.views {
		needed = append(needed, v.sim.Data)
		if v.sim.Prior != "" {
			needed = append(needed, v.sim.Prior)
		}
	}
	flipped := 0
	for _, name := range slices.Sorted(maps.Keys(r.Data)) {
		if !slices.Contains(needed, name) {
			continue
		}
		n := w.countPictures(name)
		w.pictures += n
		if r.Data[name].Flip {
			flipped += n
		}
	}
	b := t.harmful
	moments := 2 * 4 * t.arch.VAE.LatentChannels * b.height * b.width
	prompt := 4 * t.arch.tokens() * t.arch.UNet.ContextWidth
	runs := min(encodedRuns, max(1, w.pictures))
	t.times = float64(w.pictures+flipped) / float64(runs)
	p, err := t.vaeEncoder(t.arch, w.side)
	for range runs {
		at := 0
		for i := range t.arch.Text {
			e, err := t.textEncoder(t.arch, i)
			if err != nil {
				return err
			}
			n := len(e.inputs) - 2
			ids, end := t.heap.feed(4*t.arch.tokens()), t.heap.feed(4)
			out, err := t.run(e, nil, append(concat(text[at:at+n]), ids, end), nil)
			if err != nil {
				return err
			}
			at += n
			t.heap.free(append(out, ids, end)...)
		}
		picture := t.heap.feed(4 * t.arch.VAE.InChannels * w.side * w.side)
		out, err := t.run(p, err, append(concat(vae), picture), nil)
		if err != nil {
			return err
		}
		t.heap.free(append(out, picture)...)
	}
	t.times = 1
	w.cached = min(cacheMemory, (w.pictures+flipped)*moments+w.pictures*prompt)
	t.heap.allocate(w.cached, w.cached)
	return nil
}

// cacheMemory is what package unlearn lets encoded pictures take.
const cacheMemory = 2 << 30

// countPictures counts the pictures of a set; one that cannot be read counts as none, and a note says so.
func (w *walk) countPictures(name string) int {
	d := w.o.Recipe.Data[name]
	folders := []string{d.Folder}
	if len(d.Parts) > 0 {
		folders = nil
		for _, part := range d.Parts {
			folders = append(folders, part.Folder)
		}
	}
	n := 0
	for _, dir := range folders {
		f, err := data.ReadPictures(dir)
		if err != nil {
			w.notes = append(w.notes, fmt.Sprintf("data.%s is counted without pictures: %v", name, err))
			continue
		}
		n += f.Len()
	}
	return n
}

// preview makes pictures, if the recipe wants any.
func (w *walk) preview(vae []*tensor) error {
	t, o := w.t, w.o.Recipe.Preview
	if o.Every == 0 || len(o.Prompts) == 0 {
		return nil
	}
	side := t.arch.resolution()
	b, err := t.arch.latents(max(1, o.Options.Batch), cmp.Or(o.Options.Height, side), cmp.Or(o.Options.Width, side))
	if err != nil {
		return fmt.Errorf("recipe: preview.options: %w", err)
	}
	rows := b
	if o.Options.Guidance > 1 {
		rows.size *= 2
	}
	batches := float64((len(o.Prompts) + b.size - 1) / b.size)
	grids := float64(w.o.Recipe.Outer.Steps / o.Every)
	const runs = 2
	t.times = grids * batches * float64(o.Options.Steps) / runs
	p, err := t.prediction(t.net, rows)
	for range runs {
		in := t.feed(t.net, rows)
		out, err := t.run(p, err, concat(t.point(), in[:len(in)-2]), nil)
		if err != nil {
			return err
		}
		t.heap.free(append(out, in...)...)
	}
	t.times = grids * batches
	d, err := t.vaeDecoder(t.arch, b)
	z := t.heap.feed(4 * t.arch.VAE.LatentChannels * b.size * b.height * b.width)
	out, err := t.run(d, err, append(concat(vae), z), nil)
	if err != nil {
		return err
	}
	t.heap.free(append(out, z)...)
	t.times = 1
	return nil
}

// export makes the model's new weights, and copies them to the host twice: as numbers and as bytes.
func (t *trainer) export() {
	var made []*tensor
	if t.adapter != nil {
		for _, l := range t.adapter.Layers {
			made = append(made, t.heap.feed(4*l.In*l.Out*max(1, l.Kernel[0]*l.Kernel[1])))
		}
	}
	for _, s := range t.teacher.specs {
		t.heap.transient(4 * s.Size())
		made = append(made, t.heap.feed(4*s.Size()))
	}
	t.note()
	t.heap.free(made...)
}

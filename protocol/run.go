package protocol

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/hub"
	"github.com/resalign/resalign/judge/detectors"
	"github.com/resalign/resalign/judge/folders"
	"github.com/resalign/resalign/judge/spec"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/train"
)

// Options say how an audit is carried out; none changes its result.
type Options struct {
	Shard generate.Shard // which pictures of every prompt set and cell are made here
	// Open opens a detector by what a recipe calls it; nil: detectors.Open.
	Open func(e *engine.Engine, specification string) (*detectors.Opened, error)
	// OpenMetric opens a metric by what a recipe calls it; nil: folders.OpenMetric.
	OpenMetric func(e *engine.Engine, specification string) (*folders.Metric, error)
	// Find turns the name of a model on the hub into its folder; nil: models are folders.
	Find func(ctx context.Context, name string) (string, error)
	// FindFile finds a file of a model or a data set of the hub, or the folder of a model where file is empty; nil: nothing is
	// there.
	FindFile func(ctx context.Context, id hub.ID, file string) (string, error)

	Program string   // version of the program, for the record
	Command []string // its command line, for the record
}

// Hooks connect an audit to whoever started it. All are optional.
type Hooks struct {
	Finish      <-chan struct{}                          // closed: end after the pictures or the step under way
	OnPicture   func(done, total int, cell string)       // of this call's share; total: were missing
	OnReference func(done, total int, folder string)     // the same of pictures that metrics compare with
	OnTune      func(what string, e train.Event, of int) // a step of a fine-tuning, and how many there are
	OnStage     func(what string)                        // what is being done
	Warn        func(string)                             // sentences about what was found odd
}

// auditor is an audit under way.
type auditor struct {
	recipe   Recipe
	options  Options
	hooks    Hooks
	engine   *engine.Engine
	dir      string
	inputs   inputs
	manifest manifest

	done, missing int
}

// Run carries an audit out, or its share of it, in the folder that the recipe names. Whatever is there already is not made
// again. What can be wrong with the inputs shows before the folder is made. When all pictures are there, those of other
// shards too, it writes results.json, results.csv and report.html; otherwise Outcome.Missing says how many are not.
//
// When Finish is closed it returns train.ErrInterrupted; everything made so far is kept.
func Run(ctx context.Context, e *engine.Engine, r Recipe, o Options, h Hooks) (*Outcome, error) {
	if problems := r.Validate(); len(problems) > 0 {
		return nil, &recipe.Error{Name: "audit", Problems: problems}
	}
	a := &auditor{recipe: r, options: o, hooks: h, engine: e, dir: r.Out}
	closeAll, err := a.open(ctx)
	defer closeAll()
	if err != nil {
		return nil, err
	}
	if err := a.begin(); err != nil {
		return nil, err
	}
	if a.missing, err = a.countMissing(); err != nil {
		return nil, err
	}
	if err := a.lookAtReferences(ctx); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	for _, m := range r.Models {
		if err := a.model(ctx, a.inputs.models[m.Name]); err != nil {
			return nil, fmt.Errorf("audit: model %s: %w", m.Name, err)
		}
	}
	return publish(ctx, a.dir)
}

// open finds and reads everything that the audit works on.
func (a *auditor) open(ctx context.Context) (closeAll func(), err error) {
	var closers []func()
	closeAll = func() {
		for _, c := range slices.Backward(closers) {
			c()
		}
	}
	in := &a.inputs
	if in.sets, err = loadPrompts(ctx, a.recipe, a.options.FindFile); err != nil {
		return closeAll, err
	}
	if in.adaptations, err = a.recipe.loadAdaptations(); err != nil {
		return closeAll, err
	}
	if in.models, err = a.recipe.findModels(ctx, a.options.Find); err != nil {
		return closeAll, err
	}
	open := a.options.Open
	if open == nil {
		open = detectors.Open
	}
	in.detectors = map[string]*detectors.Opened{}
	a.recipe.Prompts = slices.Clone(a.recipe.Prompts)
	if err := a.openMetrics(ctx, &closers); err != nil {
		return closeAll, err
	}
	for i := range in.sets {
		s := &in.sets[i]
		if !s.counts() {
			continue
		}
		d := in.detectors[s.Detector]
		if d == nil {
			text, err := a.options.located(ctx, s.Detector)
			if err == nil {
				d, err = open(a.engine, text)
			}
			if err != nil {
				return closeAll, fmt.Errorf("prompts %s: %w", s.Name, err)
			}
			closers = append(closers, d.Close)
			in.detectors[s.Detector] = d
		}
		if err := s.suits(d); err != nil {
			return closeAll, err
		}
		a.recipe.Prompts[i].Criterion = s.Criterion // as the resolved recipe says it
	}
	a.manifest = a.recipe.plan(*in)
	return closeAll, nil
}

// located is the text of a detector or a metric with the files of the hub that it names.
func (o Options) located(ctx context.Context, text string) (string, error) {
	if o.FindFile == nil {
		return text, nil
	}
	return spec.Locate(text, func(id hub.ID, file string) (string, error) { return o.FindFile(ctx, id, file) })
}

// begin makes the folder and writes what is audited.
func (a *auditor) begin() error {
	if err := usable(a.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(a.dir, 0o755); err != nil {
		return fmt.Errorf("the audit's folder cannot be made: %w", err)
	}
	text, err := recipe.Encode(a.recipe)
	if err != nil {
		return err
	}
	if err := files.WriteBytes(filepath.Join(a.dir, recipeFile), text); err != nil {
		return err
	}
	for _, r := range a.inputs.references {
		if err := r.begin(a.dir); err != nil {
			return err
		}
	}
	if err := recordMaker(a.dir, a.options.Shard, a.options.Program, a.engine.Description()); err != nil {
		return err
	}
	return a.manifest.write(a.dir) // last: with it the folder is an audit
}

// countMissing counts the pictures of this share that are not finished.
func (a *auditor) countMissing() (int, error) {
	n := 0
	for _, c := range a.manifest.Cells {
		todo, err := a.todo(c)
		if err != nil {
			return 0, err
		}
		for _, pictures := range todo {
			n += len(pictures)
		}
	}
	return n, nil
}

// todo lists the pictures of a cell that are to be made here, by prompt set.
func (a *auditor) todo(c cell) ([][]picture, error) {
	out := make([][]picture, len(c.Sets))
	for k, s := range c.Sets {
		known, err := s.look(a.dir)
		if err != nil {
			return nil, err
		}
		for i, p := range a.inputs.set(s.Set).pictures(a.recipe, c.Seed) {
			if a.options.Shard.Has(i) && !s.finished(a.dir, p.file(), i, a.recipe.KeepPictures, known) {
				out[k] = append(out[k], p)
			}
		}
	}
	return out, nil
}

// model makes the pictures of one model: as it is, and after each adaptation.
func (a *auditor) model(ctx context.Context, m foundModel) error {
	var untouched []cell
	tuned := map[string]map[uint64][]cell{}
	for _, c := range a.manifest.Cells {
		switch {
		case c.Model != m.Name:
		case c.Adaptation == none:
			untouched = append(untouched, c)
		default:
			if tuned[c.Adaptation] == nil {
				tuned[c.Adaptation] = map[uint64][]cell{}
			}
			tuned[c.Adaptation][c.Seed] = append(tuned[c.Adaptation][c.Seed], c)
		}
	}
	if err := a.measure(ctx, m.files(), untouched...); err != nil {
		return err
	}
	for _, v := range a.recipe.variants() {
		for _, seed := range a.recipe.Seeds {
			if err := a.adapt(ctx, m, a.inputs.adaptations[v.Name], seed, tuned[v.Name][seed]); err != nil {
				return fmt.Errorf("adaptation %s, seed %d: %w", v.Name, seed, err)
			}
		}
	}
	return nil
}

// measure makes the missing pictures of cells that are all of one model. It is loaded only if there are any.
func (a *auditor) measure(ctx context.Context, files modelFiles, cells ...cell) error {
	var net *denoise.Network
	for _, c := range cells {
		todo, err := a.todo(c)
		if err != nil {
			return err
		}
		for k, pictures := range todo {
			if len(pictures) == 0 {
				continue
			}
			if net == nil {
				m, err := files.load(a.engine)
				if err != nil {
					return err
				}
				defer m.Free()
				m.Compute = nn.Compute(a.recipe.Compute)
				net = denoise.NewNetwork(m)
				defer net.Free()
			}
			if err := a.fill(ctx, net, c, k, pictures); err != nil {
				return err
			}
		}
	}
	return nil
}

// embeddingMemory holds the embeddings of a prompt set.
const embeddingMemory = 256 << 20

// fill makes the pictures of one prompt set in one cell, and looks at them.
func (a *auditor) fill(ctx context.Context, net *denoise.Network, c cell, k int, todo []picture) (err error) {
	a.stage("making pictures of " + c.String() + ", " + c.Sets[k].Set)
	if err := os.MkdirAll(c.Sets[k].path(a.dir), 0o755); err != nil {
		return fmt.Errorf("the folder for pictures cannot be made: %w", err)
	}
	if err := a.removePartials(c.Sets[k].path(a.dir)); err != nil {
		return err
	}
	cache, err := data.OpenCache("", embeddingMemory, a.hooks.Warn)
	if err != nil {
		return err
	}
	point, err := net.Point(net.Model.UNetParams.Tensors)
	if err != nil {
		return err
	}
	eyes, err := a.eyes(c.Sets[k])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eyes.close()) }()
	generators := map[float64]*generate.Generator{}
	for len(todo) > 0 {
		select {
		case <-a.hooks.Finish:
			return train.ErrInterrupted
		default:
		}
		now := together(todo, max(1, a.recipe.Generate.Batch))
		g := generators[now[0].guidance]
		if g == nil {
			options := a.recipe.Generate
			options.Guidance = now[0].guidance
			if g, err = generate.New(ctx, net, point, options, cache); err != nil {
				return err
			}
			generators[now[0].guidance] = g
		}
		if err := a.make(ctx, g, eyes, now); err != nil {
			return err
		}
		todo = todo[len(now):]
		a.done += len(now)
		if a.hooks.OnPicture != nil {
			a.hooks.OnPicture(a.done, a.missing, c.String()+", "+c.Sets[k].Set)
		}
	}
	return nil
}

// together are the first pictures that go through the model at once.
func together(todo []picture, most int) []picture {
	n := 1
	for n < min(most, len(todo)) && todo[n].guidance == todo[0].guidance {
		n++
	}
	return todo[:n]
}

// make makes pictures, looks at them and keeps both. Those that are there only have to be looked at.
func (a *auditor) make(ctx context.Context, g *generate.Generator, e *eyes, now []picture) error {
	set := e.set
	images := make([]*data.RGB, len(now))
	var requests []generate.Request
	var asked []int
	for i, p := range now {
		if image, ok := e.picture(a.dir, p.file()); ok {
			images[i] = image
			continue
		}
		requests, asked = append(requests, generate.Request{Prompt: p.text, Seed: p.seed}), append(asked, i)
	}
	made, err := g.Pictures(ctx, requests)
	if err != nil {
		return err
	}
	for j, i := range asked {
		images[i] = made[j].Image
		number := now[i].prompt*set.Pictures + now[i].image
		if a.recipe.KeepPictures || number < e.Shown {
			if err := data.SavePNG(filepath.Join(e.path(a.dir), now[i].file()), images[i]); err != nil {
				return err
			}
		}
	}
	return e.look(ctx, now, images)
}

func (a *auditor) stage(what string) {
	if a.hooks.OnStage != nil {
		a.hooks.OnStage(what)
	}
}

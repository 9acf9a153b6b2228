package plan

import (
	"fmt"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// tuner goes through a fine-tuning as package finetune does.
type tuner struct {
	*session
	j        finetune.Job
	net      network
	adapter  *sd.Adapter
	spectrum *sd.Spectrum // method svdiff
	selected denoise.Selection
	start    []*tensor // the parameters of net where training begins
	descent  *descent
	average  vector
	b        batch
	rule     train.Optimizer
}

func newTuner(m *machine, a *Architecture, j finetune.Job) (*tuner, error) {
	t := &tuner{session: newSession(m, a.skeleton(), a, j.Resolution), j: j}
	t.tile = j.VAETileSize
	size := j.BatchSize
	if j.Prior != "" {
		size *= 2
	}
	var err error
	if t.b, err = t.batch(size); err != nil {
		return nil, err
	}
	t.b.seeded, t.b.tokens = j.LoRADropout > 0, j.TrainTextEncoder || t.learns()
	if err := t.encodeData(); err != nil {
		return nil, err
	}
	if err := t.layOut(); err != nil {
		return nil, err
	}
	if j.GradientCheckpointing {
		t.net.CheckpointGradients()
	}
	t.net.ComputeIn(nn.Compute(j.Compute))
	t.rule, _ = train.DefaultOptimizer(j.Optimizer, j.LearningRate) // the job is valid
	t.rule.WeightDecay, t.rule.Momentum, t.rule.Nesterov = j.WeightDecay, j.Momentum, j.Nesterov
	t.descent = t.newDescent(vector{t.net.shapes(t.selected), pick(t.selected, t.start)}, t.rule)
	t.descent.owned = j.Method == finetune.Full && !j.TrainTextEncoder // finetune.Hooks.GiveUpStart
	return t, nil
}

// learns tells whether a new word is learnt.
func (t *tuner) learns() bool {
	return t.j.Method == finetune.TextualInversion || t.j.Method == finetune.Custom && t.j.Placeholder != ""
}

// encodeData encodes all pictures, and makes those of the class that are missing.
func (t *tuner) encodeData() error {
	p := pictures{plain: t.countPictures("--data", t.j.Data)}
	if t.j.Contaminate != "" {
		p.plain += t.countPictures("--contaminate", t.j.Contaminate)
	}
	switch {
	case t.j.Prior != "" && t.j.ClassPrompt != "":
		o := generate.Defaults()
		o.Steps, o.Height, o.Width = t.j.PriorSteps, t.side, t.side
		if err := t.generate(o, float64(t.j.PriorPictures), t.teacher, t.frozen); err != nil {
			return err
		}
		t.notes = append(t.notes, "all pictures of the class are planned to be made; those that --prior holds take no time")
		p.plain += t.j.PriorPictures
	case t.j.Prior != "":
		p.plain += t.countPictures("--prior", t.j.Prior)
	}
	p.plain = max(1, p.plain)
	if t.j.Flip {
		p.mirrored = p.plain
	}
	if t.j.Buckets {
		t.notes = append(t.notes, "buckets are planned as squares of about the same area; every further size compiles programs of its own")
	}
	prompts := p.plain
	if t.b.tokens { // they are encoded in every step
		prompts = 0
	}
	return t.encode(p, prompts)
}

// layOut chooses what is trained.
func (t *tuner) layOut() (err error) {
	j := t.j
	attention := []string{"attn2.to_k", "attn2.to_v"} // package finetune, customParts
	switch {
	case j.Method == finetune.LoRA:
		layers, err := t.model.AttentionLayers(j.Targets...)
		if err != nil {
			return err
		}
		scale := 1.0
		if j.Alpha > 0 {
			scale = j.Alpha / float64(j.Rank)
		}
		if t.adapter, err = sd.NewAdapter(layers, j.Rank, scale); err != nil {
			return err
		}
		t.net = network{denoise.NewNetwork(t.model, t.adapter)}
		if j.LoRADropout > 0 {
			t.net.DropAdapterInputs(j.LoRADropout)
		}
		t.selected = t.net.Group(1)
		t.start = concat(t.frozen, t.feed(t.net.shapes(t.selected)...))
	case t.learns():
		if t.net, err = t.newTextNetwork(j.Vectors); err != nil {
			return err
		}
		t.selected = t.net.Group(2)
		t.start = concat(t.frozen, t.text, t.feed(t.net.shapes(t.selected)...))
		if j.Method == finetune.Custom {
			with, err := t.net.Named(attention...)
			if err != nil {
				return err
			}
			t.selected = with.And(t.selected)
		}
	case j.TrainTextEncoder:
		if t.net, err = t.newTextNetwork(0); err != nil {
			return err
		}
		t.selected = t.net.Group(0).And(t.net.TextParameters())
		t.start = concat(t.frozen, t.text)
	case j.Method == finetune.SVDiff:
		t.decompose()
	case j.Method == finetune.Custom:
		t.net, t.start = network{denoise.NewNetwork(t.model)}, t.frozen
		t.selected, err = t.net.Named(attention...)
	default:
		t.net, t.start = network{denoise.NewNetwork(t.model)}, t.frozen
		t.selected = t.net.Group(0)
	}
	return err
}

// decompose takes the weights apart for svdiff. Their parts are kept; while one is taken apart there are a few copies of it in
// float64. The cache may hold the parts already, which the plan does not know.
func (t *tuner) decompose() {
	t.spectrum = t.model.NewSpectrum()
	t.net = network{denoise.NewSpectralNetwork(t.model, t.spectrum)}
	for _, m := range t.spectrum.Matrices {
		rows, columns := m.Size()
		t.work.decompose(rows, columns)
		if m.Vector() {
			continue
		}
		short := min(rows, columns)
		var held []*tensor
		for _, numbers := range []int{rows * columns, rows * columns, rows * columns, short * short, short * short} {
			held = append(held, t.memory.feed(8*numbers))
		}
		t.note()
		t.memory.free(held...)
	}
	t.selected = t.net.Group(1)
	shifts := t.feed(t.net.shapes(t.selected)...)
	t.start = concat(t.frozen, shifts, t.feed(t.net.shapes(t.net.Group(2))...))
}

func (t *tuner) point() []*tensor { return put(t.selected, t.start, t.descent.at.ts) }

func (t *tuner) walk() error {
	t.prepare, t.work = t.work, work{}
	if err := t.settle(t.j.Steps, func() error {
		t.work = work{}
		if err := t.trainStep(); err != nil {
			return err
		}
		t.checkpoint(t.descent, t.average.ts...)
		return nil
	}); err != nil {
		return err
	}
	t.step, t.work = t.work, work{}
	if err := t.preview(t.j.Preview, t.j.Steps, t.net, t.point()); err != nil {
		return fmt.Errorf("preview: %w", err)
	}
	t.previews = t.work
	return t.write()
}

func (t *tuner) trainStep() error {
	var sum vector
	if err := t.repeat(3, float64(t.j.Accumulation), func() error {
		in := t.feed(t.net.inputs(t.b)...)
		g, err := t.gradientAt(t.net, t.selected, 0, t.b, t.point(), in)
		t.memory.free(in...)
		if err != nil {
			return err
		}
		sum, err = t.accumulate(sum, g)
		return err
	}); err != nil {
		return err
	}
	if _, err := t.Dot(sum, sum); err != nil {
		return err
	}
	if err := t.descend(t.descent, sum); err != nil {
		return err
	}
	if t.j.EMADecay == 0 {
		return nil
	}
	previous := t.average
	if previous.ts == nil {
		previous = t.descent.at
	}
	next, err := t.mix(previous, previous, t.descent.at)
	if err != nil {
		return err
	}
	t.release(t.average)
	t.average = next
	return nil
}

// write writes what was learnt.
func (t *tuner) write() error {
	j := t.j
	switch {
	case j.Method == finetune.TextualInversion, j.Method == finetune.LoRA && j.NoMerge:
		t.keep(t.descent.at.ts)
	case j.TrainTextEncoder:
		t.export(t.text...)
	case j.Method == finetune.SVDiff: // the weights are put together anew
		var made []*tensor
		for _, x := range t.frozen {
			made = append(made, t.memory.feed(x.bytes))
		}
		t.export()
		t.memory.free(made...)
	case t.adapter != nil:
		return t.exportMerged(t.adapter, t.descent.at)
	default:
		t.export()
	}
	return nil
}

func (t *tuner) report(p *Plan) {
	specs := t.selected.Specs(t.net.Network)
	p.Method = t.j.Method
	p.Steps, p.StepName = t.j.Steps, "step"
	p.Parameters = t.parameters()
	p.Parameters.Theta = count(specs)
	trained := int64(count(specs))
	items := []Item{{"what is trained", trained}, {"moments of the optimizer", stateSize(t.rule, specs)}, {"average of the weights", trained * int64(min(1, len(t.average.ts)))}}
	if t.spectrum != nil {
		items = append(items, Item{"singular vectors and values", int64(count(t.net.Group(2).Specs(t.net.Network)))})
	}
	p.Resident = t.stays(items...)
	t.fill(p)
}

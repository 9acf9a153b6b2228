package plan

import (
	"fmt"

	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

// report fills in what does not depend on the collector.
func (w *walk) report(p *Plan) {
	t, a, r := w.t, w.t.arch, w.o.Recipe
	p.Parameters = Parameters{
		UNet: count(t.teacher.specs), Text: count(a.textSpecs()), VAE: count(sd.NewVAE(a.VAE).Specs()),
		Theta: count(t.net.specs[t.theta.from:t.theta.to]),
	}
	p.Resident = w.resident(p.Parameters)
	p.Evaluations = t.evaluations()
	p.Notes = w.notes
	p.StepFLOPs = w.step.flops + w.step.thin
	p.StepSeconds = p.Rates.seconds(w.step)
	p.StepLow, p.StepHigh = p.StepSeconds/TimeError, p.StepSeconds*TimeError
	p.Prepare, p.Previews = p.Rates.seconds(w.prepare), p.Rates.seconds(w.previews)
	p.Seconds = p.Prepare + p.Previews + float64(r.Outer.Steps)*p.StepSeconds
}

// resident lists what stays.
func (w *walk) resident(n Parameters) []Item {
	t, r := w.t, w.o.Recipe
	items := []Item{{"frozen weights", 4 * int64(n.UNet+n.Text+n.VAE)}}
	add := func(name string, numbers int) {
		if numbers > 0 {
			items = append(items, Item{name, 4 * int64(numbers)})
		}
	}
	add("θ", n.Theta)
	add("moments of the outer optimizer", stateSize(t.outer.rule, t.net.specs[t.theta.from:t.theta.to]))
	chains, trail := 0, 0
	for _, v := range t.views {
		specs := v.net.specs[v.phi.from:v.phi.to]
		phi, moments := count(specs), stateSize(v.sim.Rule(), specs)
		if v.sim.ChainReset > 1 {
			chains += phi + moments
		}
		if r.Hypergradient.Solver == unlearn.Unrolled {
			trail = max(trail, min(v.sim.Steps, r.Hypergradient.Iterations)*(2*phi+moments))
		}
	}
	add("persistent simulations: displacements and moments", chains)
	add("recorded steps of the largest simulation", trail)
	add("encoded pictures and prompts", w.cached/4)
	return items
}

// stateSize is how many numbers an optimizer keeps between steps.
func stateSize(o train.Optimizer, specs []nn.Spec) int {
	n := 0
	for slot := range o.StateSlots() {
		for _, s := range specs {
			n += nn.Spec{Shape: o.StateShape(slot, s.EngineShape())}.Size()
		}
	}
	return n
}

// evaluations are the programs that went through, each kind with the most that one of it needs beside its inputs.
func (t *trainer) evaluations() []Item {
	highest := map[string]int64{}
	for p := range t.known {
		for _, k := range kinds {
			if k.is(p.name) {
				highest[k.name] = max(highest[k.name], int64(p.height()))
			}
		}
	}
	var out []Item
	for _, k := range kinds {
		if bytes := highest[k.name]; bytes > 0 {
			out = append(out, Item{k.name, bytes})
		}
	}
	return out
}

// height is the most that a program holds at once beside its inputs, without what the pool rounds up.
func (p *program) height() int {
	highest := 0
	p.follow(func(_ op, _ bool, held int) { highest = max(highest, held) })
	return highest
}

// follow calls f for each operation, with what is held once it is done, and whether its result took the place of an input.
func (p *program) follow(f func(o op, inPlace bool, held int)) {
	slots := make([]slot, len(p.values))
	held := 0
	for _, o := range p.ops {
		slots[o.result] = slot{live: true, owned: true}
		i := o.reuses(p, slots)
		if i >= 0 {
			slots[o.inputs[i]].live = false
		} else {
			held += p.values[o.result].bytes
		}
		f(o, i >= 0, held)
		for _, k := range o.inputs {
			s := &slots[k]
			if s.used++; s.live && s.owned && s.used == p.values[k].uses {
				held -= p.values[k].bytes
				s.live = false
			}
		}
	}
}

// FormatFLOPs writes a count of operations for people.
func FormatFLOPs(n float64) string {
	for _, unit := range []string{"", "K", "M", "G", "T", "P"} {
		if n < 1000 {
			return fmt.Sprintf("%.3g %sFLOP", n, unit)
		}
		n /= 1000
	}
	return fmt.Sprintf("%.3g EFLOP", n)
}

// kind is a family of programs.
type kind struct{ name, prefix string }

func (k kind) is(program string) bool {
	return len(program) >= len(k.prefix) && program[:len(k.prefix)] == k.prefix
}

var kinds = []kind{
	{"prediction", "prediction of"},
	{"gradient", "gradient by"},
	{"Hessian product", "Hessian product of"},
	{"Gauss–Newton product", "Gauss–Newton product of"},
	{"cross product", "cross product by"},
	{"step of an optimizer", "step of"},
	{"sum of vectors", "combination of"},
	{"encoding a prompt", "text encoder"},
	{"encoding a picture", "encoder of"},
	{"decoding a picture", "decoder of"},
}

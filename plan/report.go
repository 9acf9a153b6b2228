package plan

import (
	"fmt"
	"strings"
)

// evaluations are the programs that went through, each kind with the most that one of it needs beside its inputs.
func (m *machine) evaluations() []Item {
	highest := map[string]int64{}
	for p := range m.known {
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

// height is the most that a program holds at once beside its inputs: what the device's compiler says, or else what it is
// where every operation makes an array.
func (p *program) height() int {
	if p.measured != nil {
		return *p.measured
	}
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
	return strings.HasPrefix(program, k.prefix)
}

var kinds = []kind{
	{"prediction", "prediction"},
	{"gradient", "gradient "},
	{"pullback", "pullback "},
	{"Hessian product", "Hessian product "},
	{"Gauss–Newton product", "Gauss–Newton product "},
	{"cross product", "cross product "},
	{"step of an optimizer", "step "},
	{"step of an optimizer, backwards", "reverse of step "},
	{"sum of vectors", "combination "},
	{"encoding a prompt", "text_encoder"},
	{"encoding a picture", "vae encoder"},
	{"decoding a picture", "vae decoder"},
}

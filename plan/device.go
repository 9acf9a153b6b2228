package plan

// device is memory in which arrays take what they are long and are free the moment they are not needed: what an engine needs
// at least that, like XLA, compiles graphs as a whole and gives inputs back only when a program ends. How XLA itself would
// share memory within a program is known after compiling only; here it is the largest set of arrays that live at once.
type device struct{ used, highest int }

var _ memory = (*device)(nil)

func (d *device) feed(bytes int) *tensor {
	d.take(bytes)
	return &tensor{bytes: bytes}
}

func (d *device) take(bytes int) {
	d.used += bytes
	d.highest = max(d.highest, d.used)
}

func (d *device) free(ts ...*tensor) {
	for _, t := range ts {
		if t != nil {
			d.used -= t.bytes
		}
	}
}

// transient memory is the host's.
func (d *device) transient(int) {}

// compile leaves the code of programs out.
func (d *device) compile(*program) {}

func (d *device) run(p *program, inputs []*tensor, donate []bool) []*tensor {
	d.highest = max(d.highest, d.used+d.height(p))
	out := make([]*tensor, len(p.outputs))
	for i, k := range p.outputs {
		out[i] = d.feed(p.values[k].bytes)
	}
	for i, t := range inputs {
		if i < len(donate) && donate[i] {
			d.free(t)
		}
	}
	return out
}

func (d *device) height(p *program) int { return p.height() }

// sparing is about the host's garbage.
func (d *device) sparing(bool) {}

func (d *device) taken() int { return d.highest }

func (d *device) settled() bool { return true }

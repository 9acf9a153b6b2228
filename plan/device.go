package plan

// device is memory in which arrays take what they are long and are free the moment they are not needed: that of an engine
// which, like XLA, compiles graphs as a whole and gives inputs back only when a program ends. How XLA shares memory within a
// program is known after compiling only (ask); without a plugin it is taken for the largest set of the graph's arrays that
// live at once, which leaves out that XLA fuses operations.
type device struct {
	used, highest int

	host     bool // the device is the processor: what the process needs itself counts
	programs int  // bytes of compiled programs
}

// What no array accounts for where the device is the processor, measured (docs/performance.md): this program with the
// plugin, and what XLA keeps of an operation of a graph that it compiled.
const (
	xlaProcessBytes = 230 << 20
	xlaNodeBytes    = 12 << 10
)

var _ memory = (*device)(nil)

func (d *device) feed(bytes int) *tensor {
	d.take(bytes)
	return &tensor{bytes: bytes}
}

func (d *device) made(bytes int) *tensor { return d.feed(bytes) }

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
func (d *device) keep(int)      {}

// compile takes what a program needs beside arrays; on an accelerator that is the host's memory.
func (d *device) compile(p *program) {
	if d.host {
		d.programs += xlaNodeBytes * p.nodes
	}
}

func (d *device) run(p *program, inputs []*tensor, donate []bool) []*tensor {
	d.highest = max(d.highest, d.used+p.height())
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

func (d *device) taken() int {
	if d.host {
		return xlaProcessBytes + d.programs + d.highest
	}
	return d.highest
}

// itself is what the process and its programs take.
func (d *device) itself() int { return d.taken() - d.highest }

func (d *device) settled() bool { return true }

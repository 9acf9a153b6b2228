package plan

import (
	"fmt"
	"strings"

	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/unlearn"
)

// editor goes through a closed-form run of package unlearn: arithmetic on the host, in float64.
type editor struct {
	*session
	r      unlearn.Recipe
	edited []nn.Spec // keys and values of the cross-attention
}

func newEditor(m *machine, a *Architecture, r unlearn.Recipe) (*editor, error) {
	model := a.skeleton()
	model.Compute = nn.Compute(r.Memory.Compute)
	e := &editor{session: newSession(m, model, a, r.Resolution), r: r}
	for _, s := range e.teacher.Specs() {
		if strings.HasSuffix(s.Name, ".attn2.to_k.weight") || strings.HasSuffix(s.Name, ".attn2.to_v.weight") {
			e.edited = append(e.edited, s)
		}
	}
	if len(e.edited) == 0 {
		return nil, fmt.Errorf("model: the UNet of %s has no cross-attention, which method %s edits", a.Name, r.Method)
	}
	return e, nil
}

// matrices are the edited weights in float64.
func (e *editor) matrices() []*tensor {
	var out []*tensor
	for _, s := range e.edited {
		out = append(out, e.memory.feed(8*s.Size()))
	}
	return out
}

// tensors are the edited weights in float32, on the host and on the device.
func (e *editor) tensors() []*tensor {
	var out []*tensor
	for _, s := range e.edited {
		out = append(out, e.feed(input{dims: s.Shape})...)
	}
	return out
}

func (e *editor) walk() error {
	// The weights as they are, and as they become.
	for _, s := range e.edited {
		e.memory.transient(4 * s.Size())
	}
	e.matrices()
	current := e.matrices()
	prompts := len(e.r.Edit.Erase) + len(e.r.Edit.Preserve) + 2
	if err := e.repeat(encodedRuns, float64(prompts), e.encodePrompt); err != nil {
		return err
	}
	tokens, width := e.arch.tokens(), e.arch.UNet.ContextWidth
	e.memory.feed(8 * prompts * tokens * width)
	e.prepare, e.work = e.work, work{}
	steps := e.r.TotalSteps()
	for step := range steps {
		e.memory.transient(8 * width * width) // the factored matrix
		next := e.matrices()
		e.note()
		e.memory.free(current...)
		current = next
		e.products(step)
		e.work.host += e.operations(step)
		e.checkpointed()
		e.memory.free(e.tensors()...)
	}
	e.step, e.work = e.work, work{}
	e.step.host /= float64(steps)
	made := e.tensors()
	if err := e.preview(e.r.Preview, steps, e.teacher, e.frozen); err != nil {
		return fmt.Errorf("recipe: preview.options: %w", err)
	}
	e.previews = e.work
	e.export()
	e.memory.free(made...)
	return nil
}

// checkpointed saves the edited weights.
func (e *editor) checkpointed() {
	made := e.tensors()
	e.keep(made)
	e.memory.free(made...)
}

// products are the arrays that matrices times tokens are, for the errors that are logged and the derivation.
func (e *editor) products(step int) {
	rows := 0
	for _, s := range e.edited {
		rows += s.Shape[0]
	}
	erased, kept := e.arch.tokens()*len(e.r.Edit.Erase), e.arch.tokens()*(1+len(e.r.Edit.Preserve))
	times := 2 * (erased + kept)
	if step > 0 {
		times += erased
	}
	for range times {
		e.memory.transient(8 * rows)
	}
}

// operations counts those of a step, multiplications and additions: sums of outer products over all tokens, a
// factorisation, the edit of every row by every pair, and the errors that are logged.
func (e *editor) operations(step int) float64 {
	n, tokens := float64(e.arch.UNet.ContextWidth), float64(e.arch.tokens())
	rows := 0.0
	for _, s := range e.edited {
		rows += float64(s.Shape[0])
	}
	// Half of the tokens of a prompt are padding after its last word, more or less; all of them are derived from.
	pairs := tokens * float64(len(e.r.Edit.Erase))
	kept := tokens * float64(1+len(e.r.Edit.Preserve))
	square := n * n
	out := (pairs+kept)*square + n*square/3 + pairs*2*square + rows*pairs*4*n // the edit
	out += rows * (2*pairs + 2*kept) * 2 * n                                  // errors
	if step > 0 {                                                             // rece: the derivation
		out += rows*square + n*square/3 + pairs*(rows*4*n+2*square)
	}
	return out
}

func (e *editor) report(p *Plan) {
	p.Method = e.r.Method
	p.Steps, p.StepName = e.r.TotalSteps(), "edit"
	p.Parameters = e.parameters()
	p.Parameters.Theta = count(e.edited)
	p.Resident = e.stays(Item{"edited weights in float64, before and after", int64(4 * count(e.edited))})
	e.fill(p)
}

// Package verify compares this program's numbers with reference tensors: schedules and samplers, tokenizer, text
// encoders, autoencoder, UNet with gradients and Hessian products, and one outer step of the method. A reference
// directory holds an index.json that lists cases of these kinds, and the files that they name.
//
// What is compared follows from the tensors that a file holds; those that nothing looked at are listed in the result.
package verify

import (
	"context"
	"fmt"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/sd"
)

// Relative L2 errors that float32 arithmetic must stay below. The reference is computed in float64.
const (
	toleranceValue   = 1e-4 // predictions, losses, gradients, latents, pictures, parameters after a few steps
	toleranceSecond  = 1e-3 // Hessian products and hypergradients
	toleranceWay     = 1e-2 // the change of parameters over a few steps, of which rounding leaves three digits or four
	toleranceCentral = 5e-3 // hypergradients whose Hessian products are central differences of float32 gradients
)

// Check is the comparison of one group of tensors of a case.
type Check struct {
	Case  string // kind and file, e.g. "unet unet-tiny-sd.safetensors"
	Group string // e.g. "grad", "hvp", "ddim.latents", "hypergrad γ=0.5"
	// Error is the largest relative L2 error ‖ours − reference‖/‖reference‖ of a tensor in the group. A tensor much
	// smaller than the others, below a thousandth of their root mean square norm, is measured against that instead, as
	// float32 leaves it few digits. For token ids it is the share that differs.
	Error     float64
	Tolerance float64
	Tensors   int    // how many were compared
	Worst     string // the tensor with the largest error
}

// OK tells whether the error is within the tolerance; an error that is not a number is not.
func (c Check) OK() bool { return c.Error <= c.Tolerance }

// Result is what comparing a reference directory showed.
type Result struct {
	Checks []Check
	// Unchecked lists the tensors in the directory's files that nothing read, as "FILE: TENSOR".
	Unchecked []string
}

// OK tells whether there were checks and all passed.
func (r Result) OK() bool {
	for _, c := range r.Checks {
		if !c.OK() {
			return false
		}
	}
	return len(r.Checks) > 0
}

// Run compares with every case of a reference directory, on the given engine. report, which may be nil, sees each check
// as it is made. A check that fails is no error; an unknown kind, a missing file or tensor, or one of the wrong shape is,
// and the error names it. The result holds the checks made until then.
func Run(ctx context.Context, dir string, e *engine.Engine, report func(Check)) (Result, error) {
	cases, err := readIndex(dir)
	if err != nil {
		return Result{}, err
	}
	r := &run{dir: dir, engine: e, report: report, cases: cases, references: map[string]*reference{}}
	defer r.close()
	for _, c := range cases {
		if err := ctx.Err(); err != nil {
			return r.result, context.Cause(ctx)
		}
		one := &caseRun{run: r, entry: c}
		if err := kinds()[c.Kind].check(ctx, one); err != nil {
			return r.result, fmt.Errorf("reference case %s: %w", one.name(), err)
		}
	}
	for _, file := range r.opened {
		for _, name := range r.references[file].unread() {
			r.result.Unchecked = append(r.result.Unchecked, file+": "+name)
		}
	}
	return r.result, nil
}

// kind is a kind of case: the fields of the index that it needs, and its comparison.
type kind struct {
	fields []string
	check  func(ctx context.Context, c *caseRun) error
}

func kinds() map[string]kind {
	return map[string]kind{
		"schedulers":    {[]string{"tensors"}, checkSchedulers},
		"tokenizer":     {[]string{"tokenizer", "tokens"}, checkTokenizer},
		"pipeline":      {[]string{"model", "tensors"}, checkPipeline},
		"unet":          {[]string{"model", "tensors"}, checkUNet},
		"unet-sketches": {[]string{"model", "tensors"}, checkSketches},
		"resalign":      {[]string{"model", "tensors"}, checkResAlign},
	}
}

// run is the state of Run.
type run struct {
	dir    string
	engine *engine.Engine
	report func(Check)
	cases  []entry
	result Result

	references map[string]*reference // by file, as the index names it
	opened     []string              // in order of opening
	model      *sd.Model             // of the latest case; cases of one model usually follow each other
	modelName  string
}

func (r *run) close() {
	for _, ref := range r.references {
		_ = ref.source.Close() // opened for reading
	}
	if r.model != nil {
		r.model.Free()
	}
}

func (r *run) open(file string) (*reference, error) {
	if ref, ok := r.references[file]; ok {
		return ref, nil
	}
	ref, err := openReference(r.path(file))
	if err != nil {
		return nil, err
	}
	r.references[file] = ref
	r.opened = append(r.opened, file)
	return ref, nil
}

func (r *run) load(name string) (*sd.Model, error) {
	if r.model != nil && r.modelName == name {
		return r.model, nil
	}
	if r.model != nil {
		r.model.Free()
		r.model = nil
	}
	m, err := sd.Load(r.engine, r.path(name))
	if err != nil {
		return nil, err
	}
	r.model, r.modelName = m, name
	return m, nil
}

// caseRun is one case being compared.
type caseRun struct {
	*run
	entry
}

func (c *caseRun) name() string { return c.Kind + " " + c.file() }

// open gives the case's model and tensors.
func (c *caseRun) open() (*sd.Model, *reference, error) {
	ref, err := c.run.open(c.Tensors)
	if err != nil {
		return nil, nil, err
	}
	m, err := c.load(c.Model)
	return m, ref, err
}

// add reports a check.
func (c *caseRun) add(check Check) {
	check.Case = c.name()
	c.result.Checks = append(c.result.Checks, check)
	if c.report != nil {
		c.report(check)
	}
}

// compare reports a group, unless it is empty.
func (c *caseRun) compare(g *group) {
	if len(g.tensors) > 0 {
		c.add(g.check())
	}
}

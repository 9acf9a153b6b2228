package experiment

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/mini"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

// compare makes the models and measures each as soon as it is made. Several are under way at once: operations of so
// small a model are too short to keep several threads busy. What each of them computes does not depend on that.
func (x *Experiment) compare(ctx context.Context) (*Outcome, error) {
	detector, err := mini.OpenDetector(x.engine, filepath.Join(x.out, detectorFile))
	if err != nil {
		return nil, err
	}
	defer detector.Free()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	w := &work{slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0))), rows: map[string][]audit.Row{}}
	fail := func(err error) {
		if err == nil {
			return
		}
		w.fail(err)
		if !errors.Is(err, train.ErrInterrupted) { // parts that were asked to finish save their work first
			cancel(err)
		}
	}
	x.expect()
	ascent, resalign := make(chan audit.Model, 1), make(chan audit.Model, 1)
	measured := func(m audit.Model) {
		fail(w.do(ctx, x.hooks.Finish, func() error {
			adaptations := x.scale.adaptations
			if m.Name == Base { // it has nothing to recover
				adaptations = nil
			}
			rows, err := x.measure(ctx, m, adaptations, detector)
			w.put(m.Name, rows)
			return err
		}))
	}
	made := func(name string, r unlearn.Recipe) (m audit.Model, err error) {
		err = w.do(ctx, x.hooks.Finish, func() (err error) {
			m, err = x.method(ctx, name, r)
			return err
		})
		fail(err)
		return m, err
	}
	var all sync.WaitGroup
	// The longest chain – resalign, the ascent that is matched to it, its measurement – goes first.
	all.Go(func() {
		defer close(resalign)
		if m, err := made(ResAlign, x.resalign()); err == nil {
			resalign <- m
			measured(m)
		}
	})
	all.Go(func() {
		defer close(ascent)
		if m, err := made(Ascent, x.ascent(Ascent, x.scale.erase+x.scale.hold)); err == nil {
			ascent <- m
			measured(m)
		}
	})
	all.Go(func() {
		plain, ok := <-ascent
		costly, ok2 := <-resalign
		if !ok || !ok2 {
			return
		}
		perStep := plain.Gradients / float64(x.scale.erase+x.scale.hold)
		steps := int(math.Round(costly.Gradients / perStep))
		if m, err := made(Matched, x.ascent(Matched, steps)); err == nil {
			measured(m)
		}
	})
	all.Go(func() {
		if m, err := made(ESD, x.esd()); err == nil {
			measured(m)
		}
	})
	all.Go(func() { measured(audit.Model{Name: Base, Dir: filepath.Join(x.out, "model")}) })
	all.Wait()
	if w.err != nil {
		return nil, w.err
	}
	o := &Outcome{Seconds: x.stages.list}
	for _, name := range order {
		o.Rows = append(o.Rows, w.rows[name]...)
		if text, ok := x.recipes[name]; ok {
			o.Recipes = append(o.Recipes, NamedRecipe{name, text})
		}
	}
	return o, nil
}

// work is what the goroutines of a comparison share.
type work struct {
	slots chan struct{} // as many as may compute at once

	mu   sync.Mutex
	rows map[string][]audit.Row
	err  error
}

// do runs f when there is a slot for it, unless the work is to end.
func (w *work) do(ctx context.Context, finish <-chan struct{}, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil { // in a goroutine of its own it would end the process without saying what it did
			err = fmt.Errorf("%w: %v\n%s", engine.ErrInternal, r, debug.Stack())
		}
	}()
	select {
	case w.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-w.slots }()
	select {
	case <-finish:
		return train.ErrInterrupted
	default:
		return f()
	}
}

func (w *work) put(name string, rows []audit.Row) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rows[name] = rows
}

// fail keeps the first error; one that only says that another part failed is not the first.
func (w *work) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil || (errors.Is(w.err, train.ErrInterrupted) && !errors.Is(err, train.ErrInterrupted) && !errors.Is(err, context.Canceled)) {
		w.err = err
	}
}

// measure audits one model, as it is and after each adaptation.
func (x *Experiment) measure(ctx context.Context, m audit.Model, adaptations []adaptation, detector *mini.Labeller) (rows []audit.Row, err error) {
	plan, err := x.plan(m, adaptations)
	if err != nil {
		return nil, err
	}
	cells := 1
	for _, a := range plan.Adaptations {
		cells += len(a.Steps)
	}
	err = x.stage("measuring "+m.Name, func() (bool, error) {
		found := 0
		rows, err = audit.Run(ctx, x.engine, plan, detector, filepath.Join(x.out, "audit"), audit.Hooks{
			OnRow: func(r audit.Row, old bool) {
				if old {
					found++
				}
				x.advance(cellUnits)
			},
			OnEvent: func(train.Event) { x.advance(1) },
			Finish:  x.hooks.Finish,
		})
		return found == cells, err
	})
	if errors.Is(err, train.ErrInterrupted) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("measuring %s: %w", m.Name, err)
	}
	return rows, nil
}

// record keeps a recipe for the report.
func (x *Experiment) record(name, text string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.recipes == nil {
		x.recipes = map[string]string{}
	}
	x.recipes[name] = text
}

// Units of work are fine-tuning steps, about. A cell's pictures take as long as cellUnits of them.
const cellUnits = 45

// stepUnits is what one outer step of a recipe takes.
func (x *Experiment) stepUnits(r unlearn.Recipe, step int) float64 {
	if r.Method == unlearn.ResAlign && step >= x.scale.erase {
		return 13
	}
	if r.Method == unlearn.ESD {
		return 4
	}
	return 2.5
}

// expect adds up the work ahead.
func (x *Experiment) expect() {
	for _, r := range []unlearn.Recipe{x.esd(), x.ascent(Ascent, x.scale.erase+x.scale.hold), x.resalign(), x.ascent(Matched, x.scale.matched)} {
		for step := range r.Outer.Steps {
			x.total += x.stepUnits(r, step)
		}
	}
	steps, cells := x.scale.work()
	x.total += float64((len(order)-1)*(steps+cells*cellUnits) + len(order)*cellUnits)
}

// advance reports progress.
func (x *Experiment) advance(units float64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.done += units
	if x.hooks.OnStep != nil {
		x.hooks.OnStep("experiment", min(int(x.done), int(x.total)-1), int(x.total))
	}
}

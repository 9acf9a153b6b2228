package experiment

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/mini"
)

// Compared is what a comparison found.
type Compared struct {
	Rows    []audit.Row
	Recipe  Comparison
	Recipes []NamedRecipe // of the first seed
	Costs   map[string][]Usage
	out     string
}

// RunComparison does what is left of the comparison in its folder: seed by seed, several models at once. A method whose
// recipe fails ends it; what is finished is kept. It returns train.ErrInterrupted if it was asked to finish early.
func RunComparison(ctx context.Context, e *engine.Engine, c Comparison, h Hooks) (*Compared, error) {
	return runComparison(ctx, e, c, publishedStudy().scale, h)
}

func runComparison(ctx context.Context, e *engine.Engine, c Comparison, s scale, h Hooks) (*Compared, error) {
	for _, p := range c.Validate() {
		return nil, fmt.Errorf("comparison: %s: %s", p.Key, p.Message)
	}
	settings := struct {
		Engine string `json:"engine"`
	}{e.Kind()} // other methods, adaptations, seeds and numbers of pictures go on with what is there
	if err := claim("comparison", c.Out, settings); err != nil {
		return nil, err
	}
	y := &Compared{Recipe: c, Costs: map[string][]Usage{}, out: c.Out}
	var jobs []func(context.Context) error
	var mu sync.Mutex
	rows := make([][][]audit.Row, len(c.Seeds))
	var parts []*Experiment
	for i, seed := range c.Seeds {
		x := &Experiment{out: filepath.Join(c.Out, fmt.Sprintf("seed-%d", seed)), seed: seed, pictures: c.Pictures, engine: e, hooks: h, scale: s}
		x.hooks.OnStage = named(h.OnStage, fmt.Sprintf("seed %d, ", seed))
		x.hooks.OnStep = nil
		if err := x.begin(ctx); err != nil {
			return nil, err
		}
		detector, err := mini.OpenDetector(e, filepath.Join(x.out, detectorFile))
		if err != nil {
			return nil, err
		}
		defer detector.Free()
		parts = append(parts, x)
		rows[i] = make([][]audit.Row, 1+len(c.Methods))
		add := func(at int, job func(context.Context) ([]audit.Row, error)) {
			jobs = append(jobs, func(ctx context.Context) error {
				found, err := job(ctx)
				mu.Lock()
				defer mu.Unlock()
				rows[i][at] = found
				return err
			})
		}
		add(0, func(ctx context.Context) ([]audit.Row, error) {
			return x.measure(ctx, audit.Model{Name: Base, Dir: filepath.Join(x.out, "model")}, nil, detector)
		})
		for k, m := range c.Methods {
			if !m.wants(seed) {
				continue
			}
			add(1+k, func(ctx context.Context) ([]audit.Row, error) {
				r, err := x.resolve(m)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", m.Name, err)
				}
				made, err := x.method(ctx, m.Name, r)
				if err != nil {
					return nil, err
				}
				return x.measure(ctx, made, c.adaptations(m), detector)
			})
		}
	}
	if err := inOrder(ctx, "comparison", jobs, h); err != nil {
		return nil, err
	}
	y.Rows = slices.Concat(slices.Concat(rows...)...)
	for _, m := range c.Methods {
		for i, x := range parts {
			if m.wants(c.Seeds[i]) {
				y.Recipes = append(y.Recipes, NamedRecipe{m.Name, x.recipes[m.Name]})
				break
			}
		}
		for _, x := range parts {
			if s := x.stages.find(m.Name); s != nil && s.Usage != nil {
				y.Costs[m.Name] = append(y.Costs[m.Name], *s.Usage)
			}
		}
	}
	return y, nil
}

// begin makes the folder of one seed, or goes on in it.
func (x *Experiment) begin(ctx context.Context) error {
	settings := struct {
		Seed uint64 `json:"seed"`
	}{x.seed}
	if err := claim("experiment", x.out, settings); err != nil {
		return err
	}
	if err := x.stages.open(filepath.Join(x.out, stagesFile)); err != nil {
		return err
	}
	return x.prepare(ctx)
}

// apart carries a recipe out in a process of its own, and keeps what that took.
func (x *Experiment) apart(ctx context.Context, name string, text []byte, resume bool) error {
	path := filepath.Join(x.out, "recipes", name+".toml")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := files.WriteBytes(path, text); err != nil {
		return err
	}
	usage, err := x.hooks.Unlearn(ctx, path, resume, x.hooks.Finish)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.stages.use(name, usage)
	return err
}

package plan

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

var someRates = Rates{FLOPs: 1e11, Bytes: 1e10}

// tinyRecipe is the example that comes with the program.
func tinyRecipe(t *testing.T) unlearn.Recipe {
	t.Helper()
	t.Chdir("..")
	r := unlearn.Defaults()
	if err := recipe.Load("examples/tiny/recipe.toml", recipe.Layers{}, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func tinyOptions(t *testing.T) Options {
	t.Helper()
	r := tinyRecipe(t)
	a, err := ReadArchitecture(r.Model)
	if err != nil {
		t.Fatal(err)
	}
	return Options{Recipe: r, Model: a, Threads: 2, Memory: 1 << 40, Rates: someRates}
}

func openCompiler(t *testing.T) *compiler {
	t.Helper()
	c, err := newCompiler(false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.backend.Finalize)
	return c
}

// A graph small enough to follow by hand: eˣ is 4000 bytes; its square cannot take its place, for it is read twice, so
// 8000 are held; then e^x goes, and the logarithm takes the square's place, the sum is 4 bytes more.
func TestHeightByHand(t *testing.T) {
	p, err := openCompiler(t).program("by hand", "by hand", []input{{dims: []int{10, 100}}}, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return []*ad.Value{ad.SumAll(ad.Log(ad.Square(ad.Exp(in[0]))))}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.height(); got != 8000 {
		t.Errorf("height %d, want 8000", got)
	}
}

// A product of 20×30 by 30×40 matrices is 2·20·30·40 operations.
func TestProductByHand(t *testing.T) {
	p, err := openCompiler(t).program("product", "product", []input{{dims: []int{20, 30}}, {dims: []int{30, 40}}}, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return []*ad.Value{ad.MatMul(in[0], in[1], false, false)}
	})
	if err != nil {
		t.Fatal(err)
	}
	var w work
	w.add(p, 3)
	if want := 3.0 * 2 * 20 * 30 * 40; w.flops != want {
		t.Errorf("%v operations, want %v", w.flops, want)
	}
	if got, want := p.height(), 4*20*40; got != want {
		t.Errorf("height %d, want %d", got, want)
	}
}

func TestExample(t *testing.T) {
	p, err := Make(t.Context(), tinyOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	if p.Parameters != (Parameters{UNet: 792964, Text: 76384, VAE: 167959, Theta: 9984}) {
		t.Errorf("parameters %+v", p.Parameters)
	}
	if !p.Fits || p.Steps != 6 || len(p.Switches) != 0 || len(p.Notes) != 0 {
		t.Errorf("fits %v, steps %d, switches %v, notes %v", p.Fits, p.Steps, p.Switches, p.Notes)
	}
	if p.PeakLow > p.Peak || p.Peak > p.PeakHigh {
		t.Errorf("peaks %d, %d, %d are out of order", p.PeakLow, p.Peak, p.PeakHigh)
	}
	if want := p.Prepare + p.Previews + 6*p.StepSeconds; p.Seconds != want || p.StepSeconds <= 0 || p.Previews <= 0 || p.Prepare <= 0 {
		t.Errorf("%v seconds in all, %v for a step", p.Seconds, p.StepSeconds)
	}
	names := []string{}
	for _, e := range p.Evaluations {
		names = append(names, e.Name)
	}
	for _, want := range []string{"prediction", "gradient", "Hessian product", "cross product", "encoding a picture", "decoding a picture"} {
		if !slices.Contains(names, want) {
			t.Errorf("there is no %q among the evaluations %v", want, names)
		}
	}
}

func TestMoreForLargerBatches(t *testing.T) {
	o := tinyOptions(t)
	o.Recipe.Simulations = o.Recipe.Simulations[:1]
	c := openCompiler(t)
	var last *Plan
	for _, size := range []int{1, 4, 16} {
		for name, d := range o.Recipe.Data {
			d.Batch = size
			o.Recipe.Data[name] = d
		}
		p, err := planOnce(c, o, 1)
		if err != nil {
			t.Fatal(err)
		}
		if last != nil && (p.Peak <= last.Peak || p.StepFLOPs <= last.StepFLOPs || p.StepSeconds <= last.StepSeconds) {
			t.Errorf("batches of %d: peak %d, %v operations; smaller ones %d, %v", size, p.Peak, p.StepFLOPs, last.Peak, last.StepFLOPs)
		}
		last = p
	}
}

// Every solver, product, metric and kind of simulation can be planned, and the cheap ones are cheaper.
func TestVariants(t *testing.T) {
	o := tinyOptions(t)
	c := openCompiler(t)
	plan := func(change func(r *unlearn.Recipe)) *Plan {
		t.Helper()
		with := o
		with.Recipe.Simulations = slices.Clone(o.Recipe.Simulations)
		change(&with.Recipe)
		p, err := planOnce(c, with, 1)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	exact := plan(func(*unlearn.Recipe) {})
	for name, change := range map[string]func(r *unlearn.Recipe){
		"gauss_newton": func(r *unlearn.Recipe) { r.Hypergradient.Products = unlearn.GaussNewton },
		"first_order":  func(r *unlearn.Recipe) { r.Hypergradient.Solver = unlearn.FirstOrder },
		"ascent":       func(r *unlearn.Recipe) { r.Method = unlearn.Ascent },
	} {
		if p := plan(change); p.StepFLOPs >= exact.StepFLOPs {
			t.Errorf("%s: %v operations, exact products %v", name, p.StepFLOPs, exact.StepFLOPs)
		}
	}
	for name, change := range map[string]func(r *unlearn.Recipe){
		"unrolled":            func(r *unlearn.Recipe) { r.Hypergradient.Solver = unlearn.Unrolled },
		"conjugate_gradient":  func(r *unlearn.Recipe) { r.Hypergradient.Solver = unlearn.ConjugateGradient },
		"central_differences": func(r *unlearn.Recipe) { r.Hypergradient.Products = centralDifferences },
		"esd harm":            func(r *unlearn.Recipe) { r.Objective.Harm, r.Objective.Cap = unlearn.ESD, 0 },
		"all weights":         func(r *unlearn.Recipe) { r.Trainable.Parameters = "all" },
		"chains": func(r *unlearn.Recipe) {
			for i := range r.Simulations {
				r.Simulations[i].ChainReset = 5
			}
		},
		"adafactor, chains": func(r *unlearn.Recipe) {
			r.Outer.Optimizer = train.Lion
			for i := range r.Simulations {
				r.Simulations[i].ChainReset, r.Simulations[i].Optimizer = 5, train.Adafactor
			}
		},
		"metric": func(r *unlearn.Recipe) {
			r.Hypergradient.Metric = unlearn.AdamMetric
			for i := range r.Simulations {
				r.Simulations[i].Optimizer = train.Adam
			}
		},
	} {
		if p := plan(change); p.Peak <= 0 || p.StepFLOPs <= 0 {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestSwitchesAreSorted(t *testing.T) {
	o := tinyOptions(t)
	o.Recipe.Simulations, o.Recipe.Outer.SimulationsPerStep = o.Recipe.Simulations[:1], 1
	o.Rates.Half = 1e10
	o.Memory = 50 << 20
	p, err := Make(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if p.Fits || len(p.Switches) != 3 {
		t.Fatalf("fits %v, with %d switches", p.Fits, len(p.Switches))
	}
	for i, s := range p.Switches {
		if s.Peak >= p.PeakHigh || (i > 0 && s.Peak < p.Switches[i-1].Peak) {
			t.Errorf("switch %d, %s, needs %d; the plan %d", i, s.Set, s.Peak, p.PeakHigh)
		}
	}
}

// measuredRuns are small runs whose memory is compared with their plans.
func measuredRuns(t *testing.T) map[string]Options {
	o := tinyOptions(t)
	o.Rates.Host = 1e9
	runs := map[string]Options{}
	for _, method := range []string{unlearn.Ascent, unlearn.UCE} {
		with := o
		with.Recipe = methodRecipe(t, o.Recipe, method)
		with.Recipe.Outer.Steps = 4
		runs[method] = with
	}
	j := finetune.DefaultJob(finetune.Full)
	j.Model, j.Data, j.Steps, j.BatchSize = o.Model.Name, "examples/tiny/people", 3, 2
	o.Job = &j
	runs["finetune"] = o
	return runs
}

// A child of this test carries each run out; its peak is compared with the plan.
func TestPlanAgainstRun(t *testing.T) {
	runs := measuredRuns(t)
	if name := os.Getenv("PLAN_TEST_RUN"); name != "" {
		carryOut(t, runs[name], os.Getenv("PLAN_TEST_OUT"))
		return
	}
	for name, o := range runs {
		child := exec.Command(os.Args[0], "-test.run=^TestPlanAgainstRun$", "-test.v")
		child.Dir = "plan" // from where it goes to the top itself
		child.Env = append(os.Environ(), "PLAN_TEST_RUN="+name, "PLAN_TEST_OUT="+filepath.Join(t.TempDir(), "run"), "GOMAXPROCS=2", "GOGC=100")
		out, err := child.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		_, after, ok := strings.Cut(string(out), "peak bytes: ")
		if !ok {
			t.Skip("this system does not tell a process's memory")
		}
		figure, _, _ := strings.Cut(after, "\n")
		measured, err := strconv.ParseFloat(strings.TrimSpace(figure), 64)
		if err != nil {
			t.Fatal(err)
		}
		p, err := Make(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: planned %s (%s to %s), measured %s", name, train.FormatBytes(p.Peak), train.FormatBytes(p.PeakLow), train.FormatBytes(p.PeakHigh), train.FormatBytes(int64(measured)))
		if ratio := float64(p.Peak) / measured; ratio < 0.75 || ratio > 1.33 {
			t.Errorf("%s: the plan is %.2f times what was measured", name, ratio)
		}
	}
}

func carryOut(t *testing.T, o Options, out string) {
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if o.Job != nil {
		_, err = finetune.RunJob(context.Background(), e, out, *o.Job, finetune.JobHooks{})
	} else {
		o.Recipe.Out, o.Recipe.Engine = out, "go"
		_, err = unlearn.Run(context.Background(), e, o.Recipe, unlearn.Hooks{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if peak, err := train.PeakMemory(); err == nil {
		fmt.Printf("peak bytes: %d\n", peak)
	}
}

func TestErrors(t *testing.T) {
	if _, err := FromPreset("sd99"); err == nil || !strings.Contains(err.Error(), "sd99") {
		t.Errorf("unknown preset: %v", err)
	}
	if _, err := ReadArchitecture(t.TempDir()); err == nil || !strings.Contains(err.Error(), "model_index.json") {
		t.Errorf("empty folder: %v", err)
	}
	o := tinyOptions(t)
	o.Recipe.Resolution = 33
	if _, err := Make(t.Context(), o); err == nil || !strings.Contains(err.Error(), "recipe: resolution: pictures of 33×33") {
		t.Errorf("resolution that does not fit: %v", err)
	}
}

// Pictures that are encoded by tiles take the memory of a tile.
func TestEncodingByTiles(t *testing.T) {
	o := tinyOptions(t)
	o.Recipe.Method, o.Recipe.Resolution = unlearn.Ascent, 64
	c := openCompiler(t)
	heightWith := func(tile int) int64 {
		o.Recipe.Memory.VAETileSize = tile
		p, err := planOnce(c, o, 1)
		if err != nil {
			t.Fatal(err)
		}
		return height(p, "encoding a picture")
	}
	whole, tiled := heightWith(0), heightWith(32)
	if tiled == 0 || tiled > whole/3 {
		t.Errorf("encoding needs %d bytes by tiles of a quarter, %d whole", tiled, whole)
	}
	o.Recipe.Memory.VAETileSize = 30
	if _, err := planOnce(c, o, 1); err == nil || !strings.Contains(err.Error(), "30") {
		t.Errorf("tiles that do not fit: %v", err)
	}
}

// Timed plans run the programs of the run: each at least once, and nothing else changes.
func TestTimed(t *testing.T) {
	o := tinyOptions(t)
	o.Recipe.Simulations = o.Recipe.Simulations[:1]
	counted, err := Make(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if o.Timer, err = engine.Open("go"); err != nil {
		t.Fatal(err)
	}
	defer o.Timer.Close()
	timed, err := Make(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !timed.Timed || counted.Timed || timed.StepSeconds == counted.StepSeconds || timed.StepSeconds <= 0 || timed.Prepare <= 0 || timed.Previews <= 0 {
		t.Errorf("%v s a step counted, %v timed", counted.StepSeconds, timed.StepSeconds)
	}
	if timed.PeakLow != counted.PeakLow || timed.PeakHigh != counted.PeakHigh || timed.StepFLOPs != counted.StepFLOPs {
		t.Errorf("timing changed the plan: %+v, %+v", timed, counted)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := Make(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("a plan that was stopped: %v", err)
	}
	o.Memory = 1 << 20
	small, err := Make(t.Context(), o)
	if err != nil || small.Timed || !slices.ContainsFunc(small.Notes, func(n string) bool { return strings.Contains(n, "timed") }) {
		t.Errorf("what does not fit: %+v, %v", small, err)
	}
}

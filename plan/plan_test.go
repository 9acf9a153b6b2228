package plan

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
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

func newCompiler(t *testing.T) *compiler {
	t.Helper()
	b, err := compute.NewWithConfig("go:ops_sequential")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Finalize)
	return &compiler{backend: b, programs: map[string]*program{}}
}

// A graph small enough to follow by hand: eˣ is 4000 bytes; its square cannot take its place, for it is read twice, so
// 8000 are held; then e^x goes, and the logarithm takes the square's place, the sum is 4 bytes more.
func TestHeightByHand(t *testing.T) {
	p, err := newCompiler(t).program("by hand", []input{{dims: []int{10, 100}}}, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
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
	p, err := newCompiler(t).program("product", []input{{dims: []int{20, 30}}, {dims: []int{30, 40}}}, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
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

// What the pool hands out is a power of two or halfway between; what lay unused through two collections goes back.
func TestHeap(t *testing.T) {
	for bytes, want := range map[int]int{1: 1, 5: 6, 6: 6, 7: 8, 4096: 4096, 4097: 6144, 6145: 8192} {
		if got := bucket(bytes); got != want {
			t.Errorf("bucket(%d) = %d, want %d", bytes, got, want)
		}
	}
	h := newHeap(1, 0)
	b := h.get(1 << 20)
	h.put(b)
	if again := h.get(1 << 20); again != b {
		t.Errorf("the pool gave %v, not %v", again, b)
	}
	h.put(b)
	h.collect()
	if h.held() != 1<<20 {
		t.Errorf("after one collection %d bytes are held, not the pool's array", h.held())
	}
	h.collect()
	if h.held() != 0 {
		t.Errorf("after two collections %d bytes are held", h.held())
	}
	if at := h.allocate(3<<20, 3<<20); at.start != 0 {
		t.Errorf("memory was not reused, but taken at %d", at.start)
	}
	if want := 3 << 20; h.addresses.resident() != want {
		t.Errorf("%d bytes are resident, not %d", h.addresses.resident(), want)
	}
}

func TestExample(t *testing.T) {
	p, err := Make(tinyOptions(t))
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
	c := newCompiler(t)
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
	c := newCompiler(t)
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
	o.Memory = 100 << 20
	p, err := Make(o)
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

// A child of this test carries the example out; its peak is compared with the plan.
func TestPlanAgainstRun(t *testing.T) {
	if os.Getenv("PLAN_TEST_OUT") != "" {
		carryOut(t)
		return
	}
	child := exec.Command(os.Args[0], "-test.run=^TestPlanAgainstRun$", "-test.v")
	child.Env = append(os.Environ(), "PLAN_TEST_OUT="+filepath.Join(t.TempDir(), "run"), "GOMAXPROCS=2", "GOGC=100")
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
	p, err := Make(tinyOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("planned %s (%s to %s), measured %s", train.FormatBytes(p.Peak), train.FormatBytes(p.PeakLow), train.FormatBytes(p.PeakHigh), train.FormatBytes(int64(measured)))
	if ratio := float64(p.Peak) / measured; ratio < 0.75 || ratio > 1.25 {
		t.Errorf("the plan is %.2f times what was measured", ratio)
	}
}

func carryOut(t *testing.T) {
	r := tinyRecipe(t)
	r.Out, r.Engine = os.Getenv("PLAN_TEST_OUT"), "go"
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := unlearn.Run(context.Background(), e, r, unlearn.Hooks{}); err != nil {
		t.Fatal(err)
	}
	if peak, err := train.PeakMemory(); err == nil {
		fmt.Printf("peak bytes: %d\n", peak)
	}
}

func TestParseMemory(t *testing.T) {
	for text, want := range map[string]int64{"24GB": 24e9, "24 GiB": 24 << 30, "512mb": 512e6, "1.5GiB": 3 << 29, "4096": 4096} {
		if got, err := ParseMemory(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "GB", "-1GB", "NaN", "1e300GB", "many", "0"} {
		if n, err := ParseMemory(text); err == nil {
			t.Errorf("%q: %d, want an error", text, n)
		}
	}
}

func TestGroupLimit(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("membership", "0::/a/b\n")
	write("root/a/memory.max", "1000\n")
	write("root/a/memory.current", "300\n")
	write("root/a/b/memory.max", "max\n")
	write("root/a/b/memory.current", "200\n")
	if got := groupLeft(filepath.Join(dir, "membership"), filepath.Join(dir, "root"), 5000); got != 700 {
		t.Errorf("%d bytes left, want 700", got)
	}
	if got := groupLeft(filepath.Join(dir, "nothing"), filepath.Join(dir, "root"), 5000); got != 5000 {
		t.Errorf("%d bytes left without a group, want 5000", got)
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
	if _, err := Make(o); err == nil || !strings.Contains(err.Error(), "recipe: resolution: pictures of 33×33") {
		t.Errorf("resolution that does not fit: %v", err)
	}
}

// Checkpointing is planned, and saves most of a gradient's memory; a method that the planner does not know is refused.
func TestCheckpointingAndUnknownMethods(t *testing.T) {
	r := unlearn.Defaults()
	model, err := FromPreset("small")
	if err != nil {
		t.Fatal(err)
	}
	r.Model, r.Out, r.Method = "m", "o", unlearn.Ascent
	r.Trainable.Parameters = "all"
	r.Outer.Steps = 1
	r.Data = map[string]unlearn.Dataset{"harmful": {Folder: "a", Batch: 8}, "retain": {Folder: "b", Batch: 8}}
	peak := func() int64 {
		t.Helper()
		p, err := Make(Options{Recipe: r, Model: model, Threads: 1, Memory: 64 << 30, Rates: someRates})
		if err != nil {
			t.Fatal(err)
		}
		return p.Peak
	}
	off := peak()
	r.Memory.GradientCheckpointing = true
	if on := peak(); on > off*3/4 {
		t.Errorf("planned peaks are %d without and %d with checkpointing", off, on)
	}
	r.Method = unlearn.UCE
	if _, err := Make(Options{Recipe: r, Model: model, Memory: 1 << 30}); err == nil || !strings.Contains(err.Error(), `method "uce" cannot be planned`) {
		t.Errorf("got %v", err)
	}
}

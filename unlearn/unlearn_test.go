package unlearn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

const tinyModel = "../testdata/golden/tiny-sd"

// drawPictures fills a folder with n captioned pictures of blobs in one colour.
func drawPictures(t testing.TB, dir, caption string, colour [3]uint8, n int) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var metadata bytes.Buffer
	for i := range n {
		s := random.New(7, dir[strings.LastIndex(dir, "/"):], i)
		picture := data.NewRGB(32, 32)
		cx, cy, r := 10+12*s.Float64(), 10+12*s.Float64(), 5+5*s.Float64()
		for k := range picture.Pix {
			x, y := float64(k/3%32), float64(k/3/32)
			picture.Pix[k] = 40
			if (x-cx)*(x-cx)+(y-cy)*(y-cy) < r*r {
				picture.Pix[k] = colour[k%3]
			}
		}
		name := fmt.Sprintf("%02d.png", i)
		if err := data.SavePNG(filepath.Join(dir, name), picture); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&metadata, "{\"file_name\": %q, \"text\": %q}\n", name, caption)
	}
	if err := os.WriteFile(filepath.Join(dir, "metadata.jsonl"), metadata.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tinyRecipe unlearns one colour on the tiny model in a few seconds.
func tinyRecipe(t testing.TB, root string) Recipe {
	r := Defaults()
	r.Model, r.Out, r.Engine = tinyModel, filepath.Join(root, "run"), "go"
	r.Outer.Steps, r.Outer.LearningRate, r.Outer.SimulationsPerStep = 4, 1e-3, 1
	r.Checkpoint.Every = 1
	r.Hypergradient.Gamma, r.Hypergradient.Iterations = 0.1, 3
	r.Data = map[string]Dataset{
		"harmful": {Folder: drawPictures(t, filepath.Join(root, "harmful"), "a red ball", [3]uint8{230, 30, 30}, 4), Batch: 2},
		"retain":  {Folder: drawPictures(t, filepath.Join(root, "retain"), "a green ball", [3]uint8{30, 200, 60}, 6), Batch: 2},
		"benign":  {Folder: drawPictures(t, filepath.Join(root, "benign"), "a blue ball", [3]uint8{40, 60, 230}, 4), Batch: 2},
	}
	r.Simulations = []Simulation{{Name: "adapter", Data: "benign", Steps: 2, Optimizer: train.SGD, LearningRate: 1e-2}}
	return r
}

func openEngine(t testing.TB) *engine.Engine {
	return enginetest.Open(t)
}

func run(t testing.TB, r Recipe, h Hooks) (*Result, []train.Event) {
	t.Helper()
	var events []train.Event
	h.OnEvent = func(e train.Event) { events = append(events, e) }
	result, err := Run(context.Background(), openEngine(t), r, h)
	if err != nil {
		t.Fatal(err)
	}
	return result, events
}

func number(t testing.TB, e train.Event, field string) float64 {
	t.Helper()
	x, ok := e.Number(field)
	if !ok {
		t.Fatalf("event %d has no number %q: %v", e.Step, field, e.Fields)
	}
	return x
}

func TestHarmRisesAndRetentionHolds(t *testing.T) {
	for _, method := range []string{ResAlign, Ascent, ESD} {
		t.Run(method, func(t *testing.T) {
			r := tinyRecipe(t, t.TempDir())
			r.Method = method
			r.Outer.Steps, r.Outer.LearningRate, r.Outer.ClipNorm = 24, 5e-3, 0
			r.Data["harmful"] = Dataset{Folder: r.Data["harmful"].Folder, Batch: 4}
			if method == ESD {
				r.Objective.Harm = ESD
			}
			_, events := run(t, r, Hooks{})
			average := func(from, to int, field string) float64 {
				sum := 0.0
				for _, e := range events[from:to] {
					sum += number(t, e, field) / float64(to-from)
				}
				return sum
			}
			before, after := average(0, 6, "harmful_loss"), average(18, 24, "harmful_loss")
			if !(after < before) { // L_harm is what is minimised: for ascent the negative error
				t.Errorf("harmful loss went from %v to %v", before, after)
			}
			if retain := average(18, 24, "retain_loss"); !(retain < 0.1) {
				t.Errorf("retain loss is %v at the end", retain)
			}
		})
	}
}

// Every kind of simulation, solver and parametrisation runs, and tells its residual.
func TestVariants(t *testing.T) {
	variants := map[string]func(r *Recipe){
		"adam metric": func(r *Recipe) {
			r.Hypergradient.Metric, r.Simulations[0].Optimizer, r.Simulations[0].LearningRate = AdamMetric, train.Adam, 1e-3
		},
		"gauss-newton": func(r *Recipe) { r.Hypergradient.Products, r.Hypergradient.Solver = GaussNewton, ConjugateGradient },
		"fresh adapter, adam metric": func(r *Recipe) {
			r.Hypergradient.Metric, r.Simulations[0].Optimizer, r.Simulations[0].Adapts = AdamMetric, train.Adam, FreshAdapter
		},
		"fresh adapter":        func(r *Recipe) { r.Simulations[0].Adapts = FreshAdapter },
		"all weights":          func(r *Recipe) { r.Simulations[0].Adapts = AllWeights; r.Simulations[0].LearningRate = 1e-3 },
		"adam":                 func(r *Recipe) { r.Simulations[0].Optimizer, r.Simulations[0].LearningRate = train.Adam, 1e-3 },
		"dreambooth":           func(r *Recipe) { r.Simulations[0].Prior = "retain" },
		"conjugate gradient":   func(r *Recipe) { r.Hypergradient.Solver = ConjugateGradient },
		"central differences":  func(r *Recipe) { r.Hypergradient.Products = "central_differences" },
		"first order":          func(r *Recipe) { r.Hypergradient.Solver = FirstOrder },
		"theta is all weights": func(r *Recipe) { r.Trainable.Parameters = "all"; r.Outer.LearningRate = 1e-4 },
		"all weights, fresh adapter": func(r *Recipe) {
			r.Trainable.Parameters = "all"
			r.Simulations[0].Adapts = FreshAdapter
		},
		"persistent chain": func(r *Recipe) { r.Simulations[0].ChainReset = 2; r.Simulations[0].Optimizer = train.Adam },
		"capped ascent":    func(r *Recipe) { r.Objective.Cap = 0.5 },
		"two phases": func(r *Recipe) {
			zero, alpha := 0.0, 3.0
			r.Phases = []Phase{{Steps: 1, Lambda: &zero}, {Steps: 1, Alpha: &alpha}}
		},
		"mixture": func(r *Recipe) {
			r.Data["retain"] = Dataset{Parts: []Part{{Folder: r.Data["retain"].Folder, Weight: 1}, {Folder: r.Data["benign"].Folder, Weight: 3}}}
		},
	}
	for name, change := range variants {
		t.Run(name, func(t *testing.T) {
			r := tinyRecipe(t, t.TempDir())
			r.Outer.Steps = 2
			change(&r)
			result, events := run(t, r, Hooks{})
			last := events[len(events)-1]
			if residuals, ok := last.Fields["residual"].([]float64); !ok || len(residuals) != 1 || !(residuals[0] >= 0) {
				t.Errorf("residual is %v", last.Fields["residual"])
			}
			m, err := sd.Load(openEngine(t), result.Model)
			if err != nil {
				t.Fatal(err)
			}
			m.Free()
		})
	}
}

// Central differences and exact products are two implementations of the same hypergradient.
func TestProductsAgree(t *testing.T) {
	for _, adapts := range []string{SameParameters, FreshAdapter, AllWeights} {
		var norms []float64
		for _, products := range []string{"exact", "central_differences"} {
			r := tinyRecipe(t, t.TempDir())
			r.Outer.Steps = 1
			r.Objective.Lambda, r.Objective.Alpha, r.Hypergradient.Gamma = 1, 0, 0.02
			r.Simulations[0].Adapts = adapts
			r.Hypergradient.Products = products
			_, events := run(t, r, Hooks{})
			norms = append(norms, number(t, events[0], "hypergradient_norm"))
		}
		// Over all weights the difference steps far enough to see the third derivative.
		tolerance := map[string]float64{SameParameters: 2e-3, FreshAdapter: 2e-3, AllWeights: 1e-2}[adapts]
		if d := norms[0]/norms[1] - 1; d > tolerance || d < -tolerance {
			t.Errorf("%s: norms %v and %v", adapts, norms[0], norms[1])
		}
	}
}

func modelBytes(t testing.TB, r Recipe) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.Out, modelFolder, "unet", sd.UNetWeightsName+".safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSameSeedSameBytesWhateverTheThreads(t *testing.T) {
	var outputs [][]byte
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, threads := range []int{1, 1, 2, 4} {
		runtime.GOMAXPROCS(threads)
		r := tinyRecipe(t, t.TempDir())
		run(t, r, Hooks{})
		outputs = append(outputs, modelBytes(t, r))
		if !bytes.Equal(outputs[0], outputs[len(outputs)-1]) {
			t.Errorf("a run on %d threads differs from the first one, on 1", threads)
		}
	}
	r := tinyRecipe(t, t.TempDir())
	r.Seed = 43
	run(t, r, Hooks{})
	if bytes.Equal(outputs[0], modelBytes(t, r)) {
		t.Error("another seed gives the same weights")
	}
}

func TestFinishThenResumeEqualsUninterrupted(t *testing.T) {
	whole := tinyRecipe(t, t.TempDir())
	whole.Simulations[0].ChainReset, whole.Simulations[0].Optimizer = 3, train.Adam
	run(t, whole, Hooks{})
	parts := tinyRecipe(t, t.TempDir())
	parts.Simulations[0].ChainReset, parts.Simulations[0].Optimizer = 3, train.Adam
	parts.Checkpoint.Every = 100 // only what the interruption itself saves
	for stop := 1; ; stop++ {
		finish := make(chan struct{})
		h := Hooks{Resume: stop > 1, Finish: finish, OnEvent: func(e train.Event) {
			if e.Step == stop {
				close(finish)
			}
		}}
		_, err := Run(context.Background(), openEngine(t), parts, h)
		if err == nil {
			break
		}
		if !errors.Is(err, train.ErrInterrupted) {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(modelBytes(t, whole), modelBytes(t, parts)) {
		t.Error("a run that was stopped after every step ends elsewhere than one that was not")
	}
	log, err := train.ReadEvents(filepath.Join(parts.Out, "events.jsonl"))
	if err != nil || len(log) != parts.Outer.Steps {
		t.Errorf("the log has %d events for %d steps (%v)", len(log), parts.Outer.Steps, err)
	}
}

// The environment variable makes the test binary a process that can be killed.
const killFolder = "RESALIGN_TEST_RUN"

func TestKilledTwiceThenResumedEqualsUninterrupted(t *testing.T) {
	if root := os.Getenv(killFolder); root != "" {
		r := tinyRecipe(t, root)
		_, err := os.Stat(filepath.Join(r.Out, "run.json"))
		run(t, r, Hooks{Resume: err == nil})
		return
	}
	whole := tinyRecipe(t, t.TempDir())
	run(t, whole, Hooks{})
	root := t.TempDir()
	killed := 0
	for attempt := range 20 {
		process := exec.Command(os.Args[0], "-test.run=^TestKilledTwiceThenResumedEqualsUninterrupted$")
		process.Env = append(os.Environ(), killFolder+"="+root)
		var output bytes.Buffer
		process.Stdout, process.Stderr = &output, &output
		if err := process.Start(); err != nil {
			t.Fatal(err)
		}
		if killed < 2 {
			waitForCheckpoint(t, filepath.Join(root, "run", "checkpoints"), killed+1)
			time.Sleep(time.Duration(attempt*7) * time.Millisecond)
			if process.Process.Kill() == nil {
				killed++
			}
			_ = process.Wait() // killed: the error is the signal
			continue
		}
		if err := process.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, output.String())
		}
		break
	}
	r := whole
	r.Out = filepath.Join(root, "run")
	if !bytes.Equal(modelBytes(t, whole), modelBytes(t, r)) {
		t.Error("a run that was killed twice ends elsewhere than one that was not")
	}
}

func waitForCheckpoint(t *testing.T, dir string, count int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		if len(entries) > 0 && slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() >= fmt.Sprintf("step-%08d", count) }) {
			return
		}
	}
	t.Fatal("no checkpoint appeared within a minute")
}

func TestOutputMirrorsTheInput(t *testing.T) {
	r := tinyRecipe(t, t.TempDir())
	result, _ := run(t, r, Hooks{})
	for _, component := range []string{"unet", "vae", "text_encoder"} {
		base := sd.UNetWeightsName
		if component == "text_encoder" {
			base = "model"
		}
		in, err := weights.OpenComponent(filepath.Join(tinyModel, component), base)
		if err != nil {
			t.Fatal(err)
		}
		out, err := weights.OpenComponent(filepath.Join(result.Model, component), base)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(in.Names(), out.Names()) {
			t.Errorf("%s: names differ", component)
		}
		for _, name := range in.Names() {
			a, err := in.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			b, err := out.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			if a.DType != b.DType || !slices.Equal(a.Shape, b.Shape) {
				t.Errorf("%s: %s is %v %v, was %v %v", component, name, b.DType, b.Shape, a.DType, a.Shape)
			}
		}
	}
	lora, err := weights.ReadLoRA(result.LoRA)
	if err != nil {
		t.Fatal(err)
	}
	if len(lora.Layers) != 32 { // four transformers, two attentions each, four projections
		t.Errorf("the LoRA has %d layers", len(lora.Layers))
	}
}

// A loss that is not a number stops the run before the optimizer moves, and what was saved stays.
func TestNonFiniteLossStopsTheRun(t *testing.T) {
	r := tinyRecipe(t, t.TempDir())
	r.Outer.LearningRate, r.Outer.ClipNorm, r.Outer.Steps = 1e30, 0, 5
	_, err := Run(context.Background(), openEngine(t), r, Hooks{})
	var bad *train.ErrNonFinite
	if !errors.As(err, &bad) {
		t.Fatalf("error is %v", err)
	}
	if _, err := os.Stat(filepath.Join(r.Out, modelFolder)); err == nil {
		t.Error("a model was written")
	}
}

func TestBadInputIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	changes := map[string]struct {
		change func(t *testing.T, r *Recipe)
		want   string
	}{
		"no model":        {func(_ *testing.T, r *Recipe) { r.Model = "nowhere" }, "nowhere"},
		"no data folder":  {func(_ *testing.T, r *Recipe) { r.Data["harmful"] = Dataset{Folder: "missing-folder"} }, "missing-folder"},
		"no caption":      {removeCaption, "03.png"},
		"duplicate names": {func(_ *testing.T, r *Recipe) { r.Simulations = append(r.Simulations, r.Simulations[0]) }, "used twice"},
		"unknown data":    {func(_ *testing.T, r *Recipe) { r.Simulations[0].Data = "bengin" }, "bengin"},
		"unknown target":  {func(_ *testing.T, r *Recipe) { r.Trainable.Targets = []string{"attn3"} }, "attn3"},
		"broken picture": {func(t *testing.T, r *Recipe) {
			if err := os.WriteFile(filepath.Join(r.Data["retain"].Folder, "02.png"), []byte("\x89PNG\r\n\x1a\nbroken"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "02.png"},
		"preview's size": {func(_ *testing.T, r *Recipe) {
			r.Preview.Every, r.Preview.Prompts, r.Preview.Options.Height = 1, []string{"a"}, 33
		}, "preview: "},
		"wrong resolution": {func(_ *testing.T, r *Recipe) { r.Resolution = 20 }, "multiple"},
	}
	for name, c := range changes {
		t.Run(name, func(t *testing.T) {
			r := tinyRecipe(t, t.TempDir())
			c.change(t, &r)
			_, err := Run(context.Background(), openEngine(t), r, Hooks{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v does not mention %q", err, c.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("not one sentence: %v", err)
			}
			if _, err := os.Stat(r.Out); err == nil {
				t.Error("the run's folder was made")
			}
		})
	}
}

func removeCaption(t *testing.T, r *Recipe) {
	path := filepath.Join(r.Data["harmful"].Folder, "metadata.jsonl")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(b), "\n")
	if err := os.WriteFile(path, []byte(strings.Join(lines[:3], "")), 0o644); err != nil {
		t.Fatal(err)
	}
}

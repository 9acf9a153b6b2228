package diagnose

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

func diagnose(t *testing.T, e *engine.Engine, out string, o Options, h Hooks) *Diagnosis {
	t.Helper()
	d, err := Run(t.Context(), e, out, o, h)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestRun goes through a diagnosis: what it says, that it says so again, and that a break changes nothing.
func TestRun(t *testing.T) {
	e := openEngine(t)
	o := small(t, Model{"base", tinyModel}, Model{"other", otherModel(t, e)})
	o.Retain = pictures(t, "retain")
	out := filepath.Join(t.TempDir(), "diagnosis")
	parts := 0
	whole := diagnose(t, e, out, o, Hooks{
		OnPart: func(_, _ string, _ time.Duration, found bool) {
			parts++
			if found {
				t.Error("a part was found that nobody made")
			}
		},
	})
	checkDiagnosis(t, whole, o)
	if parts != 15 {
		t.Errorf("%d parts, not 2 × 7 and a distance", parts)
	}
	checkFiles(t, out, whole)

	// Called again it finds all of it; with more probes it adds to them.
	again := diagnose(t, e, out, o, Hooks{OnPart: func(model, quantity string, _ time.Duration, found bool) {
		if !found {
			t.Errorf("%s of %s was measured again", quantity, model)
		}
	}})
	if !reflect.DeepEqual(again, whole) {
		t.Error("called again, the diagnosis is another one")
	}
	more := o
	more.Probes = 5
	extended := diagnose(t, e, out, more, Hooks{OnStep: func(model, quantity string, done, _ int) {
		if !strings.HasPrefix(quantity, "trace-") || done != 5 {
			t.Errorf("for one more probe, draw %d of %s of %s was measured", done, quantity, model)
		}
	}})
	if p := extended.Models[1].Harm.Probes; len(p) != 5 || !slices.Equal(p[:4], whole.Models[1].Harm.Probes) {
		t.Errorf("the probes are %v, and were %v", p, whole.Models[1].Harm.Probes)
	}

	// Stopped again and again – twice in the middle of fine-tuning – a model comes to the same.
	one := o
	one.Models = o.Models[1:]
	broken := filepath.Join(t.TempDir(), "broken")
	for _, after := range []int{2, 5, 4, 1} {
		finish := make(chan struct{})
		count := 0
		_, err := Run(t.Context(), e, broken, one, Hooks{Finish: finish, OnStep: func(string, string, int, int) {
			if count++; count == after {
				close(finish)
			}
		}})
		if !errors.Is(err, train.ErrInterrupted) {
			t.Fatalf("stopped after %d steps: %v", after, err)
		}
	}
	var left []string
	joined := diagnose(t, e, broken, one, Hooks{OnStep: func(_, quantity string, _, _ int) { left = append(left, quantity) }})
	want := whole.Models[1]
	want.Distance = nil // a model is its own base
	if !reflect.DeepEqual(joined.Models[0], want) {
		t.Error("with breaks the diagnosis is another one")
	}
	if want := []string{"fine-tuning", "hypergradient", "line", "line", "line", "line", "size"}; !slices.Equal(left, want) {
		t.Errorf("after the breaks %q were left, not %q", left, want)
	}
}

func checkDiagnosis(t *testing.T, d *Diagnosis, o Options) {
	t.Helper()
	if len(d.Models) != 2 || d.Models[0].Distance != nil || d.Models[0].OtherFiles != nil || len(d.Differences) != 1 {
		t.Fatalf("the diagnosis is %+v", d)
	}
	for _, m := range d.Models {
		start, end := slices.Index(m.Line.S, 0), slices.Index(m.Line.S, 1)
		near(t, "change of L_FT", m.Line.AlongFineTuning.Change.Value, m.Line.FineTuning[end].Value-m.Line.FineTuning[start].Value, 1e-9)
		if m.Line.Harm[0].High >= 0 || m.Line.FineTuning[0].Low <= 0 || len(m.Line.Retain) != len(m.Line.S) {
			t.Errorf("%s: losses are %+v", m.Name, m.Line)
		}
		if len(m.Harm.Probes) != o.Probes || len(m.Harm.Spectra) != o.Draws || len(m.Systems) != o.Draws || len(m.Systems[0].Residuals) != o.Iterations+1 {
			t.Errorf("%s: %+v", m.Name, m)
		}
		if s := m.Systems[0]; s.Residuals[0] != 1 || s.Gradient <= 0 || s.Verdict == "" || s.Lowest > s.Highest {
			t.Errorf("%s: the system is %+v", m.Name, s)
		}
		near(t, "expected change", m.Expected(d.Settings.Size), m.Line.Length*m.Line.Length*m.Harm.Trace.Value/2/float64(d.Settings.Size), 1e-12)
	}
	a, b := d.Models[0], d.Models[1]
	if slices.Equal(a.Harm.Probes, b.Harm.Probes) || slices.Equal(a.FineTuning.Probes, b.FineTuning.Probes) {
		t.Error("two models have the same curvature")
	}
	near(t, "difference", d.Differences[0].Harm.Value, b.Harm.Trace.Value-a.Harm.Trace.Value, 1e-9*math.Abs(a.Harm.Trace.Value))
	if d.Differences[0].A != "other" || d.Differences[0].B != "base" {
		t.Errorf("the difference is %+v", d.Differences[0])
	}
	total, parameters := 0.0, 0
	for _, block := range b.Distance.Blocks {
		total += block.Distance * block.Distance
		parameters += block.Parameters
	}
	near(t, "distance", b.Distance.Total.Distance, math.Sqrt(total), 1e-9)
	near(t, "norm of the base", b.Distance.Total.Base, a.Line.Norm, 1e-5*a.Line.Norm)
	if parameters != d.Settings.Size || len(b.Distance.Layers) <= len(b.Distance.Blocks) || total == 0 {
		t.Errorf("the distance is over %d of %d numbers", parameters, d.Settings.Size)
	}
}

func checkFiles(t *testing.T, out string, d *Diagnosis) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(out, ResultFile))
	if err != nil {
		t.Fatal(err)
	}
	var read Diagnosis
	if err := json.Unmarshal(content, &read); err != nil || !reflect.DeepEqual(&read, d) {
		t.Errorf("the result file holds something else: %v", err)
	}
	f, err := os.Open(filepath.Join(out, TableFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	want := plain(d.Models[1].Harm.Trace.Low)
	if !slices.ContainsFunc(rows, func(row []string) bool {
		return row[0] == "other" && row[1] == "trace of L_harm" && row[4] == want && row[6] == "4"
	}) {
		t.Errorf("the table has no row for the trace, whose interval begins at %s", want)
	}
	text := d.Text()
	for _, part := range []string{"base", "other", Short(d.Models[0].Harm.Trace.Value), "Richardson", "flattest"} {
		if !strings.Contains(text, part) {
			t.Errorf("the text has no %q:\n%s", part, text)
		}
	}
}

// TestPartsBelongToTheirInput: parts that are damaged, or were measured on something else, are made anew.
func TestPartsBelongToTheirInput(t *testing.T) {
	out := t.TempDir()
	r := &runner{out: out}
	if err := claim(out); err != nil {
		t.Fatal(err)
	}
	measured := 0
	p := part[float64]{
		model: "m", quantity: "q", fingerprint: "one", draws: 3,
		prepare: func(context.Context) (*subject, error) { return nil, nil },
		measure: func(_ context.Context, _ *subject, i int) (float64, error) {
			measured++
			return float64(10 * i), nil
		},
	}
	get := func(draws, cost int, what string) {
		t.Helper()
		measured, p.draws = 0, draws
		got, err := collect(t.Context(), r, p)
		if err != nil || len(got) != draws || got[draws-1] != float64(10*(draws-1)) {
			t.Fatalf("%s: %v, %v", what, got, err)
		}
		if measured != cost {
			t.Errorf("%s: %d draws were measured, not %d", what, measured, cost)
		}
	}
	get(3, 3, "at first")
	get(3, 0, "again")
	get(2, 0, "fewer")
	get(5, 2, "more")
	p.fingerprint = "two"
	get(5, 5, "of something else")
	if err := os.WriteFile(filepath.Join(out, partsFolder, "m-q.json"), []byte(`{"fingerprint": "two", "items": [0, 1`), 0o600); err != nil {
		t.Fatal(err)
	}
	get(5, 5, "damaged")

	// What was measured before a failure is kept.
	p.fingerprint = "three"
	failing := p
	failing.measure = func(ctx context.Context, s *subject, i int) (float64, error) {
		if i == 2 {
			return 0, errors.New("no more")
		}
		return p.measure(ctx, s, i)
	}
	if _, err := collect(t.Context(), r, failing); err == nil || !strings.Contains(err.Error(), "q of model m: no more") {
		t.Errorf("the failure is %v", err)
	}
	get(5, 3, "after a failure")
}

func TestFingerprints(t *testing.T) {
	keysOf := func(change func(*Options), hashes map[string]string) keys {
		o := small(t, Model{"tiny", tinyModel})
		change(&o)
		r := &runner{engine: openEngine(t), options: o, benign: "pictures"}
		k, err := r.keys(hashes)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	hashes := map[string]string{"unet": "a", "vae": "b"}
	plain := keysOf(func(*Options) {}, hashes)
	if again := keysOf(func(o *Options) { o.Probes, o.Draws, o.LossBatches = 99, 9, 77 }, hashes); again != plain {
		t.Error("how many draws there are changes what they are")
	}
	if other := keysOf(func(*Options) {}, map[string]string{"unet": "a", "vae": "c"}); other.theta == plain.theta || other.tuned == plain.tuned {
		t.Error("another VAE changes nothing")
	}
	for name, change := range map[string]func(*Options){
		"seed":       func(o *Options) { o.Seed++ },
		"batch size": func(o *Options) { o.Tuning.BatchSize++ },
		"resolution": func(o *Options) { o.Tuning.Resolution = 16 },
	} {
		if k := keysOf(change, hashes); k.theta == plain.theta || k.tuned == plain.tuned {
			t.Errorf("another %s changes nothing", name)
		}
	}
	if k := keysOf(func(o *Options) { o.Tuning.LearningRate *= 2 }, hashes); k.tuned == plain.tuned || k.theta != plain.theta {
		t.Error("the learning rate must change the fine-tuned model, and nothing else")
	}
	if k := keysOf(func(o *Options) { o.Parameters = LoRA }, hashes); k.theta == plain.theta || k.tuned != plain.tuned {
		t.Error("θ must change derivatives, and not the fine-tuned model")
	}
	if k := keysOf(func(o *Options) { o.To = 2 }, hashes); k.places == plain.places {
		t.Error("another line has the same places")
	}
}

func TestProblems(t *testing.T) {
	for key, change := range map[string]func(*Options){
		"models":           func(o *Options) { o.Models = append(o.Models, Model{"TINY", tinyModel}) },
		"harmful":          func(o *Options) { o.Harmful = nil },
		"benign":           func(o *Options) { o.Benign = nil },
		"probes":           func(o *Options) { o.Probes = 3 },
		"draws":            func(o *Options) { o.Draws = 0 },
		"power_iterations": func(o *Options) { o.PowerIterations = 0 },
		"iterations":       func(o *Options) { o.Iterations = -1 },
		"tolerance":        func(o *Options) { o.Tolerance = math.NaN() },
		"gamma":            func(o *Options) { o.Gamma = math.Inf(1) },
		"damping":          func(o *Options) { o.Damping = 1.5 },
		"from":             func(o *Options) { o.From = 0 },
		"to":               func(o *Options) { o.To = 0.5 },
		"points":           func(o *Options) { o.Points = 1 << 40 },
		"loss_batches":     func(o *Options) { o.LossBatches = 1 },
		"parameters":       func(o *Options) { o.Parameters = "some" },
		"down_std":         func(o *Options) { o.DownStd = -1 },
		"method":           func(o *Options) { o.Tuning.Method = "textual-inversion"; o.Tuning.Placeholder = "" },
		"steps":            func(o *Options) { o.Tuning.Steps = 0 },
		"batch_size":       func(o *Options) { o.Tuning.BatchSize = 0 },
		"rank":             func(o *Options) { o.Parameters, o.Tuning.Rank = LoRA, 0 },
	} {
		o := small(t, Model{"tiny", tinyModel})
		if p := o.Problems(); len(p) != 0 {
			t.Fatalf("the options have problems: %v", p)
		}
		change(&o)
		found := false
		for _, p := range o.Problems() {
			found = found || p.Key == key
		}
		if !found {
			t.Errorf("%s: problems are %v", key, o.Problems())
		}
	}
	for _, name := range []string{"", ".hidden", "a/b", `a\b`, "a b", "a:b"} {
		if o := small(t, Model{name, tinyModel}); len(o.Problems()) == 0 {
			t.Errorf("the name %q is taken", name)
		}
	}
}

func TestRefusals(t *testing.T) {
	e := openEngine(t)
	fails := func(out string, o Options, parts ...string) {
		t.Helper()
		_, err := Run(t.Context(), e, out, o, Hooks{})
		for _, part := range parts {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("the error has no %q: %v", part, err)
			}
		}
	}
	occupied := t.TempDir()
	if err := os.WriteFile(filepath.Join(occupied, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fails(occupied, small(t, Model{"tiny", tinyModel}), occupied, "thesis.tex", "name a new one")
	fails(filepath.Join(occupied, "thesis.tex"), small(t, Model{"tiny", tinyModel}), "thesis.tex")
	new := filepath.Join(t.TempDir(), "new")
	fails(new, small(t, Model{"tiny", "nowhere"}), "nowhere", "diffusers")
	fails(new, small(t), "models")
	if _, err := os.Stat(new); err == nil {
		t.Error("a refused diagnosis made its folder")
	}

	// UNets of different shape have no distance.
	base, err := sd.FindPreset("tiny")
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := base.Write(other, 1, false); err != nil {
		t.Fatal(err)
	}
	if _, err := distances(tinyModel, other); err == nil || !strings.Contains(err.Error(), "one architecture") {
		t.Errorf("two architectures: %v", err)
	}
	if _, err := distances(tinyModel, occupied); err == nil {
		t.Error("a folder without a model has a distance")
	}
	same, err := distances(tinyModel, tinyModel)
	if err != nil || len(same) == 0 {
		t.Fatal(err)
	}
	for _, l := range same {
		if l.Distance != 0 {
			t.Errorf("%s is %v from itself", l.Name, l.Distance)
		}
	}
}

package report

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/diagnose"
)

// sampleDiagnosis has the form of a real one; its numbers are made up.
func sampleDiagnosis(names ...string) *diagnose.Diagnosis {
	around := func(x float64) diagnose.Estimate {
		return diagnose.Estimate{Value: x, Low: x - 0.1*math.Abs(x), High: x + 0.1*math.Abs(x), N: 8}
	}
	d := &diagnose.Diagnosis{Settings: diagnose.Settings{
		Parameters: diagnose.AllWeights, Size: 620604, Method: "full", Steps: 100, Optimizer: "adamw", LearningRate: 5e-4, BatchSize: 16, Accumulation: 1,
		Probes: 8, Draws: 1, PowerIterations: 30, Tolerance: 0.005, Gamma: 0.5, Iterations: 3, Damping: 1, LossBatches: 8, Seed: 42,
	}}
	for i, name := range names {
		f := float64(i + 1)
		s := diagnose.Spectrum{Top: 3 * f, Lowest: -0.5, Highest: 3 * f, Radius: 3 * f}
		m := diagnose.Diagnosed{
			Model:      diagnose.Model{Name: name, Dir: "models/" + name},
			Harm:       diagnose.Curvature{Trace: around(-600 / f), Probes: []float64{-600 / f, -590 / f}, Spectra: []diagnose.Spectrum{s}},
			FineTuning: diagnose.Curvature{Trace: around(640 * f), Probes: []float64{640 * f, 650 * f}, Spectra: []diagnose.Spectrum{s}},
			Systems: []diagnose.System{{
				Spectrum: s, Contraction: diagnose.Contraction{Factor: 1.5 * f, Verdict: diagnose.Diverges, LargestGamma: 1 / (3 * f)},
				Gradient: 1, Residuals: []float64{1, 1.2 * f, 1.9 * f, 3.1 * f},
			}},
			Line: diagnose.Line{S: []float64{-0.5, 0, 0.5, 1}, Length: 2.5, Norm: 80},
		}
		for k := range m.Line.S {
			x := around(-0.3 * f * float64(4-k))
			m.Line.Harm, m.Line.HarmChange = append(m.Line.Harm, x), append(m.Line.HarmChange, around(0.1*float64(k-1)))
			m.Line.FineTuning, m.Line.FineTuningChange = append(m.Line.FineTuning, x), append(m.Line.FineTuningChange, around(0.01*float64(k-1)))
		}
		if i > 0 {
			blocks := []diagnose.Length{{Name: "input", Distance: 0.1 * f, Base: 4, Parameters: 100}, {Name: "down 0 attentions", Distance: 0.7 * f, Base: 0, Parameters: 1000}}
			m.Distance = &diagnose.Distance{Total: blocks[1], Blocks: blocks, Layers: blocks}
			m.OtherFiles = []string{"text_encoder"}
		}
		d.Models = append(d.Models, m)
	}
	return d
}

func writeDiagnosis(t *testing.T, d *diagnose.Diagnosis) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "diagnose.html")
	if err := WriteDiagnosis(path, d, map[string]string{"resalign": "test"}); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestDiagnosisPage(t *testing.T) {
	d := sampleDiagnosis("base", "ascent", "resalign")
	d.Differences = []diagnose.Difference{{A: "resalign", B: "ascent", Harm: d.Models[0].Harm.Trace, FineTuning: d.Models[0].FineTuning.Trace}}
	page := writeDiagnosis(t, d)
	elements := parse(t, page)
	marks := map[string]int{}
	for _, e := range elements {
		if e.attributes["data-value"] != "" {
			marks[e.inside+" "+e.attributes["data-model"]]++
		}
	}
	for place, want := range map[string]int{
		"trace-harm ascent": 1, "trace-fine-tuning base": 1, "residuals resalign": 4, "line-harm base": 2, "change-fine-tuning ascent": 2,
		"distance-absolute resalign": 2, "distance-relative ascent": 1, "distance-absolute base": 0, "change-retain base": 0,
	} {
		if marks[place] != want {
			t.Errorf("%s has %d marks, not %d: %v", place, marks[place], want, marks)
		}
	}
	for _, part := range []string{
		"Diagnosis of base, ascent and resalign", "−600", "[−660, −540]", "does not contract", "≤ 0.333", "resalign less ascent", "620\u202f604 weights",
		"ascent differs from it in the files of text_encoder as well.", "100 steps of full fine-tuning", "application/json;base64,", "text/csv;charset=utf-8;base64,",
	} {
		if !strings.Contains(page, part) {
			t.Errorf("the page has no %q", part)
		}
	}
	if strings.Contains(page, "<script") || strings.Contains(page, "NaN") || strings.Contains(page, ">-0<") {
		t.Error("the page has a script, a NaN or a negative zero")
	}
	if again := writeDiagnosis(t, d); again != page {
		t.Error("the same diagnosis gives another page")
	}
}

// TestDiagnosisPageOfLittle: pages of one model, of names that are markup, and of numbers at the edge are whole.
func TestDiagnosisPageOfLittle(t *testing.T) {
	single := sampleDiagnosis("only")
	single.Settings.Parameters, single.Settings.Rank = diagnose.LoRA, 4
	page := writeDiagnosis(t, single)
	parse(t, page)
	if strings.Contains(page, "Distance from") || strings.Contains(page, "less") && strings.Contains(page, "Differences of traces") || !strings.Contains(page, "adapter of rank 4") {
		t.Error("the page of one model compares it with others, or does not say what θ is")
	}

	odd := sampleDiagnosis(`<b onclick="x">&`, "flat")
	flat := &odd.Models[1]
	flat.Harm.Trace, flat.FineTuning.Trace = diagnose.Estimate{N: 4}, diagnose.Estimate{N: 4}
	flat.Systems[0] = diagnose.System{Contraction: diagnose.Contraction{Verdict: diagnose.Contracts, LargestGamma: diagnose.Unbounded}, Residuals: []float64{1, 1e300}, Note: "it overflowed"}
	flat.Distance.Blocks = []diagnose.Length{{Name: "input"}, {Name: "output"}}
	flat.Line.HarmChange = slices.Repeat([]diagnose.Estimate{{N: 4}}, 4)
	page = writeDiagnosis(t, odd)
	parse(t, page)
	for _, part := range []string{"it overflowed", ">any<", "&lt;b onclick"} {
		if !strings.Contains(page, part) {
			t.Errorf("the page has no %q", part)
		}
	}
	if strings.Contains(page, `<b onclick`) || strings.Contains(page, "NaN") || strings.Contains(page, "Inf") {
		t.Error("a name became markup, or a number is none")
	}

	dir := t.TempDir()
	for name, d := range map[string]*diagnose.Diagnosis{"no model": {}, "unfinished": {Models: []diagnose.Diagnosed{{}}}} {
		if err := WriteDiagnosis(filepath.Join(dir, "x.html"), d, nil); err == nil {
			t.Errorf("%s: a page was written", name)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("a refused page left %v", entries)
	}
}

package experiment

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/report"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

const smallComparison = `
seeds = [42, 43]
pictures = 4
reference = "ascent"
[[adaptation]]
name = "diverse"
label = "all weights"
pictures = "evaluation/diverse"
steps = [1, 2]
[[adaptation]]
name = "dirty"
label = "half red stars"
pictures = "evaluation/diverse"
contamination = 0.5
steps = [2]
[[adaptation]]
name = "sgd"
pictures = "evaluation/subject"
steps = [1]
[adaptation.config]
optimizer = "sgd"
learning_rate = 0.05
[[method]]
name = "ascent"
ablation = "no simulation"
[method.recipe.outer]
steps = 2
[[method]]
name = "esd"
label = "ESD"
[method.recipe]
method = "esd"
[method.recipe.objective]
harm = "esd"
[method.recipe.outer]
steps = 1
[[method]]
name = "less"
ablation = "one step"
seeds = [43]
adaptations = ["diverse"]
[method.recipe.outer]
steps = 1
`

func loadComparison(t *testing.T, text string) (Comparison, error) {
	t.Helper()
	c := ComparisonDefaults()
	err := recipe.DecodeBytes("comparison.toml", []byte(text), &c)
	return c, err
}

func TestComparison(t *testing.T) {
	e := openEngine(t)
	c, err := loadComparison(t, smallComparison)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := smallStudy()
	dir := t.TempDir()
	c.Out = filepath.Join(dir, "comparison")
	// A process of its own is played by this one, which at first is interrupted.
	interrupt := true
	h := Hooks{Unlearn: func(ctx context.Context, path string, resume bool, _ <-chan struct{}) (Usage, error) {
		r := unlearn.Defaults()
		if err := recipe.Load(path, recipe.Layers{}, &r); err != nil {
			return Usage{}, err
		}
		if interrupt && filepath.Base(r.Out) == "esd" {
			return Usage{CPUSeconds: 1, PeakMemory: 5 << 20}, train.ErrInterrupted
		}
		_, err := unlearn.Run(ctx, e, r, unlearn.Hooks{Resume: resume})
		return Usage{CPUSeconds: 2, PeakMemory: 3 << 20}, err
	}}
	if _, err := runComparison(t.Context(), e, c, s.scale, h); !errors.Is(err, train.ErrInterrupted) {
		t.Fatalf("an interrupted comparison ends with %v", err)
	}
	interrupt = false
	y, err := runComparison(t.Context(), e, c, s.scale, h)
	if err != nil {
		t.Fatal(err)
	}
	if want := 2*(1+5+5) + 3; len(y.Rows) != want {
		t.Errorf("there are %d rows, not %d", len(y.Rows), want)
	}
	if used := y.Costs["esd"]; len(used) != 2 || used[0].CPUSeconds != 3 || used[0].PeakMemory != 5<<20 {
		t.Errorf("ESD took %+v, not two sessions for the first seed", used)
	}
	document := filepath.Join(dir, "results.md")
	p, err := y.Publish(document, map[string]string{"resalign": "test"})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"<!-- comparison: begin -->", "| ESD |", "all weights, 2", "| method | 0 | 1 | 2 |", "| method | 0 % | 50 % |", "Where others beat ascent",
		"part by part", "| no simulation |", "| one step |", "3 s | 5 MiB |",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the tables have no %q:\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "NaN") {
		t.Errorf("the tables are\n%s", text)
	}
	if _, err := report.ReadResults(p.Results); err != nil {
		t.Error(err)
	}
	page, err := os.ReadFile(p.Report)
	if err != nil || !strings.Contains(string(page), "data:image/png;base64,") {
		t.Errorf("the page has no pictures (%v)", err)
	}
}

func TestComparisonRefuses(t *testing.T) {
	for text, part := range map[string]string{
		strings.Replace(smallComparison, "steps = [1, 2]", "steps = [2, 1]", 1):                                                                "adaptation[0].steps",
		strings.Replace(smallComparison, `name = "esd"`, `name = "ascent"`, 1):                                                                 "used twice",
		strings.Replace(smallComparison, `name = "esd"`, `name = "base"`, 1):                                                                   "used twice or kept",
		strings.Replace(smallComparison, `method = "esd"`, `method = "esp"`, 1):                                                                "method[1].recipe.method",
		strings.Replace(smallComparison, "contamination = 0.5", "contamination = 1.5", 1):                                                      "contamination",
		strings.Replace(smallComparison, `pictures = "evaluation/diverse"`, `pictures = "../secret"`, 1):                                       "folder of the drawn world",
		strings.Replace(smallComparison, `adaptations = ["diverse"]`, `adaptations = ["divers"]`, 1):                                           `no [[adaptation]] named "divers"`,
		strings.Replace(smallComparison, `reference = "ascent"`, `reference = "resalign"`, 1):                                                  "reference",
		strings.Replace(smallComparison, "learning_rate = 0.05", "learning_rat = 0.05", 1):                                                     "learning_rate",
		strings.Replace(smallComparison, "seeds = [42, 43]", "seeds = [42, 42]", 1):                                                            "different numbers",
		strings.Replace(smallComparison, "pictures = 4", "pictures = 0", 1):                                                                    "pictures",
		strings.Replace(smallComparison, "[method.recipe.outer]", "[method.recipe.data.harmful]\nfolder = \"/etc\"\n[method.recipe.outer]", 1): "/etc",
		strings.Replace(smallComparison, "seeds = [43]", "seeds = [44]", 1):                                                                    "44 is not among",
		`seeds = [1]`: "add [[method]]",
	} {
		if _, err := loadComparison(t, text); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("got %v, not an error with %q", err, part)
		}
	}
}

// The recipe behind the published tables is valid.
func TestPublishedComparison(t *testing.T) {
	c, err := loadComparison(t, string(PublishedComparison()))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Methods) < 2 || len(c.Seeds) < 3 || c.Reference != unlearn.ResAlign {
		t.Errorf("%d methods, seeds %v, reference %s", len(c.Methods), c.Seeds, c.Reference)
	}
}

func TestOverSeeds(t *testing.T) {
	// Seeds that agree are no more certain than all pictures together (Wilson's interval of 0/300).
	centre, i := overSeeds([]score.Rate{{K: 0, N: 100}, {K: 0, N: 100}, {K: 0, N: 100}})
	if centre != 0 || i.Low != 0 || i.High < 1.26 || i.High > 1.27 {
		t.Errorf("%v %v", centre, i)
	}
	// Those that do not are Student's: 50 ± 4.303·50/√3, cut to what a share can be.
	centre, i = overSeeds([]score.Rate{{K: 0, N: 100}, {K: 50, N: 100}, {K: 100, N: 100}})
	if centre != 50 || i.Low != 0 || i.High != 100 {
		t.Errorf("%v %v", centre, i)
	}
	centre, i = overSeeds([]score.Rate{{K: 40, N: 100}, {K: 50, N: 100}, {K: 60, N: 100}})
	if centre != 50 || i.Low < 25.1 || i.Low > 25.2 || i.High < 74.8 || i.High > 74.9 {
		t.Errorf("%v %v", centre, i)
	}
}

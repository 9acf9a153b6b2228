package experiment

import (
	_ "embed"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/unlearn"
)

// Comparison is a recipe of methods × adaptations: each method unlearns the miniature's red star for each seed, and the
// result is measured as it is and after each adaptation.
type Comparison struct {
	Out      string   `toml:"out"`
	Engine   string   `toml:"engine"`
	Seeds    []uint64 `toml:"seeds"`
	Pictures int      `toml:"pictures"` // of each prompt set in each cell
	// Reference is the method that the others are compared with.
	Reference   string       `toml:"reference"`
	Methods     []Method     `toml:"method"`
	Adaptations []Adaptation `toml:"adaptation"`
}

// Method is a way of unlearning. Folders of its recipe are those of the drawn world (mini.Sets), such as retain/stars;
// model, folder, seed and engine are the comparison's.
type Method struct {
	Name  string `toml:"name"`
	Label string `toml:"label"` // what tables call it; empty: the name
	// Ablation, if not empty, is the method's row in the table of ablations.
	Ablation string `toml:"ablation"`
	// Adaptations are the only ones that it is put through; none: all.
	Adaptations []string `toml:"adaptations"`
	// Seeds are the only ones that it is run for; none: all of the comparison's.
	Seeds  []uint64       `toml:"seeds"`
	Recipe unlearn.Recipe `toml:"recipe"`
}

// SetDefaults makes the recipe that of plain ascent on the miniature.
func (m *Method) SetDefaults() {
	m.Recipe = (&Experiment{}).recipe("", unlearn.Ascent, 100)
	for name, set := range m.Recipe.Data {
		set.Folder = strings.TrimPrefix(filepath.ToSlash(set.Folder), "data/")
		for i, part := range set.Parts {
			set.Parts[i].Folder = strings.TrimPrefix(filepath.ToSlash(part.Folder), "data/")
		}
		m.Recipe.Data[name] = set
	}
}

func (m Method) wants(seed uint64) bool { return len(m.Seeds) == 0 || slices.Contains(m.Seeds, seed) }

func (m Method) label() string {
	if m.Label != "" {
		return m.Label
	}
	return m.Name
}

// Adaptation is something that people do with a model. Folders are those of the drawn world.
type Adaptation struct {
	Name          string          `toml:"name"`
	Label         string          `toml:"label"`
	Pictures      string          `toml:"pictures"`
	Contamination float64         `toml:"contamination"` // share of red stars mixed in
	Prior         string          `toml:"prior"`         // DreamBooth: pictures of the subject's class
	Steps         []int           `toml:"steps"`         // where the model is measured
	Config        finetune.Config `toml:"config"`
}

// SetDefaults makes the fine-tuning that of the demo: all weights, AdamW.
func (a *Adaptation) SetDefaults() { a.Config = (&Experiment{}).fineTuning() }

func (a Adaptation) label() string {
	if a.Label != "" {
		return a.Label
	}
	return a.Name
}

//go:embed comparison.toml
var publishedComparison []byte

// PublishedComparison is the recipe behind docs/results.md, as a file's content.
func PublishedComparison() []byte { return slices.Clone(publishedComparison) }

// ComparisonDefaults are what a recipe need not say.
func ComparisonDefaults() Comparison {
	return Comparison{Out: "comparison", Engine: "auto", Seeds: []uint64{42, 43, 44}, Pictures: 100}
}

// Validate lists what cannot be used.
func (c Comparison) Validate() (problems []recipe.Problem) {
	bad := func(key, format string, args ...any) {
		problems = append(problems, recipe.Problem{Key: key, Message: fmt.Sprintf(format, args...)})
	}
	if c.Out == "" {
		bad("out", "is empty; name a folder")
	}
	if len(c.Seeds) == 0 || len(c.Seeds) > 100 || len(slices.Compact(slices.Sorted(slices.Values(c.Seeds)))) != len(c.Seeds) {
		bad("seeds", "%v must be 1 to 100 different numbers", c.Seeds)
	}
	if c.Pictures < 1 || c.Pictures > maxPictures {
		bad("pictures", "%d must lie between 1 and %d", c.Pictures, maxPictures)
	}
	if len(c.Methods) == 0 {
		bad("method", "there is none; add [[method]] with a name")
	}
	unique := func(list string, i int, name string, seen map[string]bool) {
		key := fmt.Sprintf("%s[%d].name", list, i)
		switch {
		case name == "" || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\\: \t\n"):
			bad(key, "%q must be fit for a folder's name", name)
		case seen[name]:
			bad(key, "%q is used twice or kept for another purpose", name)
		}
		seen[name] = true
	}
	adaptations := map[string]bool{"none": true}
	for i, a := range c.Adaptations {
		unique("adaptation", i, a.Name, adaptations)
		a.problems(fmt.Sprintf("adaptation[%d].", i), bad)
	}
	methods := map[string]bool{Base: true}
	for i, m := range c.Methods {
		unique("method", i, m.Name, methods)
		key := fmt.Sprintf("method[%d].", i)
		for _, name := range m.Adaptations {
			if !adaptations[name] {
				bad(key+"adaptations", "there is no [[adaptation]] named %q", name)
			}
		}
		for _, seed := range m.Seeds {
			if !slices.Contains(c.Seeds, seed) {
				bad(key+"seeds", "%d is not among the comparison's %v", seed, c.Seeds)
			}
		}
		r, err := (&Experiment{out: "x"}).resolve(m)
		if err != nil {
			bad(key+"recipe.data", "%v", err)
			continue
		}
		for _, p := range r.Validate() {
			bad(key+"recipe."+p.Key, "%s", p.Message)
		}
	}
	if c.Reference != "" && (!methods[c.Reference] || c.Reference == Base) {
		bad("reference", "there is no [[method]] named %q", c.Reference)
	}
	return problems
}

func (a Adaptation) problems(key string, bad func(key, format string, args ...any)) {
	if !filepath.IsLocal(filepath.FromSlash(a.Pictures)) {
		bad(key+"pictures", "%q must be a folder of the drawn world, such as evaluation/diverse", a.Pictures)
	}
	if a.Prior != "" && !filepath.IsLocal(filepath.FromSlash(a.Prior)) {
		bad(key+"prior", "%q must be a folder of the drawn world, such as retain/red", a.Prior)
	}
	if !(a.Contamination >= 0 && a.Contamination < 1) {
		bad(key+"contamination", "%v must lie in 0 … 1, below 1", a.Contamination)
	}
	if len(a.Steps) == 0 || a.Steps[0] < 1 || !slices.IsSorted(a.Steps) || len(slices.Compact(slices.Clone(a.Steps))) != len(a.Steps) {
		bad(key+"steps", "%v must grow and begin at 1 or later", a.Steps)
		return
	}
	config := a.Config
	config.Steps = slices.Max(a.Steps)
	for _, p := range config.Problems() {
		bad(key+"config."+p.Key, "%s", p.Message)
	}
}

// resolve is the method's recipe in this experiment's folder.
func (x *Experiment) resolve(m Method) (unlearn.Recipe, error) {
	r := m.Recipe
	r.Model, r.Out = filepath.Join(x.out, "model"), filepath.Join(x.out, "runs", m.Name)
	r.Seed = x.seed
	if x.engine != nil {
		r.Engine = x.engine.Kind()
	}
	sets := map[string]unlearn.Dataset{}
	place := func(folder string) (string, error) {
		if !filepath.IsLocal(filepath.FromSlash(folder)) {
			return "", fmt.Errorf("%q must be a folder of the drawn world, such as retain/stars", folder)
		}
		return x.folder(filepath.FromSlash(folder)), nil
	}
	for name, set := range r.Data {
		var err error
		if set.Folder != "" {
			if set.Folder, err = place(set.Folder); err != nil {
				return r, err
			}
		}
		set.Parts = slices.Clone(set.Parts)
		for i := range set.Parts {
			if set.Parts[i].Folder, err = place(set.Parts[i].Folder); err != nil {
				return r, err
			}
		}
		sets[name] = set
	}
	r.Data = sets
	return r, nil
}

// adaptations are what a method's model is put through.
func (c Comparison) adaptations(m Method) (out []adaptation) {
	for _, a := range c.Adaptations {
		if len(m.Adaptations) > 0 && !slices.Contains(m.Adaptations, a.Name) {
			continue
		}
		config := a.Config
		out = append(out, adaptation{name: a.Name, steps: a.Steps, pictures: a.Pictures, harmful: a.Contamination, prior: a.Prior, config: &config})
	}
	return out
}

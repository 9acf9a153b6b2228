// Package protocol carries out the audit that a recipe describes: models × adaptations × seeds × prompt sets. Pictures and
// what detectors find in them are kept one by one as they are made, so that an audit can be stopped at any moment and
// divided among machines; each is a function of the model, the prompt, the seed and its number alone, so that neither
// changes a result.
package protocol

import (
	"fmt"
	"slices"
	"strings"

	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/recipe"
)

// Recipe is everything that an audit depends on.
type Recipe struct {
	Preset   string   `toml:"preset"`
	Title    string   `toml:"title"` // of the report
	Out      string   `toml:"out"`   // the audit's folder
	Engine   string   `toml:"engine"`
	Seeds    []uint64 `toml:"seeds"`    // of fine-tuning and pictures; each gives a row of its own
	Baseline string   `toml:"baseline"` // the model that was not unlearned: drawn as the reference, and judged by no limit

	Keep         int    `toml:"keep"`          // pictures of each prompt set and cell that the report shows
	KeepPictures bool   `toml:"keep_pictures"` // all others stay in the folder as well
	KeepModels   bool   `toml:"keep_models"`   // fine-tuned models stay in the folder; otherwise only until they are measured
	Compute      string `toml:"compute"`       // what pictures are made in, see nn.Compute
	Cache        string `toml:"cache"`         // folder for encoded pictures and prompts; empty: memory only

	Generate    generate.Options `toml:"generate"`
	Models      []Model          `toml:"model"`
	Adaptations []Adaptation     `toml:"adaptation"`
	Prompts     []PromptSet      `toml:"prompts"`
}

// Model is one of the models compared.
type Model struct {
	Name      string  `toml:"name"`
	Path      string  `toml:"path"`      // a diffusers directory, a run's folder with one in model/, or owner/name on the hub
	LoRA      string  `toml:"lora"`      // file of an adapter to merge into the model first; empty: none
	Label     string  `toml:"label"`     // what reports call it; empty: its name
	Gradients float64 `toml:"gradients"` // what making it cost, in gradients of one picture; 0: not said
}

// DefaultRecipe has the settings of the published evaluation (method, section 5) and no model, adaptation or prompt yet.
func DefaultRecipe() Recipe {
	return Recipe{
		Title: "Resilience audit", Out: "audit", Engine: "auto", Seeds: []uint64{42}, Keep: 4, KeepPictures: true, KeepModels: true,
		Compute: string(nn.Float32), Generate: generate.Defaults(),
	}
}

// Validate lists what cannot be used, before any file is read.
func (r Recipe) Validate() []recipe.Problem {
	v := &validation{}
	v.check(strings.TrimSpace(r.Title) != "", "title", "is missing; say what the report is called")
	v.check(r.Out != "", "out", "is missing; name a folder")
	v.check(len(r.Seeds) > 0, "seeds", "is empty; give at least one, such as [42]")
	for i, seed := range r.Seeds {
		v.check(!slices.Contains(r.Seeds[:i], seed), "seeds", "has %d twice", seed)
	}
	v.check(r.Keep >= 0 && r.Keep <= maxKept, "keep", "%d must lie between 0 and %d", r.Keep, maxKept)
	err := nn.Compute(r.Compute).Check()
	v.check(err == nil, "compute", "%v", err)
	g := r.Generate
	v.check(g.Steps >= 1, "generate.steps", "%d is too small; it must be at least 1", g.Steps)
	v.check(g.Guidance >= 0, "generate.guidance", "%v must not be below 0", g.Guidance)
	v.check(g.Batch >= 0, "generate.batch", "%d must not be below 0", g.Batch)
	v.check(g.Height >= 0, "generate.height", "%d must not be below 0", g.Height)
	v.check(g.Width >= 0, "generate.width", "%d must not be below 0", g.Width)
	r.validateModels(v)
	r.validateAdaptations(v)
	r.validatePrompts(v)
	if len(v.problems) == 0 { // names are known to be good
		r.validateCells(v)
	}
	return v.problems
}

// maxKept bounds what a report shows of a cell: its page holds every picture.
const maxKept = 64

func (r Recipe) validateModels(v *validation) {
	v.check(len(r.Models) > 0, "model", "is missing: there is no model to measure; add one as [[model]] with name and path")
	names := map[string]bool{}
	for i, m := range r.Models {
		key := fmt.Sprintf("model[%d].", i)
		v.name(key+"name", m.Name, names)
		v.check(m.Path != "", key+"path", "is missing; name a diffusers directory, a run's folder, or owner/name on the hub")
		v.check(m.Gradients >= 0, key+"gradients", "%v must not be below 0", m.Gradients)
	}
	v.check(r.Baseline == "" || names[strings.ToLower(r.Baseline)], "baseline", "%q is none of the models; name one of them, or none", r.Baseline)
}

// validateCells makes sure that no two cells share their folder: names are joined with hyphens, and may hold hyphens.
func (r Recipe) validateCells(v *validation) {
	owner := map[string]string{}
	for _, c := range r.cells() {
		folder, what := strings.ToLower(c.name()), fmt.Sprintf("model %s with adaptation %s", c.Model, c.Adaptation)
		if other, taken := owner[folder]; taken && other != what {
			v.check(false, "adaptation", "%s and %s would both be kept as %s; rename one", other, what, folder)
			return
		}
		owner[folder] = what
	}
}

// validation collects problems.
type validation struct{ problems []recipe.Problem }

func (v *validation) check(good bool, key, format string, args ...any) {
	if !good {
		v.problems = append(v.problems, recipe.Problem{Key: key, Message: fmt.Sprintf(format, args...)})
	}
}

// name checks a name that becomes part of file names, and that no other has it on file systems that ignore case.
func (v *validation) name(key, name string, seen map[string]bool) {
	lower := strings.ToLower(name)
	switch {
	case name == "":
		v.check(false, key, "is missing; give it a short name")
	case strings.HasPrefix(name, ".") || strings.ContainsFunc(name, unfit):
		v.check(false, key, "%q is not fit for a file name; use letters, digits, - and _", name)
	case seen[lower]:
		v.check(false, key, "%q is there twice; rename one", name)
	}
	seen[lower] = true
}

func unfit(r rune) bool { return r <= ' ' || strings.ContainsRune(`/\:*?"<>|@=,%`, r) }

// oneOf checks a word.
func (v *validation) oneOf(key, value string, known ...string) {
	v.check(slices.Contains(known, value), key, "%q is not known; use %s", value, strings.Join(known, ", "))
}

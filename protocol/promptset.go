package protocol

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/hub"
	"github.com/resalign/resalign/judge/detectors"
	"github.com/resalign/resalign/judge/folders"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/score"
)

// Kinds of prompt sets.
const (
	Harmful = "harmful" // the rate is the share of pictures that the criterion calls harmful: lower is better
	Benign  = "benign"  // the rate is the share of pictures that the criterion calls right: higher is better
)

// PromptSet is a named list of prompts, and what is looked for in their pictures.
type PromptSet struct {
	Name     string `toml:"name"`
	Label    string `toml:"label"`
	Kind     string `toml:"kind"`     // harmful or benign
	Layout   string `toml:"layout"`   // a published list whose file and columns are known, see Layouts; empty: none
	File     string `toml:"file"`     // .csv, .jsonl, .txt, or COCO's .json; with dataset its path there
	Dataset  string `toml:"dataset"`  // owner/name on the hub that holds the file, in the cache; empty: the file is on the disk
	Pictures int    `toml:"pictures"` // of each prompt

	PromptColumn   string   `toml:"prompt_column"`   // empty: the layout's, or prompt
	SeedColumn     string   `toml:"seed_column"`     // whose seeds are used, such as I2P's sd_seed; empty: the audit's
	GuidanceColumn string   `toml:"guidance_column"` // such as I2P's sd_guidance_scale; empty: the audit's
	Filters        []string `toml:"filters"`         // such as "categories contains sexual"
	Limit          int      `toml:"limit"`           // only so many prompts, the first ones; 0: all
	Expect         int      `toml:"expect"`          // how many prompts there are; other numbers are an error; 0: not known

	// Adaptations are those after which these pictures are made, "none" standing for the model as it is; none named: all.
	Adaptations []string `toml:"adaptations"`

	Detector    string          `toml:"detector"`     // what looks at the pictures; empty: nothing, they are only made
	Criterion   score.Criterion `toml:"criterion"`    // what counts; harmful, empty: what usually does for the detector; or
	WantColumns []string        `toml:"want_columns"` // benign: the columns that say which labels a right picture has

	Metrics   []string `toml:"metrics"`   // what is measured of the pictures as a whole, such as "clip-score:CLIP"
	Reference string   `toml:"reference"` // for fid, kid and cmmd: a folder of pictures, or for fid a .npz of their statistics
}

// SetDefaults is one picture for each prompt.
func (p *PromptSet) SetDefaults() { p.Pictures = 1 }

// Layout is where a published prompt list is, and which of its columns is the prompt. Its seeds and guidance scales are
// used where a recipe names their columns.
type Layout struct {
	Name, What               string
	Dataset, File            string // on the hub; an empty Dataset: not there
	Prompt, Seeds, Guidances string // columns
}

// Layouts lists the published prompt lists that are known. None of their prompts is part of this program.
func Layouts() []Layout {
	return []Layout{
		{"i2p", "Inappropriate Image Prompts (Schramowski et al. 2023)", "AIML-TUDA/i2p", "i2p_benchmark.csv", "prompt", "sd_seed", "sd_guidance_scale"},
		{"unsafe-diffusion", "Unsafe Diffusion (Qu et al. 2023), one prompt per line, zenodo.org/record/8255664", "", "", "", "", ""},
		{"coco", "captions of MS-COCO: captions_val2014.json, or a table with a column prompt", "", "", "", "", ""},
		{"ring-a-bell", "Ring-A-Bell (Tsai et al. 2024), gated; also Nudity_eta_3_K_38.csv and …_77.csv", "Chia15/RingABell-Nudity", "Nudity_eta_3_K_16.csv", "prompt", "evaluation_seed", ""},
		{"mma-diffusion", "MMA-Diffusion (Yang et al. 2024)", "YijunYang280/MMA-Diffusion-NSFW-adv-prompts-benchmark", "mma-diffusion-nsfw-adv-prompts.csv", "adv_prompt", "", ""},
		{"unlearn-diff-atk", "nudity set of UnlearnDiffAtk (Zhang et al. 2024), prompts/nudity.csv of its repository", "", "", "prompt", "evaluation_seed", "evaluation_guidance"},
	}
}

// withLayout fills in what the layout knows.
func (p PromptSet) withLayout() PromptSet {
	i := slices.IndexFunc(Layouts(), func(l Layout) bool { return l.Name == p.Layout })
	if i < 0 {
		return p
	}
	l := Layouts()[i]
	if p.File == "" && p.Dataset == "" {
		p.Dataset = l.Dataset
	}
	if p.File == "" && p.Dataset == l.Dataset {
		p.File = l.File
	}
	if ending := strings.ToLower(path.Ext(p.File)); p.PromptColumn == "" && (ending == ".csv" || ending == ".jsonl") {
		p.PromptColumn = l.Prompt
	}
	return p
}

func (r Recipe) validatePrompts(v *validation) {
	v.check(len(r.Prompts) > 0, "prompts", "are missing; add a list as [[prompts]] with name, kind and file")
	names := map[string]bool{}
	families := map[string]bool{none: true}
	for _, variant := range r.variants() {
		families[variant.family], families[variant.Name] = true, true
	}
	for i, p := range r.Prompts {
		p.withLayout().validate(v, fmt.Sprintf("prompts[%d].", i), names)
		for _, a := range p.Adaptations {
			v.check(families[a], fmt.Sprintf("prompts[%d].adaptations", i), "has %q, which is neither an adaptation nor %q, the model as it is", a, none)
		}
		v.check(p.Detector != "" || len(p.Metrics) > 0 || r.KeepPictures, fmt.Sprintf("prompts[%d].detector", i), "is missing while keep_pictures = false, so that nothing would be left of the pictures; name one, or keep them")
	}
}

func (p PromptSet) validate(v *validation, key string, names map[string]bool) {
	v.name(key+"name", p.Name, names)
	v.oneOf(key+"kind", p.Kind, Harmful, Benign)
	if p.Layout != "" {
		var known []string
		for _, l := range Layouts() {
			known = append(known, l.Name)
		}
		v.oneOf(key+"layout", p.Layout, known...)
	}
	v.check(p.File != "", key+"file", "is missing; name the list of prompts")
	if p.Dataset != "" {
		_, ok := hub.ParseID(p.Dataset)
		v.check(ok, key+"dataset", "%q is not owner/name or owner/name@revision", p.Dataset)
		v.check(filepath.IsLocal(filepath.FromSlash(p.File)), key+"file", "%q leads out of the data set", p.File)
	}
	v.check(p.Pictures >= 1 && p.Pictures <= generate.MaxImages, key+"pictures", "%d must lie between 1 and %d", p.Pictures, generate.MaxImages)
	v.check(p.Limit >= 0, key+"limit", "%d must not be below 0; 0 takes all prompts", p.Limit)
	v.check(p.Expect >= 0, key+"expect", "%d must not be below 0; 0 expects no number", p.Expect)
	for _, f := range p.Filters {
		_, err := data.ParseRowFilter(f)
		v.check(err == nil, key+"filters", "%v", err)
	}
	p.validateMetrics(v, key)
	criterion := len(p.Criterion.Labels) > 0 || len(p.Criterion.Any) > 0
	switch {
	case len(p.WantColumns) > 0:
		v.check(p.Kind == Benign, key+"want_columns", "%v are for benign prompts; say with a criterion what is harmful", p.WantColumns)
		v.check(!criterion, key+"want_columns", "%v and a criterion both say which pictures count; give one", p.WantColumns)
		v.check(p.Detector != "", key+"detector", "is missing; want_columns need one that gives labels")
	case p.Detector == "":
		v.check(p.Kind == Benign, key+"detector", "is missing; name what finds harm in the pictures, such as nudenet")
		v.check(!criterion, key+"detector", "is missing; the criterion needs one")
	case criterion || p.Kind == Benign:
		err := p.Criterion.Validate()
		v.check(err == nil, key+"criterion", "%v", err)
	}
}

func (p PromptSet) validateMetrics(v *validation, key string) {
	distances := false
	var kinds []string
	for _, m := range p.Metrics {
		kind, err := folders.CheckMetric(m)
		if err != nil {
			v.check(false, key+"metrics", "%v", err)
			continue
		}
		v.check(kind != "lpips", key+"metrics", "%q compares pairs of pictures, which resalign score does with the folders of two cells; leave it out", m)
		v.check(!slices.Contains(kinds, kind), key+"metrics", "%s is there twice; name one", kind)
		kinds = append(kinds, kind)
		isDistance, sufficient := folders.IsDistance(kind)
		distances = distances || isDistance
		v.check(!isDistance || p.Reference != "", key+"reference", "is missing, from which %s measures; name a folder of pictures, or for fid a .npz of their statistics", kind)
		v.check(!isDistance || sufficient || !strings.EqualFold(path.Ext(p.Reference), ".npz"), key+"reference", "%q holds statistics, but %s needs the pictures themselves; name their folder", p.Reference, kind)
	}
	v.check(distances || p.Reference == "", key+"reference", "%q is used by none of the metrics; leave it out, or add fid, kid or cmmd", p.Reference)
}

// allows tells whether a recipe lets the pictures be made in a cell.
func (p PromptSet) allows(c cell) bool {
	return len(p.Adaptations) == 0 || slices.Contains(p.Adaptations, c.Adaptation) || slices.Contains(p.Adaptations, c.family)
}

// isIn tells whether the pictures are made in a cell: where the set names none, in all where its prompts mean something
// of their own. Those with a word that is learnt do so where it is, and those without where more than a word is learnt.
func (p PromptSet) isIn(c cell, words []string) bool {
	if len(p.Adaptations) > 0 {
		return p.allows(c)
	}
	return c.knows(words) && (len(words) > 0 || !c.wordOnly)
}

// knows tells whether the model of a cell has learnt the words.
func (c cell) knows(words []string) bool {
	return !slices.ContainsFunc(words, func(word string) bool { return word != c.word })
}

// learntWords are the words that adaptations learn and that some of the prompts have.
func (r Recipe) learntWords(prompts []data.ListedPrompt) (out []string) {
	for _, a := range r.Adaptations {
		has := func(p data.ListedPrompt) bool { return strings.Contains(strings.ToLower(p.Text), a.Placeholder) }
		if a.Placeholder != "" && !slices.Contains(out, a.Placeholder) && slices.ContainsFunc(prompts, has) {
			out = append(out, a.Placeholder)
		}
	}
	return out
}

// checkWords makes sure that prompts with a word that is learnt are used where it is, and that a word is used at all.
func (r Recipe) checkWords(sets []loadedSet) error {
	used := map[string]bool{}
	for _, c := range r.cells() {
		for _, s := range sets {
			if !s.isIn(c, s.words) {
				continue
			}
			if !c.knows(s.words) {
				return fmt.Errorf("prompts %s: adaptations have %q, but prompts have the word %s, which is not learnt there; put prompts with different words, or without one, into sets of their own, and name those adaptations that learn the word",
					s.Name, c.Adaptation, strings.Join(s.words, " and "))
			}
			used[c.Adaptation] = true
		}
	}
	for _, v := range r.variants() {
		if v.wordOnly() && !used[v.Name] {
			return fmt.Errorf("adaptation %s: no prompt has its word %s, without which nothing changes; add a set of prompts that have it", v.Name, v.Placeholder)
		}
	}
	return nil
}

// counts tells whether the set has a rate.
func (p PromptSet) counts() bool { return p.Detector != "" }

// holds tells whether a picture counts.
func (p PromptSet) holds(f score.Finding, wanted map[string]string) bool {
	if len(p.WantColumns) > 0 {
		return f.Labels.Matches(wanted)
	}
	return p.Criterion.Holds(f)
}

// suits completes the criterion by what usually counts for the detector, and returns an error if the detector cannot know
// what the criterion is about.
func (p *PromptSet) suits(d *detectors.Opened) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("prompts %s: detector %s %s", p.Name, p.Detector, fmt.Sprintf(format, args...))
	}
	if len(p.WantColumns) == 0 && len(p.Criterion.Labels) == 0 && len(p.Criterion.Any) == 0 {
		if p.Criterion = d.Usual; p.Criterion.Validate() != nil {
			return fail("has no usual criterion; say what is harmful")
		}
	}
	for _, aspect := range p.aspects() {
		if !slices.Contains(d.Aspects, aspect) {
			return fail("says nothing about %q, which the criterion is about; choose another detector or criterion", aspect)
		}
	}
	for _, label := range p.Criterion.Any {
		if d.Aspects != nil {
			return fail("gives no scores but labels (%s); give these as labels of the criterion, or choose another detector", strings.Join(d.Aspects, ", "))
		}
		if d.Labels != nil && !slices.Contains(d.Labels, label) {
			return fail("does not score %q; it scores %s", label, strings.Join(d.Labels, ", "))
		}
	}
	return nil
}

// aspects are those that the criterion or the columns are about.
func (p PromptSet) aspects() []string {
	if len(p.WantColumns) > 0 {
		return p.WantColumns
	}
	return slices.Sorted(maps.Keys(p.Criterion.Labels))
}

// missingList says that a list of prompts is not on this machine.
type missingList string

// Error is one sentence.
func (m missingList) Error() string { return string(m) }

// findFile is the type of Options.FindFile.
type findFile = func(ctx context.Context, id hub.ID, file string) (string, error)

// onDisk is the path of the set's list, which may be of a data set.
func (p PromptSet) onDisk(ctx context.Context, find findFile) (string, error) {
	if p.Dataset == "" {
		return p.File, nil
	}
	id, ok := hub.ParseID(p.Dataset)
	if !ok {
		return "", fmt.Errorf("prompts %s: the data set %q is not owner/name", p.Name, p.Dataset)
	}
	id.Dataset = true
	err := errors.New("there is no cache to look into")
	if find != nil {
		var path string
		if path, err = find(ctx, id, p.File); err == nil || ctx.Err() != nil {
			return path, err
		}
	}
	return "", missingList(fmt.Sprintf("prompts %s: %s of the data set %s is not here: %v; bring it by `resalign download --dataset %s --include %s`, or name a file on the disk",
		p.Name, p.File, p.Dataset, err, id, p.File))
}

// read reads the set's prompts. A list that is not there is a missingList.
func (p PromptSet) read(ctx context.Context, find findFile) ([]data.ListedPrompt, error) {
	p = p.withLayout()
	file, err := p.onDisk(ctx, find)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil, missingList(fmt.Sprintf("prompts %s: the list %s does not exist; check its name", p.Name, file))
	}
	columns := data.Columns{Prompt: p.PromptColumn, Seed: p.SeedColumn, Guidance: p.GuidanceColumn, Keep: p.WantColumns}
	for _, text := range p.Filters {
		f, err := data.ParseRowFilter(text)
		if err != nil {
			return nil, fmt.Errorf("prompts %s: %w", p.Name, err)
		}
		columns.Filters = append(columns.Filters, f)
	}
	prompts, err := data.ReadPromptColumns(file, columns)
	if err != nil {
		return nil, fmt.Errorf("prompts %s: %w", p.Name, err)
	}
	if p.Expect > 0 && len(prompts) != p.Expect {
		return nil, fmt.Errorf("prompts %s: %s has %d prompts that the filters hold for, not the %d expected; take the published file, or change expect", p.Name, file, len(prompts), p.Expect)
	}
	if p.Limit > 0 {
		prompts = prompts[:min(p.Limit, len(prompts))]
	}
	return prompts, nil
}

// loadedSet is a prompt set with its prompts.
type loadedSet struct {
	PromptSet
	prompts []data.ListedPrompt
	words   []string // that adaptations learn and some of the prompts have

	measuring []measuring // its metrics
}

// picture is one picture of a cell that is to be made.
type picture struct {
	prompt, image int
	text          string
	guidance      float64
	seed          generate.Seed
	wanted        map[string]string
}

func (p picture) file() string { return pictureFile(p.prompt, p.image) }

// pictures lists a cell's pictures in order. A prompt with a seed of its own has it for the audit's first seed; the
// pictures of the audit's other seeds are further ones of the same.
func (s loadedSet) pictures(r Recipe, seed uint64) []picture {
	turn := slices.Index(r.Seeds, seed)
	var out []picture
	for i, p := range s.prompts {
		for k := range s.Pictures {
			one := picture{prompt: i, image: k, text: p.Text, guidance: r.Generate.Guidance, seed: generate.Seed{Run: seed, Prompt: i, Image: k}, wanted: p.Kept}
			if p.Seed != nil {
				one.seed = generate.Seed{Run: *p.Seed, Image: turn*s.Pictures + k}
			}
			if p.Guidance != nil {
				one.guidance = *p.Guidance
			}
			out = append(out, one)
		}
	}
	return out
}

// fingerprint identifies what the pictures of a set depend on, beside the model: not how many there are of each prompt, as
// more may be made later, nor who looks at them.
func (s loadedSet) fingerprint(r Recipe, seed uint64) string {
	hash := sha256.New()
	options := r.Generate
	options.Batch = max(1, options.Batch)
	fmt.Fprintf(hash, "%+v\n", options)
	if c := nn.Compute(r.Compute); c == nn.BFloat16 {
		fmt.Fprintf(hash, "computed in %s\n", c)
	}
	one := s
	one.Pictures = 1
	for _, p := range one.pictures(r, seed) {
		fmt.Fprintf(hash, "%q %v %d %d\n", p.text, p.guidance, p.seed.Run, p.seed.Prompt)
	}
	if slices.ContainsFunc(s.prompts, func(p data.ListedPrompt) bool { return p.Seed != nil }) {
		fmt.Fprintf(hash, "turn %d of %d\n", slices.Index(r.Seeds, seed), s.Pictures) // see pictures
	}
	return hex.EncodeToString(hash.Sum(nil))
}

// loadPrompts reads all prompt sets.
func loadPrompts(ctx context.Context, r Recipe, find findFile) ([]loadedSet, error) {
	var out []loadedSet
	for _, p := range r.Prompts {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		prompts, err := p.read(ctx, find)
		if err != nil {
			return nil, err
		}
		out = append(out, loadedSet{PromptSet: p, prompts: prompts, words: r.learntWords(prompts)})
	}
	return out, r.checkWords(out)
}

package protocol

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/judge/detectors"
	"github.com/resalign/resalign/judge/folders"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/tokenizer"
)

// cell is one row of the result: a model after some steps of an adaptation, under one seed.
type cell struct {
	Model         string  `json:"model"`
	Adaptation    string  `json:"adaptation"`
	Steps         int     `json:"steps"`
	Seed          uint64  `json:"seed"`
	Contamination float64 `json:"contamination,omitempty"`
	Sets          []store `json:"sets"`

	family   string // the adaptation without its share of harmful pictures
	word     string // that the adaptation learns; empty: none
	wordOnly bool   // nothing else has changed
}

// name is the folder of a cell's pictures, below those of its seeds.
func (c cell) name() string { return fmt.Sprintf("%s-%s-%d", c.Model, c.Adaptation, c.Steps) }

// String says which cell it is.
func (c cell) String() string { return fmt.Sprintf("%s, seed %d", c.name(), c.Seed) }

// cell is one of an adaptation, of no model yet.
func (v variant) cell() cell {
	return cell{Adaptation: v.Name, Contamination: v.ratio, family: v.family, word: v.Placeholder, wordOnly: v.wordOnly()}
}

// cells lists the cells in the order of models, adaptations, steps and seeds, without what their pictures depend on.
func (r Recipe) cells() []cell {
	var out []cell
	add := func(c cell) {
		for _, seed := range r.Seeds {
			c.Seed = seed
			out = append(out, c)
		}
	}
	for _, m := range r.Models {
		add(cell{Model: m.Name, Adaptation: none, family: none})
		for _, v := range r.variants() {
			if !v.appliesTo(m.Name) {
				continue
			}
			for _, steps := range v.Steps {
				c := v.cell()
				c.Model, c.Steps = m.Name, steps
				add(c)
			}
		}
	}
	return out
}

// manifest is what an audit's folder says about itself in audit.json: enough to put the result together from its
// pictures, and to see whether two folders are shards of one audit.
type manifest struct {
	Models    map[string]string `json:"models"`    // name → what its files hash to
	Detectors map[string]string `json:"detectors"` // as the recipe calls them → which they are
	Cells     []cell            `json:"cells"`
}

const manifestFile = "audit.json"

// inputs are what an audit was found to work on.
type inputs struct {
	models      map[string]foundModel
	adaptations map[string]adapting // by the variant's name
	sets        []loadedSet
	detectors   map[string]*detectors.Opened // by specification
	metrics     map[string]*folders.Metric   // by what they keep of pictures, see measuring
	references  map[string]reference         // by their hash
}

// set is the prompt set of a name.
func (in inputs) set(name string) loadedSet {
	return in.sets[slices.IndexFunc(in.sets, func(s loadedSet) bool { return s.Name == name })]
}

// foundModel is a model's folder and what it hashes to.
type foundModel struct {
	Model
	dir, hash string
}

func (m foundModel) files() modelFiles { return modelFiles{dir: m.dir, lora: m.LoRA} }

// canLearn tells whether the model can learn an adaptation's word, before it is loaded.
func (m foundModel) canLearn(v variant) error {
	if _, err := os.Stat(filepath.Join(m.dir, "tokenizer_2")); err == nil {
		return fmt.Errorf("%s has two text encoders, and learns no words; leave it out of the adaptation's models", m.Path)
	}
	t, err := tokenizer.Load(filepath.Join(m.dir, "tokenizer"))
	if err != nil {
		return err
	}
	if _, err := t.WithPlaceholder(v.Placeholder, v.Vectors); err != nil {
		return err
	}
	ids, _ := t.Encode(v.Initializer)
	if n := slices.Index(ids[1:], t.EndID()); n != 1 {
		return fmt.Errorf("initializer %q has %d tokens; use a word of one token", v.Initializer, n)
	}
	return nil
}

// modelFiles are what a model is read from.
type modelFiles struct {
	dir  string // a diffusers directory
	lora string // file of an adapter to merge into it; empty: none
	word string // file of a word that it learnt; empty: none
}

func (f modelFiles) load(e *engine.Engine) (*sd.Model, error) {
	m, err := sd.LoadWithLoRA(e, f.dir, f.lora)
	if err != nil || f.word == "" {
		return m, err
	}
	word, err := sd.ReadConcept(f.word)
	if err == nil {
		err = m.Learn(word)
	}
	if err != nil {
		m.Free()
		return nil, fmt.Errorf("%s: %w", f.word, err)
	}
	return m, nil
}

// plan lays the cells out in folders that are named by what their pictures depend on: what an earlier, different recipe
// left is never taken for a result of this one.
func (r Recipe) plan(in inputs) manifest {
	m := manifest{Models: map[string]string{}, Detectors: map[string]string{}}
	for name, found := range in.models {
		m.Models[name] = found.hash[:12]
	}
	for spec, d := range in.detectors {
		m.Detectors[spec] = d.Name()
	}
	for _, c := range r.cells() {
		weights := in.models[c.Model].hash
		if c.Adaptation != none {
			weights = hashOf(weights, in.adaptations[c.Adaptation].hash, fmt.Sprint(c.Seed, " ", c.Steps))
		}
		for _, s := range in.sets {
			if !s.isIn(c, s.words) {
				continue
			}
			print := hashOf(weights, s.fingerprint(r, c.Seed))[:12]
			folder := fmt.Sprintf("cells/%s/%d/%s-%s", c.name(), c.Seed, s.Name, print)
			one := store{Set: s.Name, Folder: folder, Pictures: len(s.prompts) * s.Pictures, Shown: min(r.Keep, len(s.prompts)*s.Pictures)}
			one.Metrics = s.measuring
			if s.counts() {
				one.Detector = m.Detectors[s.Detector]
			}
			c.Sets = append(c.Sets, one)
		}
		m.Cells = append(m.Cells, c)
	}
	return m
}

func hashOf(parts ...string) string {
	hash := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(hash, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(hash.Sum(nil))
}

// ofSet is how many pictures a set has in a cell.
func (m manifest) ofSet(name string) int {
	for _, c := range m.Cells {
		for _, s := range c.Sets {
			if s.Set == name {
				return s.Pictures
			}
		}
	}
	return 0
}

// metricsOf says what is measured of a set.
func (m manifest) metricsOf(name string) string {
	var parts []string
	for _, c := range m.Cells {
		for _, s := range c.Sets {
			for _, metric := range s.Metrics {
				part := metric.Kind + " (" + metric.Name
				if metric.Reference != "" {
					part += ", from reference " + metric.Reference
				}
				if part += ")"; s.Set == name && !slices.Contains(parts, part) {
					parts = append(parts, part)
				}
			}
		}
	}
	return strings.Join(parts, ", ")
}

func (m manifest) encode() ([]byte, error) {
	content, err := json.MarshalIndent(m, "", "  ")
	return append(content, '\n'), err
}

func (m manifest) write(dir string) error {
	content, err := m.encode()
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return files.WriteBytes(filepath.Join(dir, manifestFile), content)
}

// readManifest reads audit.json of a folder. Folders named in it that lead elsewhere are refused.
func readManifest(dir string) (m manifest, content []byte, err error) {
	path := filepath.Join(dir, manifestFile)
	content, err = os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil, fmt.Errorf("%s holds no audit: it has no %s; name the folder of one, or of one of its shards", dir, manifestFile)
	}
	if err != nil {
		return m, nil, fmt.Errorf("the audit cannot be read: %w", err)
	}
	if err := json.Unmarshal(content, &m); err != nil {
		return m, nil, fmt.Errorf("%s is damaged: %w; run the audit again", path, err)
	}
	for _, c := range m.Cells {
		for _, s := range c.Sets {
			if !filepath.IsLocal(filepath.FromSlash(s.Folder)) || s.Pictures < 0 || s.Shown < 0 || s.Shown > s.Pictures || s.Pictures > maxPictures || slices.ContainsFunc(s.Metrics, measuring.isDamaged) {
				return m, nil, fmt.Errorf("%s is damaged: cell %s, set %s has the folder %q, %d pictures, %d shown; run the audit again", path, c, s.Set, s.Folder, s.Pictures, s.Shown)
			}
		}
	}
	return m, content, nil
}

// maxPictures bounds a set: more is a mistake.
const maxPictures = 100_000_000

// findModels finds the models' folders and what they hash to. find may be nil; it turns a name of the hub into a folder.
func (r Recipe) findModels(ctx context.Context, find func(ctx context.Context, name string) (string, error)) (map[string]foundModel, error) {
	out := map[string]foundModel{}
	for _, m := range r.Models {
		found := foundModel{Model: m, dir: m.Path}
		fail := func(err error) error { return fmt.Errorf("model %s: %w", m.Name, err) }
		if isFile(filepath.Join(m.Path, "model", "model_index.json")) { // a run of unlearning or fine-tuning
			found.dir = filepath.Join(m.Path, "model")
		} else if find != nil {
			var err error
			if found.dir, err = find(ctx, m.Path); err != nil {
				return nil, fail(err)
			}
		}
		if !isFile(filepath.Join(found.dir, "model_index.json")) {
			return nil, fail(fmt.Errorf("%s is neither a diffusers directory nor a finished run: it has no model_index.json; check path", m.Path))
		}
		var err error
		if found.hash, err = audit.HashModel(found.dir); err != nil {
			return nil, fail(err)
		}
		if m.LoRA != "" {
			content, err := os.ReadFile(m.LoRA)
			if err != nil {
				return nil, fail(fmt.Errorf("the adapter cannot be read: %w", err))
			}
			found.hash = hashOf(found.hash, string(content))
		}
		for _, v := range r.variants() {
			if v.Placeholder == "" || !v.appliesTo(m.Name) {
				continue
			}
			if err := found.canLearn(v); err != nil {
				return nil, fail(fmt.Errorf("adaptation %s: %w", v.Name, err))
			}
		}
		out[m.Name] = found
	}
	return out, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// adapting is an adaptation with its pictures.
type adapting struct {
	variant
	pictures audit.Adaptation // for each seed with another config
	hash     string
}

// loadAdaptations opens the folders of pictures.
func (r Recipe) loadAdaptations() (map[string]adapting, error) {
	out := map[string]adapting{}
	for _, v := range r.variants() {
		pictures, err := v.pictures()
		if err != nil {
			return nil, fmt.Errorf("adaptation %s: %w", v.Name, err)
		}
		a := audit.Adaptation{Name: v.Name, Config: v.config(0), Data: pictures, Steps: slices.Clone(v.Steps)}
		hash, err := a.Hash()
		if err != nil {
			return nil, fmt.Errorf("adaptation %s: %w", v.Name, err)
		}
		out[v.Name] = adapting{v, a, hash}
	}
	return out, nil
}

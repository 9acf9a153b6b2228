package protocol

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/recipe"
)

// Merge joins the folders of shards that were made apart: it puts their pictures and findings into the folder out, which
// must be new, empty, or of the same audit, and writes the result there if nothing is missing. The result has the same
// bytes as that of an audit that was never divided.
func Merge(ctx context.Context, dirs []string, out string) (*Outcome, error) {
	if len(dirs) == 0 {
		return nil, fmt.Errorf("there is nothing to merge; name the folders of the shards")
	}
	m, r, err := agreed(dirs)
	if err != nil {
		return nil, err
	}
	if err := usable(out); err != nil {
		return nil, err
	}
	if _, there, err := readManifest(out); err == nil {
		if _, first, _ := readManifest(dirs[0]); !bytes.Equal(there, first) {
			return nil, fmt.Errorf("%s holds another audit than %s; choose another folder", out, dirs[0])
		}
		dirs = append(dirs[:len(dirs):len(dirs)], out)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, fmt.Errorf("the audit's folder cannot be made: %w", err)
	}
	for _, c := range m.Cells {
		for _, s := range c.Sets {
			if err := s.merge(dirs, out, r.Prompts); err != nil {
				return nil, err
			}
			for _, metric := range s.Metrics {
				if err := metric.mergeReference(dirs, out); err != nil {
					return nil, err
				}
			}
		}
	}
	var made makers
	for _, dir := range dirs {
		one, err := readMakers(dir)
		if err != nil {
			return nil, err
		}
		made.add(one)
	}
	if err := made.write(filepath.Join(out, "made-by.json")); err != nil {
		return nil, err
	}
	r.Out = out
	text, err := recipe.Encode(r)
	if err != nil {
		return nil, err
	}
	if err := files.WriteBytes(filepath.Join(out, recipeFile), text); err != nil {
		return nil, err
	}
	if err := m.write(out); err != nil {
		return nil, err
	}
	return publish(ctx, out)
}

// agreed reads the manifests and recipes of shards and makes sure that they are of one audit.
func agreed(dirs []string) (m manifest, r Recipe, err error) {
	var first, firstRecipe []byte
	for i, dir := range dirs {
		one, content, err := readManifest(dir)
		if err != nil {
			return m, r, err
		}
		stored := DefaultRecipe()
		if err := recipe.Decode(filepath.Join(dir, recipeFile), &stored); err != nil {
			return m, r, err
		}
		if err := stored.matches(one, dir); err != nil {
			return m, r, err
		}
		text, err := stored.withoutPlaces()
		if err != nil {
			return m, r, err
		}
		if i == 0 {
			m, r, first, firstRecipe = one, stored, content, text
			continue
		}
		if !bytes.Equal(content, first) || !bytes.Equal(text, firstRecipe) {
			return m, r, fmt.Errorf("%s and %s are not shards of one audit: %s; merge folders of the same recipe", dirs[0], dir, difference(m, one))
		}
	}
	return m, r, nil
}

// difference says in which way two audits differ.
func difference(a, b manifest) string {
	switch {
	case !maps.Equal(a.Models, b.Models):
		return "their models differ"
	case !maps.Equal(a.Detectors, b.Detectors):
		return "their detectors differ"
	case len(a.Cells) != len(b.Cells):
		return fmt.Sprintf("one has %s, the other %d", count(len(a.Cells), "cell"), len(b.Cells))
	}
	for i := range a.Cells {
		x, errX := json.Marshal(a.Cells[i])
		y, errY := json.Marshal(b.Cells[i])
		if errX != nil || errY != nil || !bytes.Equal(x, y) {
			return "cell " + a.Cells[i].String() + " depends on other data, prompts or settings"
		}
	}
	return "their recipes count differently"
}

// withoutPlaces is the recipe without the names of files and folders, which may be others on other machines: what they
// hold is in the manifest.
func (r Recipe) withoutPlaces() ([]byte, error) {
	r.Out, r.Engine, r.Cache = "", "", ""
	r.Models = append([]Model(nil), r.Models...)
	for i := range r.Models {
		r.Models[i].Path, r.Models[i].LoRA = "", ""
	}
	r.Adaptations = append([]Adaptation(nil), r.Adaptations...)
	for i := range r.Adaptations {
		a := &r.Adaptations[i]
		a.Data, a.Prior, a.Contaminate = "", "", ""
	}
	r.Prompts = append([]PromptSet(nil), r.Prompts...)
	for i := range r.Prompts {
		r.Prompts[i].File, r.Prompts[i].Dataset, r.Prompts[i].Reference = "", "", ""
	}
	return recipe.Encode(r)
}

// merge joins one store: every picture that some folder has finished, and one list of what was found, and of what each
// metric found, in the pictures' order.
func (s store) merge(dirs []string, out string, sets []PromptSet) error {
	if err := os.MkdirAll(s.path(out), 0o755); err != nil {
		return fmt.Errorf("the folder for pictures cannot be made: %w", err)
	}
	perPrompt := 1
	for _, p := range sets {
		if p.Name == s.Set {
			perPrompt = p.Pictures
		}
	}
	all := make([]string, s.Pictures)
	for i := range all {
		all[i] = pictureFile(i/perPrompt, i%perPrompt)
	}
	lines := make([]any, s.Pictures)
	joined := make([]measures, len(s.Metrics))
	for k := range joined {
		joined[k] = measures{values: map[string]float64{}}
		if s.Metrics[k].Network != "" {
			joined[k].features = map[string][]float32{}
		}
	}
	for _, dir := range dirs {
		known, err := s.look(dir)
		if err != nil {
			return err
		}
		for i, file := range all {
			if lines[i] != nil || !s.finished(dir, file, i, false, known) {
				continue
			}
			lines[i] = known.found[file]
			for k, m := range known.measures {
				joined[k].take(m, file)
			}
			if known.there[file] {
				if err := bring(filepath.Join(s.path(dir), file), filepath.Join(s.path(out), file)); err != nil {
					return err
				}
			}
		}
	}
	for k, m := range s.Metrics {
		if err := m.write(s.path(out), joined[k], all); err != nil {
			return err
		}
	}
	var text bytes.Buffer
	if err := encodeLines(&text, slices.DeleteFunc(lines, func(line any) bool { return line == nil })); err != nil {
		return err
	}
	return files.WriteBytes(filepath.Join(s.path(out), s.findingsFile(generate.Shard{})), text.Bytes())
}

// bring links a picture, or copies it where links are not possible. Pictures are replaced, never changed.
func bring(from, to string) error {
	if a, err := os.Stat(from); err == nil {
		if b, err := os.Stat(to); err == nil && os.SameFile(a, b) {
			return nil
		}
	}
	if err := os.Remove(to); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("%s cannot be replaced: %w", to, err)
	}
	if os.Link(from, to) == nil {
		return nil
	}
	return files.Write(to, func(w io.Writer) error {
		f, err := os.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
}

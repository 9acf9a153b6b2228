package protocol

import (
	"context"
	"encoding/json"
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
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/judge/folders"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/train"
)

// reference is what the pictures of a set are compared with by distances: others, in a folder, or their statistics. The
// audit's folder keeps what is needed of it, so that results can be put together, and shards merged, where it is not.
//
//	references/HASH.npz                          the statistics
//	references/HASH.json                         the hashes of the pictures, in their order
//	references/HASH-features-HASH.bin            their features by the network of the second hash
//	references/HASH-features-HASH.0-of-4.bin     by shard 0 of 4
type reference struct {
	hash       string
	path       string
	statistics *score.Statistics
	pictures   *folders.Folder // nil: statistics
}

const referencesFolder = "references"

// openReference reads statistics, or lists the pictures of a folder.
func openReference(ctx context.Context, path string) (r reference, err error) {
	r.path = path
	if strings.EqualFold(filepath.Ext(path), ".npz") {
		statistics, err := score.ReadStatistics(path)
		if err != nil {
			return r, err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return r, fmt.Errorf("the statistics cannot be read: %w", err)
		}
		r.hash, r.statistics = hashOf("statistics", string(content))[:12], &statistics
		return r, nil
	}
	if r.pictures, err = folders.Read(ctx, path); err != nil {
		return r, err
	}
	r.hash = hashOf(r.hashes()...)[:12]
	return r, nil
}

func (r reference) hashes() (out []string) {
	for _, p := range r.pictures.Pictures {
		out = append(out, p.Hash)
	}
	return out
}

// suits tells what stands against a metric's distance from the reference.
func (r reference) suits(m *folders.Metric) error {
	if r.statistics == nil {
		return nil
	}
	_, width := m.Network()
	switch _, sufficient := folders.IsDistance(m.Kind); {
	case !sufficient:
		return fmt.Errorf("%s holds statistics, but %s needs the reference pictures themselves; name their folder", r.path, m.Kind)
	case len(r.statistics.Mean) != width:
		return fmt.Errorf("%s has statistics of %d features, but %s computes %d; take statistics of the same network", r.path, len(r.statistics.Mean), m.Kind, width)
	}
	return nil
}

// place is the path of one of a reference's files below the audit's folder, without its ending.
func referencePlace(dir, hash string) string { return filepath.Join(dir, referencesFolder, hash) }

// begin notes the reference in the audit's folder.
func (r reference) begin(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, referencesFolder), 0o755); err != nil {
		return fmt.Errorf("the audit's folder cannot be made: %w", err)
	}
	if r.statistics != nil {
		return score.WriteStatistics(referencePlace(dir, r.hash)+".npz", *r.statistics)
	}
	content, err := json.Marshal(r.hashes())
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return files.WriteBytes(referencePlace(dir, r.hash)+".json", append(content, '\n'))
}

// inReferences is the metric with its files in the references' folder.
func (m measuring) inReferences(shard generate.Shard) string {
	return m.Reference + "-" + m.file(shard)
}

// keptReference is what an audit's folder has of a reference.
type keptReference struct {
	folders.Reference
	missing int
	first   string // one of the pictures whose features are missing
}

// readReference reads what an audit's folder has of a metric's reference, of all shards.
func (m measuring) readReference(dir string) (k keptReference, err error) {
	place := referencePlace(dir, m.Reference)
	if isFile(place + ".npz") {
		statistics, err := score.ReadStatistics(place + ".npz")
		k.Statistics = &statistics
		return k, err
	}
	content, err := os.ReadFile(place + ".json")
	if err != nil {
		return k, fmt.Errorf("the audit cannot be read: %w", err)
	}
	var hashes []string
	if err := json.Unmarshal(content, &hashes); err != nil {
		return k, fmt.Errorf("%s.json is damaged: %w; run the audit again", place, err)
	}
	found, err := m.referenceFeatures(dir)
	for _, hash := range hashes {
		if found[hash] == nil {
			if k.missing++; k.first == "" {
				k.first = path.Join(referencesFolder, m.Reference, hash)
			}
			continue
		}
		k.Features = append(k.Features, found[hash])
	}
	return k, err
}

// referenceFeatures are those of the reference's pictures that are there, by the pictures' hashes.
func (m measuring) referenceFeatures(dir string) (map[string][]float32, error) {
	names, err := fileNames(filepath.Join(dir, referencesFolder))
	if err != nil {
		return nil, err
	}
	out := map[string][]float32{}
	for _, name := range shardFiles(names, m.inReferences(generate.Shard{})) {
		found, err := folders.ReadFeatures(filepath.Join(dir, referencesFolder, name), m.Network, m.Width)
		if err != nil {
			return nil, err
		}
		for key, vector := range found {
			out[key] = vector
		}
	}
	return out, nil
}

// fileNames lists a folder; one that is not there has none.
func fileNames(folder string) (names []string, err error) {
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("audit: %w", err)
	}
	for _, e := range entries { // sorted by name
		names = append(names, e.Name())
	}
	return names, nil
}

// referenceBatch is how many reference pictures are decoded, looked at and kept together.
const referenceBatch = 32

// lookAtReferences makes the features of reference pictures that are missing, of this share of them.
func (a *auditor) lookAtReferences(ctx context.Context) error {
	done := map[string]bool{}
	for _, c := range a.manifest.Cells {
		for _, s := range c.Sets {
			for _, m := range s.Metrics {
				r := a.inputs.references[m.Reference]
				if m.Network == "" || r.pictures == nil || done[m.inReferences(generate.Shard{})] {
					continue
				}
				done[m.inReferences(generate.Shard{})] = true
				if err := a.lookAtReference(ctx, m, r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (a *auditor) lookAtReference(ctx context.Context, m measuring, r reference) (err error) {
	have, err := m.referenceFeatures(a.dir)
	if err != nil {
		return err
	}
	var todo []folders.Picture
	for i, p := range r.pictures.Pictures {
		if a.options.Shard.Has(i) && have[p.Hash] == nil {
			todo = append(todo, p)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	a.stage("looking at the pictures of " + r.path)
	store, err := folders.OpenFeatures(filepath.Join(a.dir, referencesFolder, m.inReferences(a.options.Shard)), m.Network, m.Width)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	for from := 0; from < len(todo); from += referenceBatch {
		select {
		case <-a.hooks.Finish:
			return train.ErrInterrupted
		default:
		}
		now := todo[from:min(from+referenceBatch, len(todo))]
		images := make([]*data.RGB, len(now))
		keys := make([]string, len(now))
		for i, p := range now {
			keys[i] = p.Hash
			if images[i], err = p.Decode(); err != nil {
				return err
			}
		}
		vectors, err := a.inputs.metrics[m.key()].Features(ctx, images)
		if err != nil {
			return fmt.Errorf("%s … %s: %w", now[0].Path(), now[len(now)-1].Path(), err)
		}
		if err := store.Keep(keys, vectors); err != nil {
			return err
		}
		if a.hooks.OnReference != nil {
			a.hooks.OnReference(from+len(now), len(todo), r.path)
		}
	}
	return nil
}

// mergeReference joins what shards know of a metric's reference.
func (m measuring) mergeReference(dirs []string, out string) (err error) {
	if m.Reference == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(out, referencesFolder), 0o755); err != nil {
		return fmt.Errorf("the audit's folder cannot be made: %w", err)
	}
	place := referencePlace(out, m.Reference)
	joined := map[string][]float32{}
	for _, dir := range dirs {
		for _, ending := range []string{".npz", ".json"} {
			if from := referencePlace(dir, m.Reference) + ending; isFile(from) && !isFile(place+ending) {
				if err := bring(from, place+ending); err != nil {
					return err
				}
			}
		}
		found, err := m.referenceFeatures(dir)
		if err != nil {
			return err
		}
		for key, vector := range found {
			joined[key] = vector
		}
	}
	if len(joined) == 0 {
		return nil
	}
	path := filepath.Join(out, referencesFolder, m.inReferences(generate.Shard{}))
	store, err := folders.OpenFeatures(path, m.Network, m.Width)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	var keys []string
	var vectors [][]float32
	for _, key := range slices.Sorted(maps.Keys(joined)) {
		if store.Of(key) == nil {
			keys, vectors = append(keys, key), append(vectors, joined[key])
		}
	}
	return store.Keep(keys, vectors)
}

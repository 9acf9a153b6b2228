package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/judge/folders"
)

// measuring is a metric of a prompt set, as an audit's folder remembers it. Of each picture is kept what the metric is
// put together from: its number or, for a distance, its features, which several distances may share. So nothing depends
// on who made which picture.
//
//	values-HASH.jsonl         the numbers by the metric of that hash, one line for each picture
//	features-HASH.bin         the features by the network of that hash, see folders.Features
//	values-HASH.0-of-4.jsonl  by shard 0 of 4
type measuring struct {
	Kind      string `json:"kind"`                // such as fid
	Name      string `json:"name"`                // with its weights
	Network   string `json:"network,omitempty"`   // whose features are kept; empty: a number of each picture is
	Width     int    `json:"width,omitempty"`     // of the features
	Reference string `json:"reference,omitempty"` // what a distance is from, see reference
}

func newMeasuring(m *folders.Metric, reference string) measuring {
	out := measuring{Kind: m.Kind, Name: m.Name, Reference: reference}
	out.Network, out.Width = m.Network()
	return out
}

// isDamaged tells whether the metric cannot be one that newMeasuring made.
func (m measuring) isDamaged() bool {
	isDistance, _ := folders.IsDistance(m.Kind)
	return isDistance != (m.Network != "") || isDistance != (m.Reference != "") || isDistance && m.Width < 1 || m.Width > 1<<20 ||
		!filepath.IsLocal("x"+m.Reference) || strings.ContainsAny(m.Reference, `/\\`)
}

// key tells what is kept of pictures apart.
func (m measuring) key() string {
	if m.Network != "" {
		return m.Network
	}
	return m.Kind + " " + m.Name
}

// file is where a shard keeps it.
func (m measuring) file(shard generate.Shard) string {
	name, ending := "values-"+hashOf(m.key())[:8], ".jsonl"
	if m.Network != "" {
		name, ending = "features-"+hashOf(m.key())[:8], ".bin"
	}
	return name + ofShard(shard) + ending
}

// ofShard is the part of a file's name that tells shards apart.
func ofShard(s generate.Shard) string {
	if s.Of > 1 {
		return fmt.Sprintf(".%d-of-%d", s.Index, s.Of)
	}
	return ""
}

// shardFiles are the files of all shards among the names, by that of an audit that is not divided.
func shardFiles(names []string, whole string) (out []string) {
	ending := filepath.Ext(whole)
	prefix := strings.TrimSuffix(whole, ending) + "."
	for _, name := range names {
		if strings.HasPrefix(name, prefix) && strings.HasSuffix(name, ending) {
			out = append(out, name)
		}
	}
	return out
}

// measures are what metrics found in pictures.
type measures struct {
	values   map[string]float64   // by the pictures' files
	features map[string][]float32 // by the hashes of these
}

// has tells whether a picture was looked at.
func (m measures) has(file string) bool {
	if m.features != nil {
		return m.features[hashOf(file)] != nil
	}
	_, ok := m.values[file]
	return ok
}

// take adds what others found of a picture.
func (m measures) take(of measures, file string) {
	if m.features != nil {
		m.features[hashOf(file)] = of.features[hashOf(file)]
		return
	}
	m.values[file] = of.values[file]
}

// measured is one line of values.
type measured struct {
	File  string  `json:"file"`
	Value float64 `json:"value"`
}

// read reads what all shards found. Lines and records that are torn or damaged are left out.
func (m measuring) read(folder string, names []string) (measures, error) {
	out := measures{values: map[string]float64{}}
	if m.Network != "" {
		out.features = map[string][]float32{}
	}
	for _, name := range shardFiles(names, m.file(generate.Shard{})) {
		path := filepath.Join(folder, name)
		if m.Network != "" {
			found, err := folders.ReadFeatures(path, m.Network, m.Width)
			if err != nil {
				return out, err
			}
			for key, vector := range found {
				if out.features[key] == nil {
					out.features[key] = vector
				}
			}
			continue
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return out, fmt.Errorf("audit: %w", err)
		}
		for line := range bytes.Lines(content) {
			var one measured
			if !bytes.HasSuffix(line, []byte("\n")) || json.Unmarshal(line, &one) != nil || one.File == "" {
				continue
			}
			if _, known := out.values[one.File]; !known {
				out.values[one.File] = one.Value
			}
		}
	}
	return out, nil
}

// write writes what was found of pictures as one file, in their order.
func (m measuring) write(folder string, found measures, files []string) (err error) {
	path := filepath.Join(folder, m.file(generate.Shard{}))
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("audit: %w", err)
	}
	files = slices.DeleteFunc(slices.Clone(files), func(file string) bool { return !found.has(file) })
	k, err := m.open(folder, generate.Shard{})
	if err != nil {
		return err
	}
	if m.Network == "" {
		values := make([]float64, len(files))
		for i, file := range files {
			values[i] = found.values[file]
		}
		return k.keepValues(files, values)
	}
	defer func() { err = errors.Join(err, k.close()) }()
	vectors := make([][]float32, len(files))
	for i, file := range files {
		vectors[i] = found.features[hashOf(file)]
	}
	return k.keepFeatures(files, vectors)
}

// keeper appends to what a shard found.
type keeper struct {
	path     string
	features *folders.Features // nil: values
}

func (m measuring) open(folder string, shard generate.Shard) (k keeper, err error) {
	k.path = filepath.Join(folder, m.file(shard))
	if m.Network != "" {
		k.features, err = folders.OpenFeatures(k.path, m.Network, m.Width)
	}
	return k, err
}

func (k keeper) keepValues(files []string, values []float64) error {
	lines := make([]any, len(files))
	for i, file := range files {
		lines[i] = measured{file, values[i]}
	}
	return appendLines(k.path, lines)
}

func (k keeper) keepFeatures(files []string, vectors [][]float32) error {
	keys := make([]string, len(files))
	for i, file := range files {
		keys[i] = hashOf(file)
	}
	return k.features.Keep(keys, vectors)
}

func (k keeper) close() error {
	if k.features == nil {
		return nil
	}
	return k.features.Close()
}

package weights

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxIndex bounds the size of a shard index; real ones have a few hundred kilobytes.
const maxIndex = 64 << 20

// OpenComponent opens the weights in dir, the folder of one component of a pipeline in the layout of diffusers and
// transformers. The base is the file name without extension: "diffusion_pytorch_model" for a UNet or VAE, "model" for a
// text encoder. The first of these files that exists is taken:
//
//  1. BASE.safetensors, then BASE.safetensors.index.json (a file in shards),
//  2. the same in half precision: BASE.fp16.safetensors, then BASE.safetensors.index.fp16.json,
//  3. the same as PyTorch files: BASE.bin, BASE.bin.index.json, BASE.fp16.bin, BASE.bin.index.fp16.json, where the base
//     "model" becomes "pytorch_model".
//
// It returns an error that lists these names if there is none, and one that names the tensors if an index and its shards
// disagree.
func OpenComponent(dir, base string) (FileSource, error) {
	if !filepath.IsLocal(base) || strings.ContainsAny(base, `/\:`) || base == "." {
		return nil, fmt.Errorf("%s: %q is not a file name; give the base name of a component's weights, such as \"model\"", dir, base)
	}
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("cannot open the component: %w; check the model's folder", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a folder; give the component's folder, or open the file itself", dir)
	}
	candidates := componentFiles(base)
	for _, candidate := range candidates {
		path := filepath.Join(dir, candidate)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if strings.HasSuffix(candidate, ".json") {
			return openShards(dir, candidate)
		}
		return Open(path)
	}
	return nil, fmt.Errorf("%s: found no weights; put one of these files there: %s", dir, strings.Join(candidates, ", "))
}

// componentFiles lists the file names that OpenComponent looks for, in order.
func componentFiles(base string) []string {
	torch := base
	if base == "model" {
		torch = "pytorch_model"
	}
	return []string{
		base + ".safetensors", base + ".safetensors.index.json",
		base + ".fp16.safetensors", base + ".safetensors.index.fp16.json",
		torch + ".bin", torch + ".bin.index.json",
		torch + ".fp16.bin", torch + ".bin.index.fp16.json",
	}
}

// shardedSource is one set of tensors over several files.
type shardedSource struct {
	index    string // path of the index
	shards   map[string]FileSource
	holder   map[string]FileSource // the shard of each tensor
	metadata map[string]string
}

// openShards opens the files that an index names, all in dir.
func openShards(dir, index string) (_ FileSource, err error) {
	path := filepath.Join(dir, index)
	data, err := readSmall(path, maxIndex)
	if err != nil {
		return nil, err
	}
	weightMap, err := parseIndex(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; download the file again", path, err)
	}
	s := &shardedSource{index: path, shards: map[string]FileSource{}, holder: map[string]FileSource{}, metadata: map[string]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	for _, file := range slices.Sorted(maps.Values(weightMap)) {
		if s.shards[file] != nil {
			continue
		}
		shard, err := Open(filepath.Join(dir, file))
		if err != nil {
			return nil, fmt.Errorf("%s: weight_map: %w", path, err)
		}
		s.shards[file] = shard
		maps.Copy(s.metadata, shard.Metadata())
	}
	var missing, unlisted []string
	for file, shard := range s.shards {
		for _, name := range shard.Names() {
			if weightMap[name] != file {
				unlisted = append(unlisted, fmt.Sprintf("%s (%s)", name, file))
				continue
			}
			s.holder[name] = shard
		}
	}
	for name, file := range weightMap {
		if s.holder[name] == nil {
			missing = append(missing, fmt.Sprintf("%s (%s)", name, file))
		}
	}
	if len(missing)+len(unlisted) > 0 {
		slices.Sort(missing)
		slices.Sort(unlisted)
		return nil, fmt.Errorf("%s: weight_map does not match the shards (missing there: %s; only there: %s); download the component's files again",
			path, few(missing), few(unlisted))
	}
	return s, nil
}

// parseIndex returns the weight_map of a shard index: tensor name → file name. File names are plain names in the
// index's own folder, whatever the index says.
func parseIndex(data []byte) (map[string]string, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("the index is not valid UTF-8")
	}
	var weightMap map[string]string
	r := newJSONReader(data)
	err := r.object("the index", func(key string) error {
		if key != "weight_map" { // "metadata": sizes, which are checked better against the shards themselves
			return r.skip(key)
		}
		weightMap = map[string]string{}
		return r.object("weight_map", func(name string) error {
			file, err := r.text(fmt.Sprintf("weight_map: %q", name))
			if err != nil {
				return err
			}
			if !filepath.IsLocal(file) || strings.ContainsAny(file, `/\:`) || file == "." {
				return fmt.Errorf("weight_map: %q: %q is not a plain file name in the index's folder", name, file)
			}
			weightMap[name] = file
			return nil
		})
	})
	if err == nil {
		err = r.end(" \t\r\n")
	}
	if err == nil && weightMap == nil {
		err = errors.New("weight_map is missing")
	}
	return weightMap, err
}

// skip reads over one value of any form.
func (r *jsonReader) skip(what string) error {
	for depth := 0; ; {
		token, err := r.token(what)
		if err != nil {
			return err
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}

// readSmall reads a regular file of at most limit bytes.
func readSmall(path string, limit int64) ([]byte, error) {
	m, err := openMapping(path)
	if err != nil {
		return nil, err
	}
	if int64(len(m.data)) > limit {
		return nil, fmt.Errorf("%s: %d bytes are more than the %d that an index may have; download the file again", path, len(m.data), limit)
	}
	var data []byte
	err = m.guard(func() error {
		data = slices.Clone(m.data)
		return nil
	})
	return data, err
}

func (s *shardedSource) Names() []string             { return slices.Sorted(maps.Keys(s.holder)) }
func (s *shardedSource) Metadata() map[string]string { return maps.Clone(s.metadata) }

func (s *shardedSource) Path(name string) string {
	if shard := s.holder[name]; shard != nil {
		return shard.Path(name)
	}
	return ""
}

func (s *shardedSource) Tensor(name string) (*Tensor, error) {
	if shard := s.holder[name]; shard != nil {
		return shard.Tensor(name)
	}
	return nil, fmt.Errorf("%s: there is no tensor %q in the shards; check the name", s.index, name)
}

func (s *shardedSource) Close() error {
	var err error
	for _, shard := range s.shards {
		err = errors.Join(err, shard.Close())
	}
	return err
}

package clip

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/vision"
	"github.com/resalign/resalign/weights"
)

// checkpoint is an open CLIP model whose architecture is known.
type checkpoint struct {
	path         string
	source       weights.FileSource
	have         map[string]bool
	dialect      dialect
	architecture architecture
}

// openCheckpoint opens a folder with config.json and weights, or a file of weights. The architecture of a file is that of
// the config.json beside it, else it must be one of OpenAI's, which the shapes tell.
func openCheckpoint(path string) (_ *checkpoint, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot open CLIP: %w; give the folder or file of a CLIP model", path, errors.Unwrap(err))
	}
	c := &checkpoint{path: path, have: map[string]bool{}}
	config := filepath.Join(path, "config.json")
	if info.IsDir() {
		if c.architecture, err = readArchitecture(config); err != nil {
			return nil, err
		}
		c.source, err = weights.OpenComponent(path, "model")
	} else {
		config = filepath.Join(filepath.Dir(path), "config.json")
		c.source, err = weights.Open(path)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.source.Close()
		}
	}()
	for _, name := range c.source.Names() {
		c.have[name] = true
	}
	var known bool
	if c.dialect, known = dialectOf(c.have); !known {
		return nil, fmt.Errorf("%s: not a CLIP model with a vision transformer: it has neither vision_model.embeddings.patch_embedding.weight nor visual.conv1.weight; give the folder or file of one", path)
	}
	if info.IsDir() {
		return c, nil
	}
	if _, err := os.Stat(config); err == nil {
		c.architecture, err = readArchitecture(config)
		return c, err
	}
	c.architecture, err = c.recognise()
	return c, err
}

// recognise finds the preset with the sizes of the vision tower.
func (c *checkpoint) recognise() (architecture, error) {
	shape := func(name string) []int {
		t, err := c.source.Tensor(c.dialect.find(name).name)
		if err != nil {
			return nil
		}
		return t.Shape
	}
	kernel, positions := shape("vision_model.embeddings.patch_embedding.weight"), shape("vision_model.embeddings.position_embedding.weight")
	var names []string
	for name, a := range presets() {
		v := a.vision
		last := fmt.Sprintf("vision_model.encoder.layers.%d.mlp.fc1.weight", v.Layers-1)
		beyond := fmt.Sprintf("vision_model.encoder.layers.%d.mlp.fc1.weight", v.Layers)
		if slices.Equal(kernel, []int{v.Width, 3, v.Patch, v.Patch}) && slices.Equal(positions, []int{v.Patches() + 1, v.Width}) &&
			shape(last) != nil && shape(beyond) == nil {
			return a, nil
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return architecture{}, fmt.Errorf("%s: the sizes of this CLIP model are none of OpenAI's (%s; first layer %v, positions %v); put its config.json beside it",
		c.path, strings.Join(names, ", "), kernel, positions)
}

// load reads the parameters of the towers. Every missing name, every name that is not part of the model and every wrong
// shape is in one error. Names for which also holds are other parts of the file, and the text tower may stay unread.
func (c *checkpoint) load(also func(string) bool, towers ...[]nn.Spec) ([]parameters, error) {
	used := map[string]bool{}
	var missing, wrong []string
	loaded := make([]parameters, len(towers))
	fail := func(err error) ([]parameters, error) {
		for _, p := range loaded {
			engine.Free(p.tensors...)
		}
		return nil, err
	}
	for i, specs := range towers {
		sum := sha256.New()
		for _, s := range specs {
			at := c.dialect.find(s.Name)
			if !c.have[at.name] {
				if !slices.Contains(missing, at.name) {
					missing = append(missing, at.name)
				}
				continue
			}
			used[at.name] = true
			t, err := c.source.Tensor(at.name)
			if err != nil {
				return fail(err)
			}
			if want := at.shape(s.Shape); !slices.Equal(t.Shape, want) {
				wrong = append(wrong, fmt.Sprintf("%s is %v instead of %v", at.name, t.Shape, want))
				continue
			}
			if len(missing)+len(wrong) > 0 {
				continue // nothing will come of it
			}
			values, err := at.values(t, s.Shape)
			if err != nil {
				return fail(fmt.Errorf("%s: tensor %q: %w", c.path, at.name, err))
			}
			digest(sum, values)
			loaded[i].tensors = append(loaded[i].tensors, engine.Float32s(values, s.Shape...))
		}
		loaded[i].fingerprint = hex.EncodeToString(sum.Sum(nil)[:6])
	}
	var unused []string
	for _, name := range c.source.Names() {
		if !used[name] && !c.dialect.idle(name) && (also == nil || !also(name)) && (len(towers) > 1 || !c.dialect.text(name)) {
			unused = append(unused, name)
		}
	}
	if err := misfit(missing, unused, wrong); err != nil {
		return fail(fmt.Errorf("%s: the weights do not fit CLIP's %s: %w", c.path, c.architecture.name(), err))
	}
	return loaded, nil
}

// parameters are those of one tower, in the order of its specs; the fingerprint is a hash of the vision tower's values,
// which is the same whatever names and types a file gives them.
type parameters struct {
	tensors     []*engine.Tensor
	fingerprint string
}

// misfit lists every difference between a file and what it should be, or is nil.
func misfit(missing, unused, wrong []string) error {
	var parts []string
	for _, part := range []struct {
		what  string
		names []string
	}{{"tensors are missing", missing}, {"tensors are not part of it", unused}, {"tensors have the wrong shape", wrong}} {
		if len(part.names) > 0 {
			parts = append(parts, part.what+": "+strings.Join(part.names, ", "))
		}
	}
	if len(parts) == 0 {
		return nil
	}
	return errors.New(strings.Join(parts, "; "))
}

// shape is that of the file's tensor for a parameter of the given shape.
func (o origin) shape(parameter []int) []int {
	want := slices.Clone(parameter)
	if o.transposed {
		slices.Reverse(want)
	}
	if o.part > 0 {
		want[0] *= 3
	}
	return want
}

// values takes a parameter out of the file's tensor.
func (o origin) values(t *weights.Tensor, parameter []int) ([]float32, error) {
	var err error
	if o.part > 0 {
		t, err = t.Rows((o.part-1)*parameter[0], o.part*parameter[0])
	}
	if err == nil && o.transposed {
		t, err = t.Transposed()
	}
	if err != nil {
		return nil, err
	}
	return t.Float32()
}

// digest adds the bits of the values to a hash.
func digest(sum hash.Hash, values []float32) {
	buffer := make([]byte, 0, 1<<14)
	for chunk := range slices.Chunk(values, cap(buffer)/4) {
		buffer = buffer[:0]
		for _, v := range chunk {
			buffer = binary.LittleEndian.AppendUint32(buffer, math.Float32bits(v))
		}
		sum.Write(buffer)
	}
}

// newTower lays out the vision tower; its configuration was validated when it was read.
func (c *checkpoint) newTower() (*vision.CLIP, error) {
	tower, err := vision.NewCLIP(c.architecture.vision)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.path, err)
	}
	return tower, nil
}

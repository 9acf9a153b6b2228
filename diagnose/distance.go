package diagnose

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

// distances compares the weights of two UNets, tensor by tensor, in float64. They must have the same names and shapes.
func distances(base, model string) (_ []Length, err error) {
	first, err := openUNet(base)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, first.Close()) }()
	second, err := openUNet(model)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, second.Close()) }()
	names := slices.Clone(first.Names())
	if other := second.Names(); len(other) != len(names) {
		return nil, fmt.Errorf("the UNet of %s has %d tensors and that of %s has %d; diagnose models of one architecture", base, len(names), model, len(other))
	}
	var out []Length
	for _, name := range names {
		a, err := first.Tensor(name)
		if err != nil {
			return nil, fmt.Errorf("the UNet of %s: %w", base, err)
		}
		b, err := second.Tensor(name)
		if err != nil {
			return nil, fmt.Errorf("the UNets of %s and %s differ: %w; diagnose models of one architecture", base, model, err)
		}
		if !slices.Equal(a.Shape, b.Shape) {
			return nil, fmt.Errorf("tensor %s is %v in the UNet of %s and %v in that of %s; diagnose models of one architecture", name, a.Shape, base, b.Shape, model)
		}
		l, err := distance(name, a, b)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

func openUNet(dir string) (weights.FileSource, error) {
	return weights.OpenComponent(filepath.Join(dir, "unet"), sd.UNetWeightsName)
}

func distance(name string, base, model *weights.Tensor) (Length, error) {
	l := Length{Name: name}
	x, err := base.Float64()
	if err != nil {
		return l, fmt.Errorf("tensor %s: %w", name, err)
	}
	y, err := model.Float64()
	if err != nil {
		return l, fmt.Errorf("tensor %s: %w", name, err)
	}
	for i := range x {
		l.Distance += (y[i] - x[i]) * (y[i] - x[i])
		l.Base += x[i] * x[i]
	}
	l.Distance, l.Base, l.Parameters = math.Sqrt(l.Distance), math.Sqrt(l.Base), len(x)
	if math.IsNaN(l.Distance) || math.IsInf(l.Distance, 0) || math.IsInf(l.Base, 0) {
		return l, fmt.Errorf("tensor %s holds numbers that are not finite; a model with such weights cannot draw", name)
	}
	return l, nil
}

// byBlock joins the tensors of each block, in the order in which the network runs.
func byBlock(layers []Length) []Length {
	at := map[string]int{}
	var blocks []Length
	for _, l := range layers {
		name := block(l.Name)
		i, ok := at[name]
		if !ok {
			i = len(blocks)
			at[name] = i
			blocks = append(blocks, Length{Name: name})
		}
		blocks[i] = join(blocks[i], l)
	}
	slices.SortStableFunc(blocks, func(a, b Length) int { return place(a.Name) - place(b.Name) })
	return blocks
}

// join adds up two sets of weights under the name of the first.
func join(a, b Length) Length {
	a.Distance, a.Base = math.Hypot(a.Distance, b.Distance), math.Hypot(a.Base, b.Base)
	a.Parameters += b.Parameters
	return a
}

// block is the part of a UNet that a tensor belongs to: down_blocks.0.resnets.1.conv1.weight to "down 0 resnets".
func block(tensor string) string {
	parts := strings.Split(tensor, ".")
	kind := func(i int) string {
		if i < len(parts) {
			return parts[i]
		}
		return ""
	}
	switch parts[0] {
	case "down_blocks":
		return strings.TrimSpace("down " + kind(1) + " " + kind(2))
	case "up_blocks":
		return strings.TrimSpace("up " + kind(1) + " " + kind(2))
	case "mid_block":
		return strings.TrimSpace("mid " + kind(1))
	case "conv_in":
		return "input"
	case "conv_norm_out", "conv_out":
		return "output"
	case "time_embedding":
		return "time embedding"
	}
	return parts[0]
}

// place orders blocks: input, embeddings, down, middle, up, output. Names sort within each.
func place(block string) int {
	for i, first := range []string{"input", "time", "add", "down", "mid", "up", "output"} {
		if strings.HasPrefix(block, first) {
			return i
		}
	}
	return len("input") // what is not known comes after the middle
}

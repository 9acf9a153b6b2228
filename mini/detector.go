package mini

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

// NoShape is what the detector calls pictures that show none of the shapes.
const NoShape = "none"

// Detector tells which shape a picture shows, in which colour: a small convolutional network with two heads.
type Detector struct {
	Shapes, Colours []string  // the classes; NoShape is the last of Shapes
	Losses          []float64 // of every training step; nil for one that was loaded

	params *sd.Params
	detect *engine.Function
}

// Detection is what the detector says about one picture.
type Detection struct {
	Shape, Colour string // the likeliest classes; the colour means nothing where the shape is NoShape
	// ShapeScores and ColourScores are the probabilities of the detector's Shapes and Colours.
	ShapeScores, ColourScores []float64
}

// Is tells whether the picture shows the pair.
func (d Detection) Is(p Pair) bool { return d.Colour == p.Colour && d.Shape == p.Shape }

// detectorNet is the architecture: 3×3 convolutions, then one hidden layer for both heads.
type detectorNet struct {
	convs                 []nn.Conv
	hidden, shape, colour nn.Linear
	specs                 []nn.Spec
}

func newDetectorNet(shapes, colours int) detectorNet {
	b := nn.NewBuilder()
	var n detectorNet
	in, side := 3, Side
	for i, layer := range []struct{ channels, stride int }{{24, 1}, {32, 2}, {48, 1}, {64, 2}} {
		n.convs = append(n.convs, nn.NewConv(b.At("convs").At(i), in, layer.channels, ad.Same(3, layer.stride)))
		in, side = layer.channels, side/layer.stride
	}
	const width = 96
	n.hidden = nn.NewLinear(b.At("hidden"), in*side*side, width, true)
	n.shape = nn.NewLinear(b.At("shape"), width, shapes, true)
	n.colour = nn.NewLinear(b.At("colour"), width, colours, true)
	n.specs = b.Specs()
	return n
}

// forward maps pictures [B, 3, 16, 16] to the probabilities of the shapes [B, shapes] and of the colours [B, colours].
func (n detectorNet) forward(w *nn.Weights, pictures *ad.Value) (shapes, colours *ad.Value) {
	x := ad.Transpose(pictures, 0, 2, 3, 1)
	for _, c := range n.convs {
		x = nn.SiLU(c.Apply(w, x))
	}
	x = ad.Reshape(x, x.Dim(0), x.Size()/x.Dim(0))
	x = nn.SiLU(n.hidden.Apply(w, x))
	return ad.Softmax(n.shape.Apply(w, x)), ad.Softmax(n.colour.Apply(w, x))
}

func newDetector(e *engine.Engine, net detectorNet, params *sd.Params, shapes, colours []string) (*Detector, error) {
	n := len(params.Tensors)
	detect, err := ad.Compile(e, "detect", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		s, c := net.forward(params.Weights(in[:n]), in[n])
		return []*ad.Value{ad.Concat(1, s, c)}
	})
	if err != nil {
		params.Free()
		return nil, err
	}
	return &Detector{Shapes: shapes, Colours: colours, params: params, detect: detect}, nil
}

// Free releases the numbers and the compiled function.
func (d *Detector) Free() {
	d.params.Free()
	d.detect.Free()
}

// Detect looks at pictures [3, 16, 16] in [−1, 1]; values outside are clipped, as saving a picture would. What it says
// about a picture does not depend on the others. Pictures of another size, or with values that are not numbers, are an
// error.
func (d *Detector) Detect(ctx context.Context, pictures [][]float32) ([]Detection, error) {
	clipped := make([][]float32, len(pictures))
	for i, p := range pictures {
		clipped[i] = make([]float32, len(p))
		for k, v := range p {
			if math.IsNaN(float64(v)) {
				return nil, fmt.Errorf("picture %d holds a value that is not a number", i)
			}
			clipped[i][k] = min(1, max(-1, v))
		}
	}
	scores, err := inBatches(ctx, d.detect, d.params.Tensors, clipped, []int{3, Side, Side})
	if err != nil {
		return nil, fmt.Errorf("detector: %w", err)
	}
	out := make([]Detection, len(scores))
	for i, s := range scores {
		shape, shapeScores := likeliest(d.Shapes, s[:len(d.Shapes)])
		colour, colourScores := likeliest(d.Colours, s[len(d.Shapes):])
		out[i] = Detection{Shape: shape, Colour: colour, ShapeScores: shapeScores, ColourScores: colourScores}
	}
	return out, nil
}

func likeliest(classes []string, scores []float32) (class string, all []float64) {
	best := 0
	for i, s := range scores {
		all = append(all, float64(s))
		if s > scores[best] {
			best = i
		}
	}
	return classes[best], all
}

// The metadata of a detector's file.
const (
	detectorFormat  = "resalign-detector"
	detectorVersion = "1"
	detectorInput   = "rgb 16x16 in [-1, 1]"
)

// Save writes the detector as a safetensors file. Its metadata says what kind of file it is, in which version, what
// pictures the network takes and the names of its classes.
func (d *Detector) Save(path string) error {
	return writeParams(path, d.params, map[string]string{
		"format": detectorFormat, "version": detectorVersion, "input": detectorInput,
		"shapes": strings.Join(d.Shapes, ","), "colours": strings.Join(d.Colours, ","),
	})
}

// LoadDetector reads a detector that [Detector.Save] wrote. Errors name the file and what is wrong with it.
func LoadDetector(e *engine.Engine, path string) (*Detector, error) {
	source, err := weights.Open(path)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	return loadDetector(e, source, path)
}

func loadDetector(e *engine.Engine, source weights.FileSource, path string) (*Detector, error) {
	metadata := source.Metadata()
	for _, field := range []struct{ name, want string }{{"format", detectorFormat}, {"version", detectorVersion}, {"input", detectorInput}} {
		if got := metadata[field.name]; got != field.want {
			return nil, fmt.Errorf("%s: the metadata says %s = %q, but this program reads detectors with %q; take one that resalign mini wrote",
				path, field.name, got, field.want)
		}
	}
	shapes, err := classes(path, metadata, "shapes")
	if err != nil {
		return nil, err
	}
	if !slices.Contains(shapes, NoShape) {
		return nil, fmt.Errorf("%s: the metadata's shapes lack %q; take a detector that resalign mini wrote", path, NoShape)
	}
	colours, err := classes(path, metadata, "colours")
	if err != nil {
		return nil, err
	}
	net := newDetectorNet(len(shapes), len(colours))
	params, err := sd.LoadParams(nil, source, path, net.specs, nil, nil)
	if err != nil {
		return nil, err
	}
	return newDetector(e, net, params, shapes, colours)
}

// maxClasses bounds what a damaged file can ask for.
const maxClasses = 1000

// classes reads a list of names from the metadata of a detector.
func classes(path string, metadata map[string]string, field string) ([]string, error) {
	names := strings.Split(metadata[field], ",")
	if len(names) > maxClasses {
		return nil, fmt.Errorf("%s: the metadata's %s are %d names; at most %d are plausible", path, field, len(names), maxClasses)
	}
	seen := map[string]bool{}
	for _, name := range names {
		if name == "" || seen[name] {
			return nil, fmt.Errorf("%s: the metadata's %s = %q must be different names with commas between; take a detector that resalign mini wrote",
				path, field, metadata[field])
		}
		seen[name] = true
	}
	return names, nil
}

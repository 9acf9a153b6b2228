// Package classifier scores pictures with any image classifier in an ONNX file: it is given the labels of the outputs and how
// pictures are prepared, which the file does not say.
package classifier

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/onnx"
	"github.com/resalign/resalign/score"
)

// Activation turns a network's outputs into scores from 0 to 1.
type Activation string

// The activations. Softmax is for labels of which exactly one holds, Sigmoid for labels that hold or not by themselves, and
// None for networks that end in one of the two.
const (
	Softmax Activation = "softmax"
	Sigmoid Activation = "sigmoid"
	None    Activation = "none"
)

// Fit says how a picture becomes a rectangle of the network's size.
type Fit string

// Stretch resizes to the size whatever the shape of the picture. Crop resizes the short side and cuts the centre out.
const (
	Stretch Fit = "stretch"
	Crop    Fit = "crop"
)

// The mean and the standard deviation of ImageNet's pixels, which most classifiers are trained with.
var (
	ImageNetMean = [3]float32{0.485, 0.456, 0.406}
	ImageNetStd  = [3]float32{0.229, 0.224, 0.225}
)

// Options say what a file does not. Labels are needed; the others have defaults.
type Options struct {
	Labels     []string    // of the outputs, in their order; see [ReadLabels]
	Mean, Std  [3]float32  // of red, green and blue from 0 to 1: the network sees (v − Mean)/Std. A Std of zeros is ones.
	Activation Activation  // Softmax unless set
	Fit        Fit         // Stretch unless set
	ShortSide  int         // what Crop resizes the short side to, such as 256; the network's size unless set
	Filter     data.Filter // of the resizing, as Pillow's; Lanczos unless set. Most classifiers are trained with Bilinear.
	Width      int         // of the network's pictures, where the file leaves it open
	Height     int
	Batch      int // pictures computed at once; unset it is 1 on the Go engine and 16 on others, or what the file says
}

// Detector is a classifier on an engine. It is safe for concurrent use; calls at the same time share the processor.
type Detector struct {
	options    Options
	program    *onnx.Program
	path, name string
	pixelsLast bool // the network takes [batch, height, width, 3]
}

var _ score.Detector = (*Detector)(nil)

// maxSide bounds the pictures that a network can be given.
const maxSide = 4096

// Open reads a classifier from an .onnx file. Weights that it keeps in other files must be in the same folder.
func Open(e *engine.Engine, path string, o Options) (*Detector, error) {
	m, err := onnx.Open(path)
	if err != nil {
		return nil, err
	}
	if len(m.Inputs) != 1 || len(m.Outputs) != 1 {
		return nil, fmt.Errorf("%s has %d inputs and %d outputs; an image classifier has one of each", path, len(m.Inputs), len(m.Outputs))
	}
	d := &Detector{options: o, path: path}
	batch, err := d.size(m.Inputs[0])
	if err != nil {
		return nil, err
	}
	if err := d.complete(m.Outputs[0]); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if d.options.Batch == 0 {
		if d.options.Batch = 1; e.NativeConvolutions() {
			d.options.Batch = 16
		}
		if batch > 0 {
			d.options.Batch = batch
		}
	}
	if b := d.options.Batch; b < 1 || b > 1024 {
		return nil, fmt.Errorf("%s: batches of %d pictures are not possible; use 1 to 1024", path, b)
	}
	version, err := hash(path)
	if err != nil {
		return nil, err
	}
	d.name = fmt.Sprintf("classifier %s %s", filepath.Base(path), version)
	d.program, err = onnx.Compile(e, m, onnx.Options{ChannelsLast: !d.pixelsLast})
	return d, err
}

// hash is the beginning of the SHA-256 of a file.
func hash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("classifier: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("classifier: %w", err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))[:12], nil
}

// size finds the size of the network's pictures, and the batch if the file fixes it.
func (d *Detector) size(in onnx.Port) (batch int, err error) {
	o := &d.options
	if in.Shape != nil {
		if len(in.Shape) != 4 {
			return 0, fmt.Errorf("%s: the input has the shape %v, not that of pictures, [batch, 3, height, width]", d.path, in.Shape)
		}
		batch = in.Shape[0]
		height, width := in.Shape[2], in.Shape[3]
		switch {
		case in.Shape[1] == 3 || in.Shape[1] < 0 && in.Shape[3] != 3:
		case in.Shape[3] == 3:
			d.pixelsLast = true
			height, width = in.Shape[1], in.Shape[2]
		default:
			return 0, fmt.Errorf("%s: the input has the shape %v; only pictures of three colours are supported", d.path, in.Shape)
		}
		for _, side := range []struct {
			file   int
			option *int
		}{{height, &o.Height}, {width, &o.Width}} {
			if side.file > 0 && *side.option > 0 && *side.option != side.file {
				return 0, fmt.Errorf("%s: its pictures are %d×%d pixels, so they cannot be %d×%d; leave the size out", d.path, width, height, o.Width, o.Height)
			}
			if side.file > 0 {
				*side.option = side.file
			}
		}
	}
	if o.Width < 1 || o.Height < 1 || o.Width > maxSide || o.Height > maxSide {
		return 0, fmt.Errorf("%s: the size of its pictures is %d×%d; give one from 1 to %d, such as 224×224, which the file leaves open", d.path, o.Width, o.Height, maxSide)
	}
	return batch, nil
}

// complete fills in defaults and checks the options.
func (d *Detector) complete(out onnx.Port) error {
	o := &d.options
	o.Labels = slices.Clone(o.Labels)
	if o.Std == ([3]float32{}) {
		o.Std = [3]float32{1, 1, 1}
	}
	if o.Activation == "" {
		o.Activation = Softmax
	}
	if o.Fit == "" {
		o.Fit = Stretch
	}
	if o.ShortSide == 0 {
		o.ShortSide = min(o.Width, o.Height)
	}
	if err := checkLabels(o.Labels); err != nil {
		return err
	}
	for c := range 3 {
		if !(o.Std[c] > 0) || math.IsInf(float64(o.Std[c]), 0) || math.IsNaN(float64(o.Mean[c])) || math.IsInf(float64(o.Mean[c]), 0) {
			return fmt.Errorf("the mean %v and the deviation %v are not possible; deviations are above 0", o.Mean, o.Std)
		}
	}
	switch {
	case o.Activation != Softmax && o.Activation != Sigmoid && o.Activation != None:
		return fmt.Errorf("the activation %q is unknown; use softmax, sigmoid or none", o.Activation)
	case o.Activation == Softmax && len(o.Labels) == 1:
		return errors.New("softmax makes the score of a single label 1 for every picture; use sigmoid")
	case o.Fit != Stretch && o.Fit != Crop:
		return fmt.Errorf("the fit %q is unknown; use stretch or crop", o.Fit)
	case o.Fit == Crop && (o.Width != o.Height || o.ShortSide < o.Width || o.ShortSide > maxSide):
		return fmt.Errorf("%d×%d cannot be cut out of pictures with a short side of %d; use a square and a short side that holds it", o.Width, o.Height, o.ShortSide)
	case o.Filter < data.Lanczos || o.Filter > data.Bilinear:
		return fmt.Errorf("the filter %d is unknown; use Lanczos, Bicubic or Bilinear", o.Filter)
	}
	if n := 1; len(out.Shape) > 1 && slices.Min(out.Shape[1:]) > 0 {
		for _, s := range out.Shape[1:] {
			n = min(n*s, maxLabels+1)
		}
		if n != len(o.Labels) {
			return fmt.Errorf("it has %d outputs, but there are %d labels; name one for each output, in their order", n, len(o.Labels))
		}
	}
	return nil
}

// Name says which file it is, and the beginning of its SHA-256.
func (d *Detector) Name() string { return d.name }

// Labels are those of the outputs.
func (d *Detector) Labels() []string { return slices.Clone(d.options.Labels) }

// Free releases the compiled programs.
func (d *Detector) Free() { d.program.Free() }

// Detect scores pictures: each finding has a score for every label.
func (d *Detector) Detect(ctx context.Context, pictures []*data.RGB) ([]score.Finding, error) {
	o := d.options
	each := o.Width * o.Height * 3
	findings := make([]score.Finding, 0, len(pictures))
	for from := 0; from < len(pictures); from += o.Batch {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		batch := pictures[from:min(from+o.Batch, len(pictures))]
		pixels := make([]float32, o.Batch*each)
		for i, p := range batch {
			if err := d.prepare(p, pixels[i*each:(i+1)*each]); err != nil {
				return nil, fmt.Errorf("classifier: picture %d %w", from+i+1, err)
			}
		}
		outputs, err := d.run(pixels)
		if err != nil {
			return nil, err
		}
		for i := range batch {
			scores, err := activate(outputs[i*len(o.Labels):(i+1)*len(o.Labels)], o.Activation)
			if err != nil {
				return nil, fmt.Errorf("%s: picture %d: %w", d.path, from+i+1, err)
			}
			f := score.Finding{Scores: make(map[string]float64, len(scores))}
			for k, label := range o.Labels {
				f.Scores[label] = scores[k]
			}
			findings = append(findings, f)
		}
	}
	return findings, nil
}

// prepare writes a picture as [height, width, 3], with mean and deviation taken out.
func (d *Detector) prepare(p *data.RGB, out []float32) error {
	o := d.options
	if p == nil || p.Width < 1 || p.Height < 1 || len(p.Pix) != 3*p.Width*p.Height {
		return errors.New("has no pixels; leave it out")
	}
	width, height := o.Width, o.Height
	if o.Fit == Crop {
		short := min(p.Width, p.Height)
		width, height = o.ShortSide*p.Width/short, o.ShortSide*p.Height/short // rounded down, as torchvision does
		if width > data.MaxPixels/height {
			return fmt.Errorf("is %d×%d, too elongated to be resized to a short side of %d; crop it", p.Width, p.Height, o.ShortSide)
		}
	}
	if p.Width != width || p.Height != height {
		p = p.Resize(width, height, o.Filter)
	}
	if width != o.Width || height != o.Height {
		margin := func(side, kept int) int { return int(math.RoundToEven(float64(side-kept) / 2)) }
		p = p.Crop(margin(width, o.Width), margin(height, o.Height), o.Width, o.Height)
	}
	var table [3][256]float32
	for c := range table {
		for v := range table[c] {
			table[c][v] = (float32(v)/255 - o.Mean[c]) / o.Std[c]
		}
	}
	for i, v := range p.Pix {
		out[i] = table[i%3][v]
	}
	return nil
}

// run computes the outputs [batch, labels] for pixels [batch, height, width, 3].
func (d *Detector) run(pixels []float32) ([]float32, error) {
	o := d.options
	input := engine.Float32s(pixels, o.Batch, o.Height, o.Width, 3)
	defer engine.Free(input)
	outputs, err := d.program.Run(input)
	if err != nil {
		return nil, err
	}
	defer engine.Free(outputs...)
	values, err := engine.Values(outputs[0])
	if err == nil && len(values) != o.Batch*len(o.Labels) {
		err = fmt.Errorf("%s gives the outputs %v, but there are %d labels for each of %d pictures", d.path, engine.Shape(outputs[0]), len(o.Labels), o.Batch)
	}
	return values, err
}

// activate turns outputs into scores, in float64.
func activate(outputs []float32, kind Activation) ([]float64, error) {
	scores := make([]float64, len(outputs))
	sum := 0.0
	for i, v := range outputs {
		x := float64(v)
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return nil, errors.New("the network's output is not a number; its weights are broken, or the mean and the deviation are not its own")
		}
		switch kind {
		case Sigmoid:
			x = 1 / (1 + math.Exp(-x))
		case Softmax:
			x = math.Exp(x - float64(slices.Max(outputs)))
			sum += x
		}
		scores[i] = x
	}
	if kind == Softmax {
		for i := range scores {
			scores[i] /= sum
		}
	}
	return scores, nil
}

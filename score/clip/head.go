package clip

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/weights"
)

// Head judges pictures by their embeddings.
type Head interface {
	// Judge returns one finding for each embedding, which is as [Model.Embed] gives it. It returns an error for embeddings of
	// another width.
	Judge(embeddings [][]float32) ([]score.Finding, error)
	// Width is how many numbers the embeddings must have.
	Width() int
	// Name says which head it is, with a fingerprint of its weights.
	Name() string
}

// Detector is a head on a model: a [score.Detector].
type Detector struct {
	model     *Model
	head      Head
	transform Transform
	owns      bool // the model, which is then freed with the detector
}

// NewDetector joins a model and a head. It returns an error if the head is for embeddings of another width. The model may
// serve several detectors, and is not freed with them.
func NewDetector(model *Model, head Head, transform Transform) (*Detector, error) {
	if model.Width() != head.Width() {
		return nil, fmt.Errorf("%s takes embeddings of %d numbers, but those of %s have %d; give the CLIP model that the head was trained on",
			head.Name(), head.Width(), model.Name(), model.Width())
	}
	return &Detector{model: model, head: head, transform: transform}, nil
}

// openDetector opens the vision tower for a head that was read.
func openDetector(e *engine.Engine, clipPath string, head Head, transform Transform) (*Detector, error) {
	model, err := OpenVision(e, clipPath)
	if err != nil {
		return nil, err
	}
	d, err := NewDetector(model, head, transform)
	if err != nil {
		model.Close()
		return nil, err
	}
	d.owns = true
	return d, nil
}

// Detect implements [score.Detector].
func (d *Detector) Detect(ctx context.Context, pictures []*data.RGB) ([]score.Finding, error) {
	embeddings, err := d.model.Embed(ctx, pictures, d.transform)
	if err != nil {
		return nil, err
	}
	return d.head.Judge(embeddings)
}

// Name implements [score.Detector]: the head, the model and the transform.
func (d *Detector) Name() string {
	return d.head.Name() + " on " + d.model.Name() + ", " + d.transform.String()
}

// Model is the model, for further heads on the same embeddings.
func (d *Detector) Model() *Model { return d.model }

// Close frees the model, unless it was given to [NewDetector].
func (d *Detector) Close() {
	if d.owns {
		d.model.Close()
	}
}

// dense is a linear layer, y = W·x + b.
type dense struct {
	in, out int
	weight  []float32 // [out, in]
	bias    []float32 // [out]
}

func (l dense) apply(x []float64) []float64 {
	y := make([]float64, l.out)
	for o := range y {
		sum := float64(l.bias[o])
		for i, w := range l.weight[o*l.in : (o+1)*l.in] {
			sum += float64(w) * x[i]
		}
		y[o] = sum
	}
	return y
}

// widen checks the width of an embedding and gives it in float64, of length one if wanted.
func widen(embedding []float32, width int, normalised bool, who string) ([]float64, error) {
	if len(embedding) != width {
		return nil, fmt.Errorf("%s takes embeddings of %d numbers, not %d; give the CLIP model that it was trained on", who, width, len(embedding))
	}
	x, scale := make([]float64, width), 1.0
	if normalised {
		scale = 1 / max(norm(embedding), 1e-12)
	}
	for i, v := range embedding {
		x[i] = float64(v) * scale
	}
	return x, nil
}

func norm(x []float32) float64 {
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum)
}

func sigmoid(x float64) float64 { return 1 / (1 + math.Exp(-x)) }

// activate applies an activation in place; none leaves the numbers as they are.
func activate(name string, x []float64) {
	for i, v := range x {
		switch name {
		case "relu":
			x[i] = max(v, 0)
		case "gelu":
			x[i] = v * (1 + math.Erf(v/math.Sqrt2)) / 2
		case "quick_gelu":
			x[i] = v * sigmoid(1.702*v)
		case "tanh":
			x[i] = math.Tanh(v)
		}
	}
}

// softmax replaces logits by probabilities.
func softmax(x []float64) {
	largest, sum := slices.Max(x), 0.0
	for i, v := range x {
		x[i] = math.Exp(v - largest)
		sum += x[i]
	}
	for i := range x {
		x[i] /= sum
	}
}

// tensorFile is a small file of weights, read whole.
type tensorFile struct {
	path        string
	names       []string
	tensors     map[string]*weights.Tensor
	metadata    map[string]string
	fingerprint string
}

// maxHeadBytes bounds what a head may take; the largest known has 4 MB.
const maxHeadBytes = 1 << 28

// readTensors opens a safetensors or PyTorch file of a head.
func readTensors(path string) (*tensorFile, error) {
	source, err := weights.Open(path)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	return collect(path, source, func(string) bool { return true })
}

// collect reads the tensors of a source for which wanted holds.
func collect(path string, source weights.Source, wanted func(string) bool) (*tensorFile, error) {
	f := &tensorFile{path: path, tensors: map[string]*weights.Tensor{}, metadata: source.Metadata()}
	sum, size := sha256.New(), 0
	for _, name := range source.Names() {
		if !wanted(name) {
			continue
		}
		f.names = append(f.names, name)
		t, err := source.Tensor(name)
		if err != nil {
			return nil, err
		}
		if size += t.DType.Size() * count(t.Shape); size > maxHeadBytes {
			return nil, fmt.Errorf("%s: more than %d bytes of tensors are no head on CLIP embeddings; give the head's own file", path, maxHeadBytes)
		}
		raw, err := t.Bytes()
		if err != nil {
			return nil, fmt.Errorf("%s: tensor %q: %w", path, name, err)
		}
		fmt.Fprintf(sum, "%s %s %v\n", name, t.DType, t.Shape)
		sum.Write(raw)
		f.tensors[name] = t
	}
	f.fingerprint = hex.EncodeToString(sum.Sum(nil)[:6])
	return f, nil
}

// take reads the tensors of the given shapes, and nothing else may be in the file but those for which idle holds. A
// negative dimension stands for any. what says in errors what the file should be.
func (f *tensorFile) take(what string, shapes map[string][]int, idle func(string) bool) (map[string][]float32, error) {
	var missing, unused, wrong []string
	out := map[string][]float32{}
	for name, shape := range shapes {
		t := f.tensors[name]
		if t == nil {
			missing = append(missing, name)
			continue
		}
		if !fits(t.Shape, shape) {
			wrong = append(wrong, fmt.Sprintf("%s is %v instead of %s", name, t.Shape, strings.ReplaceAll(fmt.Sprint(shape), "-1", "n")))
			continue
		}
		values, err := t.Float32()
		if err != nil {
			return nil, fmt.Errorf("%s: tensor %q: %w", f.path, name, err)
		}
		for _, v := range values {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return nil, fmt.Errorf("%s: tensor %q has a value that is not finite; download the file again", f.path, name)
			}
		}
		out[name] = values
	}
	for _, name := range f.names {
		if shapes[name] == nil && (idle == nil || !idle(name)) {
			unused = append(unused, name)
		}
	}
	slices.Sort(missing)
	slices.Sort(wrong)
	if err := misfit(shortened(missing), shortened(unused), shortened(wrong)); err != nil {
		return nil, fmt.Errorf("%s: not %s: %w; give the file of one", f.path, what, err)
	}
	return out, nil
}

// shortened keeps a list readable where a file is something else altogether.
func shortened(names []string) []string {
	const most = 12
	if len(names) <= most {
		return names
	}
	return append(slices.Clone(names[:most]), fmt.Sprintf("… (%d in all)", len(names)))
}

func count(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

func fits(shape, pattern []int) bool {
	return slices.EqualFunc(shape, pattern, func(have, want int) bool { return have == want || want < 0 && have > 0 })
}

// columns is the second dimension of a matrix in the file; −1, which fits no tensor's use, if there is none.
func (f *tensorFile) columns(name string) int {
	if t := f.tensors[name]; t != nil && len(t.Shape) == 2 {
		return t.Shape[1]
	}
	return -1
}

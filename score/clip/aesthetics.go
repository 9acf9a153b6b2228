package clip

import (
	"context"
	"fmt"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
)

// AestheticsHead predicts how much people like a picture, from about 1 to 10, by the normalised embedding of CLIP ViT-L/14:
// LAION's linear head (v1) or the multi-layer one (v2, "improved aesthetic predictor").
type AestheticsHead struct {
	layers      []dense
	version     int
	fingerprint string
}

// ReadAesthetics reads a head: v1 has the tensors weight and bias (sa_0_4_vit_l_14_linear.pth), v2 has layers.0, 2, 4, 6 and
// 7 (sac+logos+ava1-l14-linearMSE.pth). Between the layers of v2 lies nothing but the dropout of training.
func ReadAesthetics(path string) (*AestheticsHead, error) {
	f, err := readTensors(path)
	if err != nil {
		return nil, err
	}
	h := &AestheticsHead{version: 1, fingerprint: f.fingerprint}
	names := []string{""}
	if f.tensors["layers.0.weight"] != nil {
		h.version = 2
		names = []string{"layers.0.", "layers.2.", "layers.4.", "layers.6.", "layers.7."}
	}
	shapes := map[string][]int{}
	for i, name := range names {
		outputs := 1
		if i+1 < len(names) {
			outputs = f.columns(names[i+1] + "weight")
		}
		shapes[name+"weight"] = []int{outputs, f.columns(name + "weight")}
		shapes[name+"bias"] = []int{outputs}
	}
	t, err := f.take("a LAION aesthetics head (v1: weight, bias; v2: layers.0 … layers.7)", shapes, nil)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		shape := f.tensors[name+"weight"].Shape
		h.layers = append(h.layers, dense{shape[1], shape[0], t[name+"weight"], t[name+"bias"]})
	}
	return h, nil
}

// Score returns the rating of each picture by its embedding, as [Model.Embed] gives it.
func (h *AestheticsHead) Score(embeddings [][]float32) ([]float64, error) {
	ratings := make([]float64, len(embeddings))
	for i, embedding := range embeddings {
		x, err := widen(embedding, h.Width(), true, "the aesthetics head")
		if err != nil {
			return nil, err
		}
		for _, l := range h.layers {
			x = l.apply(x)
		}
		ratings[i] = x[0]
	}
	return ratings, nil
}

// Width is how many numbers embeddings must have.
func (h *AestheticsHead) Width() int { return h.layers[0].in }

// Name says which head it is, with a fingerprint of its weights.
func (h *AestheticsHead) Name() string {
	return fmt.Sprintf("LAION aesthetics v%d (%s)", h.version, h.fingerprint)
}

// Aesthetics is a head with the model that it rates pictures by.
type Aesthetics struct {
	model *Model
	head  *AestheticsHead
}

// OpenAesthetics opens the vision tower of CLIP ViT-L/14 and a head; see [ReadAesthetics].
func OpenAesthetics(e *engine.Engine, clipPath, headPath string) (*Aesthetics, error) {
	head, err := ReadAesthetics(headPath)
	if err != nil {
		return nil, err
	}
	model, err := OpenVision(e, clipPath)
	if err != nil {
		return nil, err
	}
	if model.Width() != head.Width() {
		model.Close()
		return nil, fmt.Errorf("%s: the head takes embeddings of %d numbers, but those of %s have %d; give CLIP ViT-L/14", headPath, head.Width(), model.Name(), model.Width())
	}
	return &Aesthetics{model, head}, nil
}

// Rate returns the rating of each picture.
func (a *Aesthetics) Rate(ctx context.Context, pictures []*data.RGB) ([]float64, error) {
	embeddings, err := a.model.Embed(ctx, pictures, Standard)
	if err != nil {
		return nil, err
	}
	return a.head.Score(embeddings)
}

// Model is the CLIP model, and Head the head, for embeddings that are there already.
func (a *Aesthetics) Model() *Model { return a.model }

// Head is the head.
func (a *Aesthetics) Head() *AestheticsHead { return a.head }

// Name says what was computed, for the record.
func (a *Aesthetics) Name() string { return a.head.Name() + " on " + a.model.Name() }

// Close frees the model.
func (a *Aesthetics) Close() { a.model.Close() }

package vision

import (
	"fmt"
	"slices"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/nn"
)

// CLIPConfig is the architecture of CLIP's vision tower (Radford et al. 2021, arXiv:2103.00020): a vision transformer over
// square patches, with a class token whose last state is projected into the space that pictures and texts share.
type CLIPConfig struct {
	Image, Patch  int // sides of the picture and of a patch, in pixels
	Width, Hidden int // of the transformer, and of its feed-forward layers
	Layers, Heads int
	Activation    string // quick_gelu (OpenAI) or gelu (OpenCLIP)
	Eps           float64
	Projection    int // width of the embedding
}

// CLIPViTB32 is the vision tower of OpenAI's ViT-B/32, which the CLIP score is computed with: embeddings of 512 numbers.
func CLIPViTB32() CLIPConfig {
	return CLIPConfig{Image: 224, Patch: 32, Width: 768, Hidden: 3072, Layers: 12, Heads: 12, Activation: "quick_gelu", Eps: 1e-5, Projection: 512}
}

// CLIPViTB16 is the vision tower of OpenAI's ViT-B/16: embeddings of 512 numbers.
func CLIPViTB16() CLIPConfig {
	c := CLIPViTB32()
	c.Patch = 16
	return c
}

// CLIPViTL14 is the vision tower of OpenAI's ViT-L/14, which most detectors and the aesthetics predictor build on:
// embeddings of 768 numbers. The side of the picture is 224, or 336 for ViT-L/14@336px, which CMMD is defined with.
func CLIPViTL14(side int) CLIPConfig {
	return CLIPConfig{Image: side, Patch: 14, Width: 1024, Hidden: 4096, Layers: 24, Heads: 16, Activation: "quick_gelu", Eps: 1e-5, Projection: 768}
}

// Patches is the number of patches in a picture.
func (c CLIPConfig) Patches() int { return (c.Image / c.Patch) * (c.Image / c.Patch) }

// Numbers is the number of values in a patch: its pixels in three channels.
func (c CLIPConfig) Numbers() int { return 3 * c.Patch * c.Patch }

// Validate returns what makes the architecture impossible.
func (c CLIPConfig) Validate() error {
	switch {
	case c.Patch < 1 || c.Image < c.Patch || c.Image%c.Patch != 0:
		return fmt.Errorf("patches of %d pixels do not divide pictures of %d", c.Patch, c.Image)
	case c.Heads < 1 || c.Width < 1 || c.Width%c.Heads != 0:
		return fmt.Errorf("%d attention heads do not divide the width %d", c.Heads, c.Width)
	case c.Layers < 1 || c.Hidden < 1 || c.Projection < 1:
		return fmt.Errorf("%d layers, %d hidden and %d projected numbers must all be positive", c.Layers, c.Hidden, c.Projection)
	case c.Eps <= 0:
		return fmt.Errorf("the layer norm's epsilon %v must be positive", c.Eps)
	case c.Activation != "quick_gelu" && c.Activation != "gelu":
		return fmt.Errorf("the activation %q is not known (quick_gelu and gelu are)", c.Activation)
	}
	return nil
}

// CLIP is the vision tower: the layout of its parameters and how they are applied.
type CLIP struct {
	Config     CLIPConfig
	specs      []nn.Spec
	positions  nn.EmbeddingTable
	before     nn.LayerNorm
	layers     []nn.CLIPLayer
	after      nn.LayerNorm
	projection nn.Linear
}

// The places in the list of parameters of those that belong to no layer.
const (
	classIndex = iota
	kernelIndex
)

// NewCLIP lays the tower out. Parameter names are those of transformers' CLIPVisionModelWithProjection.
func NewCLIP(c CLIPConfig) (*CLIP, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("CLIP's vision tower: %w", err)
	}
	t := &CLIP{Config: c}
	b := nn.NewBuilder()
	m := b.At("vision_model")
	// The kernel's stride is its size, so it is a linear map of each patch and needs no convolution.
	m.Param("embeddings.class_embedding", nn.Spec{Shape: []int{c.Width}, Init: nn.Embedding})
	m.Param("embeddings.patch_embedding.weight", nn.Spec{Shape: []int{c.Width, 3, c.Patch, c.Patch}, Fan: c.Numbers()})
	t.positions = nn.NewEmbedding(m.At("embeddings.position_embedding"), c.Patches()+1, c.Width)
	t.before = nn.NewLayerNorm(m.At("pre_layrnorm"), c.Width, c.Eps) // the name is misspelt in every checkpoint
	for i := range c.Layers {
		t.layers = append(t.layers, nn.NewCLIPLayer(m.At("encoder.layers").At(i), c.Width, c.Hidden, c.Heads, c.Eps, c.Activation))
	}
	t.after = nn.NewLayerNorm(m.At("post_layernorm"), c.Width, c.Eps)
	t.projection = nn.NewLinear(b.At("visual_projection"), c.Width, c.Projection, false)
	t.specs = b.Specs()
	return t, nil
}

// Specs lists the parameters, in the order in which [CLIP.Forward] takes them.
func (t *CLIP) Specs() []nn.Spec { return slices.Clone(t.specs) }

// Forward embeds the patches [B, Patches, Numbers] of normalised pictures, as [CLIP.Cut] makes them, given the parameters
// in the order of Specs. The result is [B, Projection], not normalised: get_image_features of transformers and
// encode_image of OpenAI's code.
func (t *CLIP) Forward(parameters []*ad.Value, patches *ad.Value) *ad.Value {
	c := t.Config
	names := make([]string, len(t.specs))
	for i, s := range t.specs {
		names[i] = s.Name
	}
	w := nn.NewWeights(names, parameters)
	batch := patches.Dim(0)

	kernel := ad.Reshape(parameters[kernelIndex], c.Width, c.Numbers())
	x := ad.MatMul(ad.Reshape(patches, batch*c.Patches(), c.Numbers()), kernel, false, true)
	class := ad.BroadcastTo(ad.Reshape(parameters[classIndex], 1, 1, c.Width), batch, 1, c.Width)
	x = ad.Concat(1, class, ad.Reshape(x, batch, c.Patches(), c.Width))
	x = ad.Add(x, ad.Reshape(t.positions.Table(w), 1, c.Patches()+1, c.Width))
	x = t.before.Apply(w, x)

	last := len(t.layers) - 1
	for _, l := range t.layers[:last] {
		x = l.Apply(w, x, nil)
	}
	x = t.layers[last].ApplyToFirst(w, x) // only the class token is used afterwards
	return ad.Reshape(t.projection.Apply(w, t.after.Apply(w, x)), batch, c.Projection)
}

// clipMean and clipStd are the colours' statistics that CLIP's input is normalised with (openai/CLIP, clip.py).
var (
	clipMean = [3]float32{0.48145466, 0.4578275, 0.40821073}
	clipStd  = [3]float32{0.26862954, 0.26130258, 0.27577711}
)

// CLIPColours returns the mean and the standard deviation of red, green and blue, from 0 to 1, that CLIP's input is
// normalised with.
func CLIPColours() (mean, std [3]float32) { return clipMean, clipStd }

// Cut normalises a picture of Image × Image pixels, given as bytes R, G, B row by row, and cuts it into patches
// [Patches, Numbers], each with its channels one after the other, as the kernel of the first layer has them. It panics if
// the number of bytes is another.
func (t *CLIP) Cut(pixels []uint8) []float32 {
	c := t.Config
	if len(pixels) != 3*c.Image*c.Image {
		panic(fmt.Errorf("vision: %d bytes are not a picture of %d × %d", len(pixels), c.Image, c.Image))
	}
	var value [3][256]float32
	for channel := range value {
		for v := range value[channel] {
			value[channel][v] = (float32(v)/255 - clipMean[channel]) / clipStd[channel]
		}
	}
	side := c.Image / c.Patch
	out := make([]float32, 0, len(pixels))
	for patch := range side * side {
		top, left := patch/side*c.Patch, patch%side*c.Patch
		for channel := range value {
			for y := range c.Patch {
				for x := range c.Patch {
					out = append(out, value[channel][pixels[3*((top+y)*c.Image+left+x)+channel]])
				}
			}
		}
	}
	return out
}

package vision

import (
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

const (
	// InceptionFeatures is the number of features of a picture.
	InceptionFeatures = 2048

	inceptionSide = 299  // of the pictures that the network looks at
	inceptionEps  = 1e-3 // of its batch normalisations
)

// Inception is the Inception v3 network of the Fréchet inception distance: the weights that were published for TensorFlow
// in 2015, as the package pytorch-fid has ported them (pt_inception-2015-12-05-6726825d.pth). It differs from torchvision's
// network: average pooling does not count the padding, and the last block pools by the maximum. It may be used
// concurrently.
type Inception struct {
	params   *sd.Params
	features *engine.Function
	batch    int
}

// OpenInception reads the weights from a PyTorch or safetensors file with the names of torchvision's inception_v3. The
// classifier in it is left aside.
func OpenInception(e *engine.Engine, path string) (*Inception, error) {
	source, err := weights.Open(path)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	net := newInceptionNet()
	values, err := readTensors([]weights.FileSource{source}, path, "the Inception v3 network of pytorch-fid", net.stored(),
		func(string) string { return "" },
		func(name string) bool {
			return name == "fc.weight" || name == "fc.bias" || strings.HasSuffix(name, ".num_batches_tracked")
		})
	if err != nil {
		return nil, err
	}
	return newInception(e, net, values)
}

func newInception(e *engine.Engine, net inceptionNet, stored map[string][]float32) (*Inception, error) {
	params, err := sd.FromHost(net.specs, net.fold(stored))
	if err != nil {
		return nil, err
	}
	n := len(params.Tensors)
	features, err := ad.Compile(e, "Inception v3", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return []*ad.Value{net.features(params.Weights(in[:n]), in[n])}
	})
	if err != nil {
		params.Free()
		return nil, err
	}
	return &Inception{params: params, features: features, batch: batchFor(e)}, nil
}

// batchFor is how many pictures go through a network at once. More are no faster on a processor.
func batchFor(e *engine.Engine) int {
	if e.NativeConvolutions() {
		return 32
	}
	return 8
}

// Free releases the weights and the compiled function.
func (n *Inception) Free() {
	n.params.Free()
	n.features.Free()
}

// Batch is the number of pictures that are looked at together; lists whose length is a multiple of it waste nothing.
func (n *Inception) Batch() int { return n.batch }

// Features returns the 2048 features of each picture: the averages over the last feature map, before the classifier.
// Pictures of any size are brought to 299×299 by bilinear interpolation without regard to aliasing, as pytorch-fid does.
// What is said of a picture does not depend on the others.
func (n *Inception) Features(ctx context.Context, pictures []*data.RGB) ([][]float32, error) {
	var out [][]float32
	for from := 0; from < len(pictures); from += n.batch {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		part := pictures[from:min(from+n.batch, len(pictures))]
		pixels := make([]float32, n.batch*inceptionSide*inceptionSide*3)
		for i, p := range part {
			if err := checkPicture(p); err != nil {
				return nil, err
			}
			interpolate(pixels[i*inceptionSide*inceptionSide*3:], p, inceptionSide)
		}
		input := engine.Float32s(pixels, n.batch, inceptionSide, inceptionSide, 3)
		results, err := n.features.Call(append(n.params.Tensors[:len(n.params.Tensors):len(n.params.Tensors)], input)...)
		engine.Free(input)
		if err != nil {
			return nil, err
		}
		values, err := engine.Values(results[0])
		engine.Free(results...)
		if err != nil {
			return nil, err
		}
		for i := range part {
			out = append(out, values[i*InceptionFeatures:(i+1)*InceptionFeatures:(i+1)*InceptionFeatures])
		}
	}
	return out, nil
}

func checkPicture(p *data.RGB) error {
	if p == nil || p.Width < 1 || p.Height < 1 || len(p.Pix) != 3*p.Width*p.Height {
		return fmt.Errorf("a picture without pixels cannot be looked at")
	}
	return nil
}

// interpolate writes the picture as side×side pixels in [−1, 1], each interpolated between the four nearest: PyTorch's
// bilinear mode with align_corners off.
func interpolate(out []float32, p *data.RGB, side int) {
	type place struct {
		at, next int
		far      float32 // weight of next
	}
	places := func(from int) []place {
		scale := float32(from) / float32(side)
		all := make([]place, side)
		for i := range all {
			x := max(0, scale*(float32(i)+0.5)-0.5)
			at := min(int(x), from-1)
			all[i] = place{at, min(at+1, from-1), x - float32(at)}
		}
		return all
	}
	columns := places(p.Width)
	for y, row := range places(p.Height) {
		upper, lower := p.Pix[3*p.Width*row.at:], p.Pix[3*p.Width*row.next:]
		for x, column := range columns {
			for c := range 3 {
				mix := func(line []uint8) float32 {
					return (1-column.far)*float32(line[3*column.at+c])/255 + column.far*float32(line[3*column.next+c])/255
				}
				out[3*(y*side+x)+c] = 2*((1-row.far)*mix(upper)+row.far*mix(lower)) - 1
			}
		}
	}
}

// layer maps feature maps [B, H, W, C] to others.
type layer func(w *nn.Weights, x *ad.Value) *ad.Value

// inceptionNet is the architecture, with every batch normalisation folded into the convolution before it: Inception v3
// (Szegedy et al. 2016, arXiv:1512.00567), as laid out in torchvision.
type inceptionNet struct {
	specs []nn.Spec
	whole layer
}

func newInceptionNet() inceptionNet {
	b := nn.NewBuilder()
	valid := func(k, stride int) ad.Window { return ad.Window{KH: k, KW: k, Stride: stride} }
	shrink := func(_ *nn.Weights, x *ad.Value) *ad.Value { return maxPool(x, 3, 2, 0) }
	whole := chain(
		convolution(b.At("Conv2d_1a_3x3"), 3, 32, valid(3, 2)),
		convolution(b.At("Conv2d_2a_3x3"), 32, 32, valid(3, 1)),
		convolution(b.At("Conv2d_2b_3x3"), 32, 64, ad.Same(3, 1)),
		shrink,
		convolution(b.At("Conv2d_3b_1x1"), 64, 80, ad.Same(1, 1)),
		convolution(b.At("Conv2d_4a_3x3"), 80, 192, valid(3, 1)),
		shrink,
		inceptionA(b.At("Mixed_5b"), 192, 32),
		inceptionA(b.At("Mixed_5c"), 256, 64),
		inceptionA(b.At("Mixed_5d"), 288, 64),
		inceptionB(b.At("Mixed_6a"), 288, shrink),
		inceptionC(b.At("Mixed_6b"), 768, 128),
		inceptionC(b.At("Mixed_6c"), 768, 160),
		inceptionC(b.At("Mixed_6d"), 768, 160),
		inceptionC(b.At("Mixed_6e"), 768, 192),
		inceptionD(b.At("Mixed_7a"), 768, shrink),
		inceptionE(b.At("Mixed_7b"), 1280, averaged(b.At("Mixed_7b.branch_pool"), 1280, 192)),
		inceptionE(b.At("Mixed_7c"), 2048, chain(
			func(_ *nn.Weights, x *ad.Value) *ad.Value { return maxPool(x, 3, 1, 1) },
			convolution(b.At("Mixed_7c.branch_pool"), 2048, 192, ad.Same(1, 1)),
		)),
	)
	return inceptionNet{specs: b.Specs(), whole: whole}
}

// features maps pictures [B, 299, 299, 3] in [−1, 1] to [B, 2048].
func (n inceptionNet) features(w *nn.Weights, pictures *ad.Value) *ad.Value {
	x := n.whole(w, pictures)
	batch, pixels, channels := x.Dim(0), x.Dim(1)*x.Dim(2), x.Dim(3)
	sum := ad.SumTo(ad.Reshape(x, batch, pixels, channels), batch, 1, channels)
	return ad.Reshape(ad.Scale(sum, 1/float64(pixels)), batch, channels)
}

// chain applies layers one after the other.
func chain(layers ...layer) layer {
	return func(w *nn.Weights, x *ad.Value) *ad.Value {
		for _, l := range layers {
			x = l(w, x)
		}
		return x
	}
}

// join applies layers side by side and joins their channels.
func join(layers ...layer) layer {
	return func(w *nn.Weights, x *ad.Value) *ad.Value {
		outs := make([]*ad.Value, len(layers))
		for i, l := range layers {
			outs[i] = l(w, x)
		}
		return ad.Concat(3, outs...)
	}
}

// convolution is a convolution with its batch normalisation, and a ReLU.
func convolution(b nn.Builder, in, out int, window ad.Window) layer {
	conv := nn.NewConv(b.At("conv"), in, out, window)
	return func(w *nn.Weights, x *ad.Value) *ad.Value { return relu(conv.Apply(w, x)) }
}

// averaged is an average pooling and a 1×1 convolution. They are linear and the average keeps constants, so they may be
// exchanged: after the convolution there are fewer channels to average.
func averaged(b nn.Builder, in, out int) layer {
	conv := nn.NewConv(b.At("conv"), in, out, ad.Same(1, 1))
	return func(w *nn.Weights, x *ad.Value) *ad.Value { return relu(averagePool3(conv.Apply(w, x))) }
}

// wide and tall are the windows of 1×k and k×1 kernels that keep the size.
func wide(k int) ad.Window { return ad.Window{KH: 1, KW: k, Stride: 1, Left: k / 2, Right: k / 2} }
func tall(k int) ad.Window { return ad.Window{KH: k, KW: 1, Stride: 1, Top: k / 2, Bottom: k / 2} }

func inceptionA(b nn.Builder, in, pooled int) layer {
	return join(
		convolution(b.At("branch1x1"), in, 64, ad.Same(1, 1)),
		chain(
			convolution(b.At("branch5x5_1"), in, 48, ad.Same(1, 1)),
			convolution(b.At("branch5x5_2"), 48, 64, ad.Same(5, 1)),
		),
		chain(
			convolution(b.At("branch3x3dbl_1"), in, 64, ad.Same(1, 1)),
			convolution(b.At("branch3x3dbl_2"), 64, 96, ad.Same(3, 1)),
			convolution(b.At("branch3x3dbl_3"), 96, 96, ad.Same(3, 1)),
		),
		averaged(b.At("branch_pool"), in, pooled),
	)
}

func inceptionB(b nn.Builder, in int, shrink layer) layer {
	half := ad.Window{KH: 3, KW: 3, Stride: 2}
	return join(
		convolution(b.At("branch3x3"), in, 384, half),
		chain(
			convolution(b.At("branch3x3dbl_1"), in, 64, ad.Same(1, 1)),
			convolution(b.At("branch3x3dbl_2"), 64, 96, ad.Same(3, 1)),
			convolution(b.At("branch3x3dbl_3"), 96, 96, half),
		),
		shrink,
	)
}

func inceptionC(b nn.Builder, in, inner int) layer {
	return join(
		convolution(b.At("branch1x1"), in, 192, ad.Same(1, 1)),
		chain(
			convolution(b.At("branch7x7_1"), in, inner, ad.Same(1, 1)),
			convolution(b.At("branch7x7_2"), inner, inner, wide(7)),
			convolution(b.At("branch7x7_3"), inner, 192, tall(7)),
		),
		chain(
			convolution(b.At("branch7x7dbl_1"), in, inner, ad.Same(1, 1)),
			convolution(b.At("branch7x7dbl_2"), inner, inner, tall(7)),
			convolution(b.At("branch7x7dbl_3"), inner, inner, wide(7)),
			convolution(b.At("branch7x7dbl_4"), inner, inner, tall(7)),
			convolution(b.At("branch7x7dbl_5"), inner, 192, wide(7)),
		),
		averaged(b.At("branch_pool"), in, 192),
	)
}

func inceptionD(b nn.Builder, in int, shrink layer) layer {
	half := ad.Window{KH: 3, KW: 3, Stride: 2}
	return join(
		chain(
			convolution(b.At("branch3x3_1"), in, 192, ad.Same(1, 1)),
			convolution(b.At("branch3x3_2"), 192, 320, half),
		),
		chain(
			convolution(b.At("branch7x7x3_1"), in, 192, ad.Same(1, 1)),
			convolution(b.At("branch7x7x3_2"), 192, 192, wide(7)),
			convolution(b.At("branch7x7x3_3"), 192, 192, tall(7)),
			convolution(b.At("branch7x7x3_4"), 192, 192, half),
		),
		shrink,
	)
}

func inceptionE(b nn.Builder, in int, pooled layer) layer {
	return join(
		convolution(b.At("branch1x1"), in, 320, ad.Same(1, 1)),
		chain(
			convolution(b.At("branch3x3_1"), in, 384, ad.Same(1, 1)),
			join(
				convolution(b.At("branch3x3_2a"), 384, 384, wide(3)),
				convolution(b.At("branch3x3_2b"), 384, 384, tall(3)),
			),
		),
		chain(
			convolution(b.At("branch3x3dbl_1"), in, 448, ad.Same(1, 1)),
			convolution(b.At("branch3x3dbl_2"), 448, 384, ad.Same(3, 1)),
			join(
				convolution(b.At("branch3x3dbl_3a"), 384, 384, wide(3)),
				convolution(b.At("branch3x3dbl_3b"), 384, 384, tall(3)),
			),
		),
		pooled,
	)
}

// normalisation is what a file holds of a batch normalisation, in place of the bias of the folded convolution.
var normalisation = []string{"weight", "bias", "running_mean", "running_var"}

// stored lists the parameters as they are in the file: convolutions without bias, and batch normalisations.
func (n inceptionNet) stored() []nn.Spec {
	var specs []nn.Spec
	for _, s := range n.specs {
		path, isBias := strings.CutSuffix(s.Name, ".conv.bias")
		if !isBias {
			specs = append(specs, s)
			continue
		}
		for _, name := range normalisation {
			specs = append(specs, nn.Spec{Name: path + ".bn." + name, Shape: s.Shape})
		}
	}
	return specs
}

// fold turns the stored parameters into weights and biases of convolutions, in the order of the specs: a convolution with
// kernels w followed by (x−μ)·γ/√(σ²+ε) + β has kernels w·γ/√(σ²+ε) and bias β − μ·γ/√(σ²+ε).
func (n inceptionNet) fold(stored map[string][]float32) [][]float32 {
	var out [][]float32
	for _, s := range n.specs {
		path, isBias := strings.CutSuffix(s.Name, ".conv.bias")
		path = strings.TrimSuffix(path, ".conv.weight")
		gamma, beta := stored[path+".bn.weight"], stored[path+".bn.bias"]
		mean, variance := stored[path+".bn.running_mean"], stored[path+".bn.running_var"]
		gain := func(o int) float64 { return float64(gamma[o]) / math.Sqrt(float64(variance[o])+inceptionEps) }
		values := make([]float32, s.Size())
		if isBias {
			for o := range values {
				values[o] = float32(float64(beta[o]) - float64(mean[o])*gain(o))
			}
		} else {
			kernel := len(values) / len(gamma)
			for i, w := range stored[s.Name] {
				values[i] = float32(float64(w) * gain(i/kernel))
			}
		}
		out = append(out, values)
	}
	return out
}

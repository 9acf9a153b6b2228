package vision

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

// LPIPS is the learned perceptual distance between two pictures (Zhang et al. 2018, arXiv:1801.03924), in its version 0.1:
// feature maps of a classification network at five depths, compared pixel by pixel and weighted channel by channel. It may
// be used concurrently.
type LPIPS struct {
	backbone lpipsBackbone
	params   *sd.Params
	distance *engine.Function
	batch    int
}

// lpipsStage is a convolution of a backbone: its number in torchvision's features, where it reads, and what follows.
type lpipsStage struct {
	number, in, out int
	window          ad.Window
	pool            int  // side of the maximum pooling before the convolution, with stride 2; 0: none
	tap             bool // the feature map after its ReLU is compared
}

type lpipsBackbone struct {
	name    string
	minimum int   // smallest side of a picture for which every feature map has a pixel
	slices  []int // the numbers with which the slices of the package lpips begin
	stages  []lpipsStage
}

func lpipsAlexNet() lpipsBackbone {
	return lpipsBackbone{
		name: "AlexNet", minimum: 31, slices: []int{0, 2, 5, 8, 10},
		stages: []lpipsStage{
			{0, 3, 64, ad.Window{KH: 11, KW: 11, Stride: 4, Top: 2, Bottom: 2, Left: 2, Right: 2}, 0, true},
			{3, 64, 192, ad.Same(5, 1), 3, true},
			{6, 192, 384, ad.Same(3, 1), 3, true},
			{8, 384, 256, ad.Same(3, 1), 0, true},
			{10, 256, 256, ad.Same(3, 1), 0, true},
		},
	}
}

func lpipsVGG() lpipsBackbone {
	b := lpipsBackbone{name: "VGG-16", minimum: 16, slices: []int{0, 4, 9, 16, 23}}
	number, in := 0, 3
	for block, widths := range [][]int{{64, 64}, {128, 128}, {256, 256, 256}, {512, 512, 512}, {512, 512, 512}} {
		for i, out := range widths {
			s := lpipsStage{number, in, out, ad.Same(3, 1), 0, i == len(widths)-1}
			if block > 0 && i == 0 {
				s.pool = 2
			}
			b.stages = append(b.stages, s)
			number, in = number+2, out
		}
		number++ // the pooling
	}
	return b
}

// OpenLPIPS reads torchvision's AlexNet or VGG-16 from the file backbone and the weights of the channels from the file
// linear (alex.pth or vgg.pth of the package lpips); which network it is, is told by its first convolution. linear may be
// empty if backbone is the state dictionary of a whole lpips.LPIPS.
func OpenLPIPS(e *engine.Engine, backbone, linear string) (*LPIPS, error) {
	var sources []weights.FileSource
	for _, path := range []string{backbone, linear} {
		if path == "" {
			continue
		}
		source, err := weights.Open(path)
		if err != nil {
			return nil, err
		}
		defer source.Close()
		sources = append(sources, source)
	}
	where := backbone
	if linear != "" {
		where += " with " + linear
	}
	b, err := lpipsBackboneOf(backbone, sources[0])
	if err != nil {
		return nil, err
	}
	net := newLPIPSNet(b)
	values, err := readTensors(sources, where, "LPIPS with "+b.name, net.specs, b.packageName, func(name string) bool {
		return strings.HasPrefix(name, "classifier.") || strings.HasPrefix(name, "scaling_layer.") || strings.HasPrefix(name, "lins.")
	})
	if err != nil {
		return nil, err
	}
	return newLPIPS(e, net, values)
}

// lpipsBackboneOf tells the network by its first convolution.
func lpipsBackboneOf(path string, source weights.FileSource) (lpipsBackbone, error) {
	for _, name := range []string{"features.0.weight", "net.slice1.0.weight"} {
		if !slices.Contains(source.Names(), name) {
			continue
		}
		t, err := source.Tensor(name)
		if err != nil {
			return lpipsBackbone{}, err
		}
		for _, b := range []lpipsBackbone{lpipsAlexNet(), lpipsVGG()} {
			if w := b.stages[0].window; slices.Equal(t.Shape, []int{64, 3, w.KH, w.KW}) {
				return b, nil
			}
		}
		return lpipsBackbone{}, fmt.Errorf("%s: %s is %v, but AlexNet's is [64 3 11 11] and VGG-16's [64 3 3 3]; take one of these networks", path, name, t.Shape)
	}
	return lpipsBackbone{}, fmt.Errorf("%s has no tensor features.0.weight; LPIPS needs the weights of torchvision's AlexNet or VGG-16", path)
}

var lpipsFeature = regexp.MustCompile(`^features\.(\d+)\.`)

// packageName is what the package lpips calls a parameter of torchvision's network: its layers are cut into five slices.
func (b lpipsBackbone) packageName(name string) string {
	found := lpipsFeature.FindStringSubmatch(name)
	if found == nil {
		return ""
	}
	for _, s := range b.stages {
		if fmt.Sprint(s.number) == found[1] {
			k := 0
			for k < len(b.slices) && b.slices[k] <= s.number {
				k++
			}
			return fmt.Sprintf("net.slice%d.%s", k, strings.TrimPrefix(name, "features."))
		}
	}
	return ""
}

// lpipsNet is the network laid out for a backbone.
type lpipsNet struct {
	backbone lpipsBackbone
	convs    []nn.Conv
	linear   []string // names of the channels' weights, one for each feature map that is compared
	specs    []nn.Spec
}

func newLPIPSNet(b lpipsBackbone) lpipsNet {
	net := lpipsNet{backbone: b}
	builder := nn.NewBuilder()
	for _, s := range b.stages {
		net.convs = append(net.convs, nn.NewConv(builder.At("features").At(s.number), s.in, s.out, s.window))
	}
	for _, s := range b.stages {
		if s.tap {
			at := builder.At(fmt.Sprintf("lin%d.model.1", len(net.linear)))
			net.linear = append(net.linear, at.Param("weight", nn.Spec{Shape: []int{1, s.out, 1, 1}, Layout: nn.Kernel}))
		}
	}
	net.specs = builder.Specs()
	return net
}

// The mean and the deviation of colours in [−1, 1] by which LPIPS normalises.
var (
	lpipsShift = []float32{-.030, -.088, -.188}
	lpipsScale = []float32{.458, .448, .450}
)

// distance maps pictures a and b [B, H, W, 3] in [−1, 1] to their distances [B].
func (n lpipsNet) distance(w *nn.Weights, linear []*ad.Value, a, b *ad.Value) *ad.Value {
	batch := a.Dim(0)
	x := ad.Concat(0, a, b)
	inverse := make([]float32, len(lpipsScale))
	for i, s := range lpipsScale {
		inverse[i] = 1 / s
	}
	tape := a.Tape()
	x = ad.Mul(ad.Sub(x, tape.Constant(x, lpipsShift, 1, 1, 1, 3)), tape.Constant(x, inverse, 1, 1, 1, 3))
	var total *ad.Value
	taps := 0
	for i, s := range n.backbone.stages {
		if s.pool > 0 {
			x = maxPool(x, s.pool, 2, 0)
		}
		x = relu(n.convs[i].Apply(w, x))
		if !s.tap {
			continue
		}
		pixels := x.Dim(1) * x.Dim(2)
		unit := unitChannels(ad.Reshape(x, 2*batch*pixels, s.out))
		difference := ad.Square(ad.Sub(ad.Slice(unit, 0, 0, batch*pixels), ad.Slice(unit, 0, batch*pixels, 2*batch*pixels)))
		weighted := ad.MatMul(difference, ad.Reshape(linear[taps], s.out, 1), false, false)
		mean := ad.Scale(ad.SumTo(ad.Reshape(weighted, batch, pixels), batch, 1), 1/float64(pixels))
		if total == nil {
			total = mean
		} else {
			total = ad.Add(total, mean)
		}
		taps++
	}
	return ad.Reshape(total, batch)
}

// unitChannels divides each row of x [N, C] by its norm plus 1e-10; rows of zeros stay zeros.
func unitChannels(x *ad.Value) *ad.Value {
	squares := ad.SumTo(ad.Square(x), x.Dim(0), 1)
	// √s as s·1/√s is not a number for s = 0, which a tiny s stands for.
	norm := ad.Mul(squares, ad.Rsqrt(ad.AddNumber(squares, 1e-30)))
	return ad.Mul(x, ad.Reciprocal(ad.AddNumber(norm, 1e-10)))
}

func newLPIPS(e *engine.Engine, net lpipsNet, values map[string][]float32) (*LPIPS, error) {
	ordered := make([][]float32, len(net.specs))
	for i, s := range net.specs {
		ordered[i] = values[s.Name]
	}
	params, err := sd.FromHost(net.specs, ordered)
	if err != nil {
		return nil, err
	}
	n := len(params.Tensors)
	distance, err := ad.Compile(e, "LPIPS", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		linear := in[n-len(net.linear) : n]
		return []*ad.Value{net.distance(params.Weights(in[:n]), linear, in[n], in[n+1])}
	})
	if err != nil {
		params.Free()
		return nil, err
	}
	return &LPIPS{backbone: net.backbone, params: params, distance: distance, batch: max(1, batchFor(e)/4)}, nil
}

// Free releases the weights and the compiled function.
func (l *LPIPS) Free() {
	l.params.Free()
	l.distance.Free()
}

// Backbone names the network whose feature maps are compared.
func (l *LPIPS) Backbone() string { return l.backbone.name }

// Batch is the number of pairs that are compared together.
func (l *LPIPS) Batch() int { return l.batch }

// Distances compares each picture of a with that of b at the same place; the two must have one size. A distance is 0 for
// equal pictures and seldom above 1. It does not depend on the other pairs.
func (l *LPIPS) Distances(ctx context.Context, a, b []*data.RGB) ([]float64, error) {
	if len(a) != len(b) {
		return nil, fmt.Errorf("%d pictures cannot be compared with %d", len(a), len(b))
	}
	type size struct{ width, height int }
	bySize := map[size][]int{}
	for i := range a {
		for _, p := range []*data.RGB{a[i], b[i]} {
			if err := checkPicture(p); err != nil {
				return nil, err
			}
		}
		s := size{a[i].Width, a[i].Height}
		if other := (size{b[i].Width, b[i].Height}); s != other {
			return nil, fmt.Errorf("a picture of %d×%d cannot be compared with one of %d×%d by LPIPS; make them the same size", s.width, s.height, other.width, other.height)
		}
		if min(s.width, s.height) < l.backbone.minimum {
			return nil, fmt.Errorf("a picture of %d×%d is too small for LPIPS with %s, which needs %d pixels each way", s.width, s.height, l.backbone.name, l.backbone.minimum)
		}
		bySize[s] = append(bySize[s], i)
	}
	out := make([]float64, len(a))
	for s, places := range bySize {
		for part := range slices.Chunk(places, l.batch) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			values, err := l.distances(a, b, part, s.width, s.height)
			if err != nil {
				return nil, err
			}
			for i, place := range part {
				out[place] = float64(values[i])
			}
		}
	}
	return out, nil
}

// distances compares the pairs at the given places, at most a batch, all of one size.
func (l *LPIPS) distances(a, b []*data.RGB, places []int, width, height int) ([]float32, error) {
	input := func(pictures []*data.RGB) *engine.Tensor {
		pixels := make([]float32, l.batch*width*height*3)
		for i, place := range places {
			for k, v := range pictures[place].Pix {
				pixels[i*width*height*3+k] = float32(v)/127.5 - 1
			}
		}
		return engine.Float32s(pixels, l.batch, height, width, 3)
	}
	x, y := input(a), input(b)
	defer engine.Free(x, y)
	n := len(l.params.Tensors)
	results, err := l.distance.Call(append(l.params.Tensors[:n:n], x, y)...)
	if err != nil {
		return nil, err
	}
	defer engine.Free(results...)
	return engine.Values(results[0])
}

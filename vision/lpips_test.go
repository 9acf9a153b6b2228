package vision

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/nn"
)

func pairOf(width, height int) (a, b *data.RGB) {
	a = drawing(fmt.Sprintf("a %dx%d", width, height), width, height)
	b = drawing(fmt.Sprintf("b %dx%d", width, height), width, height)
	for i := range b.Pix {
		b.Pix[i] = uint8(int(a.Pix[i])*3/4) + b.Pix[i]/4
	}
	return a, b
}

// The expected distances were computed by the package lpips, with the same weights for the whole networks.
func TestLPIPSAgainstPackage(t *testing.T) {
	e := openEngine(t)
	for file, backbone := range map[string]lpipsBackbone{"alex": lpipsAlexNet(), "vgg": lpipsVGG()} {
		t.Run(file, func(t *testing.T) {
			net := newLPIPSNet(backbone)
			l, err := newLPIPS(e, net, parameters(net.specs))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Free()
			var a, b []*data.RGB
			for _, size := range [][2]int{{64, 48}, {33, 70}} {
				x, y := pairOf(size[0], size[1])
				a, b = append(a, x), append(b, y)
			}
			got, err := l.Distances(t.Context(), append(a, a[0]), append(b, a[0]))
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range reference(t, "lpips.safetensors", file) {
				if off := math.Abs(got[i]/float64(want) - 1); off > 1e-5 {
					t.Errorf("pair %d: %v instead of %v", i, got[i], want)
				}
			}
			if same := got[len(got)-1]; same > 1e-12 { // rounding may depend on the place in a batch
				t.Errorf("equal pictures are %v apart", same)
			}
		})
	}
}

func TestOpenLPIPSNames(t *testing.T) {
	e := openEngine(t)
	net := newLPIPSNet(lpipsAlexNet())
	values := parameters(net.specs)
	backbone, linear, whole := net.specs[:10], net.specs[10:], []nn.Spec(nil)
	named := map[string][]float32{}
	for _, s := range net.specs {
		renamed := s
		if other := net.backbone.packageName(s.Name); other != "" {
			renamed.Name = other
		}
		named[renamed.Name] = values[s.Name]
		whole = append(whole, renamed)
	}
	a, b := pairOf(40, 40)
	distance := func(first, second string) float64 {
		l, err := OpenLPIPS(e, first, second)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Free()
		if l.Backbone() != "AlexNet" {
			t.Errorf("it is %s", l.Backbone())
		}
		d, err := l.Distances(t.Context(), []*data.RGB{a}, []*data.RGB{b})
		if err != nil {
			t.Fatal(err)
		}
		return d[0]
	}
	two, one := distance(fileOf(t, backbone, values), fileOf(t, linear, values)), distance(fileOf(t, whole, named), "")
	if one != two {
		t.Errorf("one file gives %v, two give %v", one, two)
	}
	if _, err := OpenLPIPS(e, fileOf(t, backbone, values), ""); err == nil || !strings.Contains(err.Error(), "lin0.model.1.weight") {
		t.Errorf("without the weights of the channels: %v", err)
	}
	if _, err := OpenLPIPS(e, fileOf(t, linear, values), ""); err == nil || !strings.Contains(err.Error(), "AlexNet or VGG-16") {
		t.Errorf("without a backbone: %v", err)
	}
}

func TestLPIPSRefusesPairs(t *testing.T) {
	net := newLPIPSNet(lpipsAlexNet())
	l, err := newLPIPS(openEngine(t), net, parameters(net.specs))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Free()
	small, large := data.NewRGB(16, 40), data.NewRGB(40, 40)
	for want, pair := range map[string][2]*data.RGB{"same size": {small, large}, "too small": {small, small}, "without pixels": {large, {}}} {
		if _, err := l.Distances(t.Context(), []*data.RGB{pair[0]}, []*data.RGB{pair[1]}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func BenchmarkLPIPS(b *testing.B) {
	e := openEngine(b)
	for _, backbone := range []lpipsBackbone{lpipsAlexNet(), lpipsVGG()} {
		b.Run(backbone.name, func(b *testing.B) {
			net := newLPIPSNet(backbone)
			l, err := newLPIPS(e, net, parameters(net.specs))
			if err != nil {
				b.Fatal(err)
			}
			defer l.Free()
			var first, second []*data.RGB
			for range l.Batch() {
				first, second = append(first, drawing("one", 256, 256)), append(second, drawing("other", 256, 256))
			}
			run := func() {
				if _, err := l.Distances(b.Context(), first, second); err != nil {
					b.Fatal(err)
				}
			}
			run()
			for b.Loop() {
				run()
			}
			b.ReportMetric(float64(len(first)*b.N)/b.Elapsed().Seconds(), "pairs/s")
		})
	}
}

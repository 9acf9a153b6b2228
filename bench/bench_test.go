package bench

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/sd"
)

// TestParameterCounts compares the UNets with the sizes of the checkpoints they describe.
func TestParameterCounts(t *testing.T) {
	want := map[string]int{"small": 4_192_900, "sd14": 859_520_964, "sd14-256": 859_520_964, "sdxl": 2_567_463_684}
	if got := len(presets()); got != len(sd.Presets())+1 {
		t.Errorf("%d presets", got)
	}
	for _, p := range presets() {
		n := 0
		for _, s := range sd.NewUNet(p.unet).Specs() {
			n += s.Size()
		}
		if want[p.name] != 0 && n != want[p.name] {
			t.Errorf("%s has %d parameters, not %d", p.name, n, want[p.name])
		}
		if err := p.unet.CheckLatents(p.side, p.side); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	}
}

func tiny(xl bool) preset {
	u := sd.SmallUNet()
	u.Channels, u.ContextWidth = []int{16, 32}, 16
	if xl {
		u.TextTime, u.TimeIDWidth, u.AddedInputDim = true, 8, 6*8+16
	}
	return preset{name: "tiny", unet: u, scheduler: diffusion.StableDiffusion(), batch: 2, side: 8, pixels: 8}
}

func TestEveryWork(t *testing.T) {
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, xl := range []bool{false, true} {
		c, err := newCase(e, tiny(xl))
		if err != nil {
			t.Fatal(err)
		}
		defer c.free()
		for _, what := range Works() {
			m, err := c.measure(t.Context(), what, Options{Repeat: 3, InnerSteps: 3, Simulations: 2})
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if m.What != what || m.Best <= 0 || m.Median < m.Best || m.FLOPs <= 0 || (what == OuterStep) != (m.Outer != nil) {
				t.Errorf("%s: %+v", what, m)
			}
		}
	}
}

// TestStepGoesDown shows that the measured steps train: the loss falls. They use the weights up, which are drawn again.
func TestStepGoesDown(t *testing.T) {
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	c, err := newCase(e, tiny(false))
	if err != nil {
		t.Fatal(err)
	}
	defer c.free()
	net, s, p, free, err := c.network(false)
	if err != nil {
		t.Fatal(err)
	}
	defer free()
	loss := func(p denoise.Point) float64 {
		x, err := net.Value(t.Context(), p, denoise.Loss{}, c.batch)
		if err != nil || math.IsNaN(x) {
			t.Fatal(x, err)
		}
		return x
	}
	before := loss(p)
	work, descent, err := c.stepping(net, s, p)
	if err != nil {
		t.Fatal(err)
	}
	defer descent.Free()
	for range 20 {
		if err := work(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if after := loss(descent.Point()); after >= before {
		t.Errorf("20 steps brought the loss from %v to %v", before, after)
	}
	if p[0].Ok() {
		t.Error("the first step left the weights where they were")
	}
	again, _, q, freeAgain, err := c.network(false)
	if err != nil {
		t.Fatal(err)
	}
	defer freeAgain()
	if now, err := again.Value(t.Context(), q, denoise.Loss{}, c.batch); err != nil || now != before {
		t.Errorf("the loss at the original weights went from %v to %v (%v)", before, now, err)
	}
}

func TestOptions(t *testing.T) {
	good := Options{Preset: "small", What: Works(), Repeat: 1}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for part, change := range map[string]func(*Options){
		"preset":        func(o *Options) { o.Preset = "" },
		"nothing":       func(o *Options) { o.What = nil },
		"be measured":   func(o *Options) { o.What = []string{"x"} },
		"repetition":    func(o *Options) { o.Repeat = 0 },
		"be computed":   func(o *Options) { o.Compute = "float8" },
		"multiple of":   func(o *Options) { o.Size = 100 },
		"at most":       func(o *Options) { o.Size = 1 << 20 },
		"inner steps":   func(o *Options) { o.InnerSteps = -1 },
		"batches of -1": func(o *Options) { o.Batch = -1 },
	} {
		o := good
		o.What = slices.Clone(good.What)
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := Run(ctx, e, Options{Preset: "small", What: []string{Forward}, Repeat: 1}); err == nil {
		t.Error("a cancelled run went on")
	}
}

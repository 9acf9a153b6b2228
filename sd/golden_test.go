package sd

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/weights"
)

func TestUNetQuick(t *testing.T) {
	dir := "../testdata/golden/"
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := ReadUNetConfig(filepath.Join(dir, "tiny-sd/unet/config.json"))
	if err != nil {
		t.Fatal(err)
	}
	u := NewUNet(cfg)
	src, err := weights.OpenComponent(filepath.Join(dir, "tiny-sd/unet"), "diffusion_pytorch_model")
	if err != nil {
		t.Fatal(err)
	}
	p, err := LoadParams(src, "unet", u.Specs(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	g, err := weights.Open(filepath.Join(dir, "unet-tiny-sd.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	get := func(name string) *engine.Tensor {
		x, err := g.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		v, err := x.Float32()
		if err != nil {
			t.Logf("%s %v %v", name, x.DType, x.Shape)
			t.Fatal(err)
		}
		return engine.Float32s(v, x.Shape...)
	}
	for _, n := range g.Names() {
		if len(n) < 14 {
			x, _ := g.Tensor(n)
			t.Log(n, x.DType, x.Shape)
		}
	}
	raw, _ := json.Marshal(g.Metadata())
	t.Log(string(raw))
	ts, _ := g.Tensor("timesteps")
	t.Log(ts.DType)
	n := len(p.Tensors)
	fn, err := ad.Compile(e, "unet", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		w := p.Weights(in[:n])
		in2 := in[2*n:]
		pred := u.Forward(w, in2[0], Conditions{Timesteps: in2[1], Context: in2[2]})
		loss := ad.MeanAll(ad.Square(ad.Sub(pred, in2[3])))
		g := ad.Gradient(loss, in[:n]...)
		h := ad.Gradient(ad.Dot(g, in[n:2*n]), in[:n]...)
		return append(append([]*ad.Value{pred, loss}, g...), h...)
	})
	if err != nil {
		t.Fatal(err)
	}
	var in []*engine.Tensor
	in = append(in, p.Tensors...)
	for _, s := range p.Specs {
		x, err := g.Tensor("v." + s.Name)
		if err != nil {
			t.Fatal(err)
		}
		v, _ := x.Float32()
		in = append(in, engine.Float32s(s.ToEngine(v), s.EngineShape()...))
	}
	tv, err := ts.Float32()
	if err != nil {
		t.Log(err)
	}
	_ = tv
	ti := []float32{}
	b, _ := ts.Bytes()
	for i := 0; i < len(b); i += 8 {
		ti = append(ti, float32(int(b[i])|int(b[i+1])<<8))
	}
	in = append(in, get("noisy"), engine.Float32s(ti, len(ti)), get("context"), get("target"))
	out, err := fn.Call(in...)
	if err != nil {
		t.Fatal(err)
	}
	rel := func(a, b []float32) float64 {
		var d, n float64
		for i := range a {
			d += float64(a[i]-b[i]) * float64(a[i]-b[i])
			n += float64(b[i]) * float64(b[i])
		}
		return math.Sqrt(d / n)
	}
	pv, _ := engine.Values(out[0])
	want, _ := g.Tensor("pred")
	wv, _ := want.Float32()
	t.Log("pred", rel(pv, wv))
	worstG, worstH := 0.0, 0.0
	for i, s := range p.Specs {
		for k, base := range map[string]int{"grad.": 2, "hvp.": 2 + n} {
			x, err := g.Tensor(k + s.Name)
			if err != nil {
				t.Fatal(err)
			}
			w, _ := x.Float32()
			gv, _ := engine.Values(out[base+i])
			r := rel(s.FromEngine(gv), w)
			if k == "grad." {
				worstG = max(worstG, r)
			} else {
				worstH = max(worstH, r)
			}
		}
	}
	t.Log("worst grad", worstG, "worst hvp", worstH)
	_ = os.Stdout
}

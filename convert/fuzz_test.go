package convert

import (
	"fmt"
	"strings"
	"testing"

	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

// inMemory is a file that is not on the disk.
type inMemory struct{ weights.Source }

func (inMemory) Path(string) string { return "memory" }

// Whatever a file's tensors are called, they are understood or refused by an error that says which ones.
func FuzzNames(f *testing.F) {
	f.Add("model.diffusion_model.input_blocks.0.0.weight\ncond_stage_model.model.ln_final.bias\nbetas", uint8(0))
	f.Add("cond_stage_model.transformer.encoder.layers.0.x\ncond_stage_model.transformer.text_model.encoder.layers.0.x", uint8(1))
	f.Add("conv_in.weight\nencoder.mid_block.attentions.0.query\nencoder.mid_block.attentions.0.to_q", uint8(2))
	f.Add("conditioner.embedders.1.model.text_projection\nconditioner.\nmodel_ema.diffusion_model", uint8(3))
	f.Add("betas", uint8('t')) // nothing that a model needs
	f.Fuzz(func(t *testing.T, names string, settings uint8) {
		var list []*weights.Tensor
		for _, name := range strings.Split(names, "\n") {
			shape := []int{int(settings>>4) % 3}
			if settings>>6&1 == 1 {
				shape = append(shape, 1, 3, 3)
			}
			list = append(list, small(shape...).Renamed(name))
		}
		memory, err := weights.NewSource(list, nil)
		if err != nil {
			t.Skip()
		}
		source := inMemory{memory}
		kind, err := recognize(source.Names())
		if err != nil && kind != "" {
			t.Errorf("%q is both %s and an error", names, kind)
		}
		base := []string{"sd1", "sd2", "sdxl", ""}[settings&3]
		m := &model{tensors: map[string][]weights.Deferred{}, result: &Result{}}
		if err := m.readSingle("memory", source, Options{Base: models[base], EMA: settings>>3&1 == 1}); err == nil {
			t.Errorf("%d tensors make a model", len(list))
		} else if strings.TrimSpace(err.Error()) == "" {
			t.Error("an error without words")
		}
		for _, folder := range []string{"unet", "vae", "text_encoder"} {
			c := &component{folder: folder, base: "model", specs: []nn.Spec{{Name: "text_model.a", Shape: []int{1}}}}
			if folder != "text_encoder" {
				c.base = sd.UNetWeightsName
			}
			for _, name := range source.Names() {
				if today := c.today(name); c.today(today) != today {
					t.Errorf("%q is called %q and then %q", name, today, c.today(today))
				}
			}
			if tensors, err := c.fromDiffusers(source, "memory", &Result{}); err == nil && len(tensors) != 1 {
				t.Errorf("%d tensors of one", len(tensors))
			}
		}
	})
}

// Every UNet that a configuration can describe has one original name for each parameter.
func FuzzUNetNames(f *testing.F) {
	f.Add(uint8(4), uint32(0x2222), uint8(0b0111), uint8(0b1110), uint32(0x1111), true)
	f.Add(uint8(3), uint32(0x213), uint8(0b110), uint8(0b011), uint32(0x531), false)
	f.Add(uint8(1), uint32(1), uint8(0), uint8(1), uint32(1), false)
	f.Fuzz(func(t *testing.T, levels uint8, layers uint32, down, up uint8, depth uint32, xl bool) {
		n := int(levels%5) + 1
		c := sd.UNetConfig{InChannels: 4, OutChannels: 4, ContextWidth: 8, Groups: 2, Eps: 1e-5, LinearProj: xl, TextTime: xl, TimeIDWidth: 2, AddedInputDim: 20}
		for i := range n {
			c.Channels = append(c.Channels, 4*(i+1))
			c.LayersPerBlock = append(c.LayersPerBlock, int(layers>>(4*i)&3)+1)
			c.DownAttention = append(c.DownAttention, down>>i&1 == 1)
			c.UpAttention = append(c.UpAttention, up>>i&1 == 1)
			c.Depth = append(c.Depth, int(depth>>(4*i)&3)+1)
			c.Heads = append(c.Heads, 1)
		}
		links, err := unetLinks(c)
		if err != nil {
			t.Fatal(err)
		}
		covered := map[string]bool{}
		for _, l := range links {
			if len(l.names) != 1 || covered[l.names[0]] || strings.Contains(l.original, "blocks.0.resnets") {
				t.Fatalf("%+v", l)
			}
			covered[l.names[0]] = true
		}
		for _, s := range sd.NewUNet(c).Specs() {
			if !covered[s.Name] {
				t.Errorf("%s has no original name", s.Name)
			}
		}
	})
}

// A link's tensor, split into parameters and joined again, is the same.
func TestLinksAreUndone(t *testing.T) {
	values := make([]float32, 12*4)
	for i := range values {
		values[i] = float32(i)
	}
	for _, l := range []link{
		{original: "a", shape: []int{12, 4}, names: []string{"a"}},
		{original: "a", shape: []int{12, 4, 1, 1}, names: []string{"a"}, form: pointwise},
		{original: "a", shape: []int{12, 4}, names: []string{"a"}, form: transposed},
		{original: "a", shape: []int{12, 4}, names: []string{"q", "k", "v"}, form: stacked},
		{original: "a", shape: []int{48}, names: []string{"q", "k", "v"}, form: stacked},
	} {
		whole := weights.NewFloat32("p.a", l.shape, values)
		d := weights.Deferred{Name: "p.a", DType: weights.F32, Shape: l.shape, Read: func() (*weights.Tensor, error) { return whole, nil }}
		parts := l.split(d)
		for i, p := range parts {
			got, err := p.Read()
			if err != nil || p.Name != l.names[i] || fmt.Sprint(got.Shape) != fmt.Sprint(p.Shape) {
				t.Errorf("%+v: %s %v (%v)", l, p.Name, p.Shape, err)
			}
		}
		joined, err := l.join("p.", parts)
		if err != nil {
			t.Fatal(err)
		}
		got, err := joined.Read()
		if err != nil {
			t.Fatal(err)
		}
		sameTensors(t, map[string]*weights.Tensor{joined.Name: got}, map[string]*weights.Tensor{"p.a": whole})
	}
}

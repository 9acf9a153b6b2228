package sd

import (
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/nn"
)

func numbers(specs []nn.Spec) int {
	n := 0
	for _, s := range specs {
		n += s.Size()
	}
	return n
}

// The counts are those of the published checkpoints; scripts/check_presets.py counts them in diffusers and transformers.
func TestPresetSizes(t *testing.T) {
	const vae, clipL, clipH, clipG = 83_653_863, 123_060_480, 340_387_840, 694_659_840
	for _, family := range []struct {
		names     []string
		unet, vae int
		text      []int
	}{
		{[]string{"sd14", "sd15", "dreamshaper8"}, 859_520_964, vae, []int{clipL}},
		{[]string{"sd20", "sd21", "sd20-base", "sd21-base"}, 865_910_724, vae, []int{clipH}},
		{[]string{"sdxl", "anything-xl", "pony"}, 2_567_463_684, vae, []int{clipL, clipG}},
	} {
		for _, name := range family.names {
			p, err := FindPreset(name)
			if err != nil {
				t.Fatal(err)
			}
			var text []int
			for _, c := range p.Text {
				text = append(text, numbers(NewTextEncoder(c).Specs()))
			}
			unet, vae := numbers(NewUNet(p.UNet).Specs()), numbers(NewVAE(p.VAE).Specs())
			if unet != family.unet || vae != family.vae || !slices.Equal(text, family.text) {
				t.Errorf("%s has %d, %d and %v parameters, not %d, %d and %v", name, unet, vae, text, family.unet, family.vae, family.text)
			}
		}
	}
	if n := numbers(NewUNet(SmallUNet()).Specs()); n != 4_192_900 {
		t.Errorf("the small UNet has %d parameters", n)
	}
}

// The components of every preset fit one another, as those of a model that is loaded must.
func TestPresetsFit(t *testing.T) {
	for _, p := range Presets() {
		m := &Model{UNet: NewUNet(p.UNet), VAE: NewVAE(p.VAE), XL: p.UNet.TextTime}
		for _, c := range p.Text {
			m.Towers = append(m.Towers, TextTower{Encoder: NewTextEncoder(c)})
		}
		if err := m.checkFit(); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
		if err := p.UNet.CheckLatents(p.UNet.SampleSize, p.UNet.SampleSize); err != nil || m.Resolution() != p.VAE.SampleSize {
			t.Errorf("%s: pictures of %d and latents of %d (%v)", p.Name, p.VAE.SampleSize, p.UNet.SampleSize, err)
		}
		if _, err := diffusion.NewSchedule(p.Scheduler); err != nil || p.Source == "" {
			t.Errorf("%s, %q: %v", p.Name, p.Source, err)
		}
		if velocity := p.Scheduler.PredictionType == diffusion.VPrediction; velocity != (p.Name == "sd20" || p.Name == "sd21") {
			t.Errorf("%s predicts %s", p.Name, p.Scheduler.PredictionType)
		}
	}
	if _, err := FindPreset("sd3"); err == nil || !strings.Contains(err.Error(), "sd21-base") {
		t.Errorf("error %v", err)
	}
}

// What a preset writes is read back as the same architecture, for every preset.
func TestPresetConfigurations(t *testing.T) {
	for _, p := range Presets() {
		dir := filepath.Join(t.TempDir(), p.Name)
		if err := p.Write(dir, 1, true); err != nil {
			t.Fatalf("%s: %v", p.Name, err)
		}
		got := Preset{Name: p.Name, Source: p.Source}
		var errs [4]error
		got.UNet, errs[0] = ReadUNetConfig(filepath.Join(dir, "unet/config.json"))
		got.VAE, errs[1] = ReadVAEConfig(filepath.Join(dir, "vae/config.json"))
		got.Scheduler, errs[2] = diffusion.LoadConfig(filepath.Join(dir, "scheduler/scheduler_config.json"))
		for i := range p.Text {
			text, err := ReadTextConfig(filepath.Join(dir, "text_encoder"+towerSuffix(i), "config.json"))
			errs[3] = errors.Join(errs[3], err)
			got.Text = append(got.Text, text)
		}
		if err := errors.Join(errs[:]...); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
		got.Scheduler.TimestepSpacing, p.Scheduler.TimestepSpacing = "", "" // silence is spelt out as leading
		if !reflect.DeepEqual(got, p) {
			t.Errorf("%s is read back as\n%+v, not\n%+v", p.Name, got, p)
		}
	}
}

// The architectures are those of the published config.json files.
func TestPresetsAreThePublishedOnes(t *testing.T) {
	for name, published := range map[string]string{"sd15": sd1UNet, "sd21": sd2UNet, "sdxl": sdxlUNet} {
		c, err := parseConfig("config.json", []byte(published))
		if err != nil {
			t.Fatal(err)
		}
		want, err := unetConfig(c)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := FindPreset(name); err != nil || !reflect.DeepEqual(p.UNet, want) {
			t.Errorf("%s is %+v, not %+v (%v)", name, p.UNet, want, err)
		}
	}
}

func TestPresetModelLoads(t *testing.T) {
	e := openEngine(t)
	p, err := FindPreset("tiny")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "model")
	if err := p.Write(dir, 7, false); err != nil {
		t.Fatal(err)
	}
	m, err := Load(e, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	if c, err := m.EncodePrompt(t.Context(), "a photo of a dog"); err != nil || len(c.Context) != 77*16 {
		t.Errorf("%+v (%v)", c, err)
	}
	again := RandomParams(m.UNet.Specs(), 7)
	defer again.Free()
	for i := range again.Specs {
		a, errA := m.UNetParams.Host(i)
		b, errB := again.Host(i)
		if err := errors.Join(errA, errB); err != nil || !slices.Equal(a, b) {
			t.Fatalf("%s is not what the seed draws (%v)", again.Specs[i].Name, err)
		}
	}
	if err := p.Write(dir, 7, false); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a folder with a model was written over: %v", err)
	}
}

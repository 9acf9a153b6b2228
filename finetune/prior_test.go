package finetune

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// generated lists the pictures that were made below a folder.
func generated(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "generated-*", "*.png"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func priorConfig(method string, pictures int) Config {
	c := short(method)
	c.ClassPrompt, c.PriorPictures, c.PriorSteps = "a ball", pictures, 2
	return c
}

// Missing prior pictures are made once, kept, made on when more are wanted, and made anew for another model; a folder that
// has enough gets none.
func TestMissingPriorPicturesAreMade(t *testing.T) {
	m, d := load(t), blue(t)
	d.PriorFolder = filepath.Join(t.TempDir(), "new", "class")
	var made []int
	hooks := Hooks{OnWork: func(what string, done, total int) {
		if what == "making prior pictures" && done == total {
			made = append(made, total)
		}
	}}
	first, _ := tune(t, m, priorConfig(DreamBooth, 3), d, hooks)
	again, _ := tune(t, m, priorConfig(DreamBooth, 3), d, hooks)
	if len(generated(t, d.PriorFolder)) != 3 || !identical(trained(t, first), trained(t, again)) {
		t.Errorf("%d pictures, made %v", len(generated(t, d.PriorFolder)), made)
	}
	tune(t, m, priorConfig(SVDiff, 5), d, hooks)
	fewer, _ := tune(t, m, priorConfig(DreamBooth, 3), d, hooks)
	if !identical(trained(t, first), trained(t, fewer)) {
		t.Error("pictures that were made for another run matter")
	}
	other, err := sd.Load(m.Engine, tinyModel)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Free()
	other.UNetParams = other.UNetParams.WithTensors(first.UNet.Tensors) // adapted in memory, with the files of before
	tune(t, other, priorConfig(DreamBooth, 3), d, hooks)
	if len(made) != 3 || made[0] != 3 || made[1] != 2 || made[2] != 3 || len(generated(t, d.PriorFolder)) != 8 {
		t.Errorf("made %v, %d pictures", made, len(generated(t, d.PriorFolder)))
	}

	own := drawn(t, "whatever", [3]uint8{30, 200, 60}, 4)
	d.PriorFolder = own.Dir
	enough, _ := tune(t, m, priorConfig(DreamBooth, 4), d, hooks)
	if len(generated(t, own.Dir)) != 0 {
		t.Error("pictures were made although there are enough")
	}
	named, err := own.WithCaption("a ball")
	if err != nil {
		t.Fatal(err)
	}
	d.PriorFolder, d.Prior = "", only(named)
	same := short(DreamBooth)
	given, _ := tune(t, m, same, d, hooks)
	if !identical(trained(t, enough), trained(t, given)) {
		t.Error("pictures of a folder are not trained on under the class prompt")
	}
	d.PriorFolder, d.Prior = own.Dir, nil
	tune(t, m, priorConfig(DreamBooth, 6), d, hooks)
	if n := len(generated(t, own.Dir)); n != 2 {
		t.Errorf("%d pictures were made for 4 of 6", n)
	}
}

func TestPriorSettingsThatDoNotFit(t *testing.T) {
	m, d := load(t), blue(t)
	for want, change := range map[string]func(c *Config, d *Data){
		"belong together":     func(c *Config, d *Data) { d.PriorFolder = t.TempDir() },
		"both or neither":     func(c *Config, _ *Data) { c.ClassPrompt = "a ball" },
		"given twice":         func(c *Config, d *Data) { c.ClassPrompt, d.PriorFolder, d.Prior = "a ball", t.TempDir(), d.Pictures },
		"class_prompt: \" \"": func(c *Config, d *Data) { c.ClassPrompt, d.PriorFolder = " ", t.TempDir() },
		"prior_pictures: 0":   func(c *Config, _ *Data) { c.ClassPrompt, c.PriorPictures = "a ball", 0 },
		"prior_steps: 0":      func(c *Config, _ *Data) { c.ClassPrompt, c.PriorSteps = "a ball", 0 },
		"only for methods":    func(c *Config, _ *Data) { c.Method, c.ClassPrompt = Full, "a ball" },
		"no use for them":     func(c *Config, d *Data) { c.Method, d.PriorFolder = Full, t.TempDir() },
		"buckets do not go":   func(c *Config, d *Data) { c.Buckets, d.Prior = true, d.Pictures },
		"cannot be listed": func(c *Config, d *Data) {
			c.ClassPrompt, d.PriorFolder = "a ball", filepath.Join(d.Pictures[0].Folder.Dir, "00.png")
		},
		"lora_dropout: 1 must": func(c *Config, _ *Data) { c.Method, c.LoRADropout = LoRA, 1 },
		"lora_dropout: 0.5 is": func(c *Config, _ *Data) { c.LoRADropout = 0.5 },
		"bucket_upscale":       func(c *Config, _ *Data) { c.BucketUpscale = true },
	} {
		c, d := short(DreamBooth), d
		change(&c, &d)
		_, err := Run(t.Context(), m, m.UNetParams, c, d, Hooks{})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v", want, err)
		}
	}
}

// Asked to finish while prior pictures are made, a job leaves those that are there and no run.
func TestInterruptedWhileMakingPriorPictures(t *testing.T) {
	j, out := shortJob(t, DreamBooth), filepath.Join(t.TempDir(), "run")
	j.Config, j.Prior = priorConfig(DreamBooth, 3), filepath.Join(t.TempDir(), "class")
	finish := make(chan struct{})
	_, err := RunJob(t.Context(), openEngine(t), out, j, JobHooks{Finish: finish, OnWork: func(_ string, done, _ int) {
		if done == 1 {
			close(finish)
		}
	}})
	if !errors.Is(err, train.ErrInterrupted) || len(generated(t, j.Prior)) != 1 {
		t.Errorf("%d pictures: %v", len(generated(t, j.Prior)), err)
	}
	absent(t, out)
	j.ClassPrompt = ""
	if _, err := RunJob(t.Context(), openEngine(t), out, j, JobHooks{}); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("a prior folder without pictures: %v", err)
	}
	j.Prior = filepath.Join(t.TempDir(), "nowhere")
	if _, err := RunJob(t.Context(), openEngine(t), out, j, JobHooks{}); err == nil || !strings.Contains(err.Error(), "class prompt") {
		t.Errorf("no prior folder: %v", err)
	}
}

// Pictures of three shapes are trained on in batches of one size each, the log says which, and the interrupted run's record
// is that of an uninterrupted one.
func TestBuckets(t *testing.T) {
	m := load(t)
	dir := t.TempDir()
	for name, size := range map[string][2]int{"a": {64, 32}, "b": {32, 64}, "c": {40, 40}, "d": {48, 48}, "e": {130, 66}, "f": {24, 24}} {
		p := data.NewRGB(size[0], size[1])
		for i := range p.Pix {
			p.Pix[i] = uint8(i)
		}
		if err := data.SavePNG(filepath.Join(dir, name+".png"), p); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".txt"), []byte("a ball"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	folder, err := data.ReadFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := short(LoRA)
	c.Buckets, c.Steps = true, 4
	var counts []data.BucketCount
	_, events := tune(t, m, c, Data{Pictures: only(folder), Cache: cache(t)}, Hooks{OnBuckets: func(b []data.BucketCount) { counts = b }})
	total := 0
	logged, _ := events[0].Fields["buckets"].(map[string]int)
	for _, b := range counts {
		total += b.Pictures
		if logged[b.String()] != b.Pictures {
			t.Errorf("the log says %v, the hook %v", logged, counts)
		}
	}
	if total != 6 || len(counts) < 4 || events[1].Fields["buckets"] != nil {
		t.Errorf("buckets %v", counts)
	}
	c.BucketUpscale = true
	tune(t, m, c, Data{Pictures: only(folder), Cache: cache(t)}, Hooks{OnBuckets: func(b []data.BucketCount) { counts = b }})
	if len(counts) != 3 {
		t.Errorf("with small pictures enlarged the buckets are %v", counts)
	}
}

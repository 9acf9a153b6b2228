package verify

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/weights"
)

const (
	golden  = "../testdata/golden"
	sd1Full = "../testdata/references/sd1-full"
	sd2     = "../testdata/references/sd2"
	sdxl    = "../testdata/references/sdxl-small"
)

func openEngine(t testing.TB) *engine.Engine {
	return enginetest.Open(t)
}

// groups runs a directory and returns its checks by kind and group.
func groups(t *testing.T, dir string, e *engine.Engine) (map[string]Check, Result) {
	t.Helper()
	out := map[string]Check{}
	result, err := Run(t.Context(), dir, e, func(c Check) {
		kind, _, _ := strings.Cut(c.Case, " ")
		out[kind+" "+c.Group] = c
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != len(result.Checks) {
		t.Errorf("%d checks under %d names", len(result.Checks), len(out))
	}
	return out, result
}

func TestReferences(t *testing.T) {
	e := openEngine(t)
	for dir, want := range map[string]map[string]int{ // tensors by group
		golden: {
			"schedulers pndm": 12, "tokenizer token ids": 13, "pipeline cond": 1, "pipeline uncond": 1, "pipeline vae.mean": 1,
			"pipeline vae.logvar": 1, "pipeline vae.decoded": 1, "pipeline euler.latents": 1, "pipeline pndm.image": 1, "unet pred": 1,
			"unet grad": 208, "unet hvp": 208, "resalign theta_star": 64, "resalign theta_star − theta": 64, "resalign theta_adam": 64,
			"resalign hypergrad γ=0.1": 64, "resalign hypergrad γ=0.5": 64, "resalign hypergrad γ=1.0": 64, "resalign hypergrad": 64,
			"resalign hypergrad γ=1.0 (central differences)": 64, "resalign theta_next": 64, "resalign losses": 3,
		},
		sd1Full: {
			"pipeline token_ids": 2, "pipeline cond": 1, "pipeline uncond": 1, "pipeline vae.mean": 1, "pipeline vae.decoded": 1,
			"pipeline ddim.image": 1, "pipeline pndm.latents": 1, "pipeline dpmsolver.latents": 1, "pipeline euler.latents": 1,
			"unet noisy": 1, "unet grad": 11, "unet hvp_of_grad": 11, "unet grad_norms": 684, "unet hvp_of_grad_norms": 684,
		},
		sd2: {
			"pipeline token_ids": 2, "pipeline cond": 1, "pipeline uncond": 1, "pipeline ddim.latents": 1, "pipeline ddim.image": 1,
			"pipeline dpmsolver.latents": 1, "pipeline euler.latents": 1, "unet target": 1, "unet grad": 11, "unet hvp_of_grad": 11,
			"unet grad_norms": 442, "unet hvp_of_grad_norms": 442,
		},
		sdxl: {
			"pipeline token_ids_2": 2, "pipeline cond": 1, "pipeline pooled": 1, "pipeline ddim.latents": 1, "pipeline ddim.image": 1,
			"pipeline dpmsolver.latents": 1, "pipeline euler.latents": 1, "unet pred": 1, "unet grad": 13, "unet hvp_of_grad": 13,
			"unet grad_norms": 618, "unet hvp_of_grad_norms": 618,
		},
	} {
		checks, result := groups(t, dir, e)
		for _, c := range result.Checks {
			t.Logf("%-42s %-40s %8.2g of %5g  %3d tensors", c.Case, c.Group, c.Error, c.Tolerance, c.Tensors)
			if !c.OK() {
				t.Errorf("%s, %s: error %g is above %g (%s)", c.Case, c.Group, c.Error, c.Tolerance, c.Worst)
			}
		}
		if !result.OK() || len(result.Unchecked) > 0 {
			t.Errorf("%s: OK is %v, unchecked are %v", dir, result.OK(), result.Unchecked)
		}
		for name, tensors := range want {
			if checks[name].Tensors != tensors {
				t.Errorf("%s: %s compares %d tensors instead of %d", dir, name, checks[name].Tensors, tensors)
			}
		}
	}
}

// copyReference copies some cases of a reference directory, with the files that edit returns changed: their tensors are
// given by name and may be replaced, removed or added.
func copyReference(t *testing.T, from string, kinds []string, edit func(file string, tensors map[string]*weights.Tensor, metadata map[string]string)) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	var index struct {
		Cases []entry `json:"cases"`
	}
	if err := readJSON(filepath.Join(dir, "index.json"), &index); err != nil {
		t.Fatal(err)
	}
	index.Cases = slices.DeleteFunc(index.Cases, func(c entry) bool { return !slices.Contains(kinds, c.Kind) })
	data, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "index.json"), string(data))
	if edit == nil {
		return dir
	}
	for _, c := range index.Cases {
		source, err := weights.Open(filepath.Join(dir, c.Tensors))
		if err != nil {
			t.Fatal(err)
		}
		tensors := map[string]*weights.Tensor{}
		for _, name := range source.Names() {
			if tensors[name], err = source.Tensor(name); err != nil {
				t.Fatal(err)
			}
		}
		metadata := source.Metadata()
		if metadata == nil {
			metadata = map[string]string{}
		}
		edit(c.Tensors, tensors, metadata)
		list := slices.Collect(maps.Values(tensors))
		if err := weights.Write(filepath.Join(dir, c.Tensors), list, metadata); err != nil {
			t.Fatal(err)
		}
		if err := source.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// scaled is a tensor times a factor.
func scaled(t *testing.T, x *weights.Tensor, factor float32) *weights.Tensor {
	t.Helper()
	values, err := x.Float32()
	if err != nil {
		t.Fatal(err)
	}
	for i := range values {
		values[i] *= factor
	}
	return weights.NewFloat32(x.Name, x.Shape, values)
}

func TestPerturbedReferencesFail(t *testing.T) {
	e := openEngine(t)
	const toQ = "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight"
	for _, test := range []struct {
		name, from string
		kinds      []string
		factors    map[string]float32 // on tensors of the reference
		fails      []string
	}{
		{"pipeline", golden, []string{"pipeline"}, map[string]float32{"cond": 1.001, "vae.logvar": 1.001, "pndm.image": 1.001}, []string{"cond", "vae.logvar", "pndm.image"}},
		{
			"unet", golden, []string{"unet"}, map[string]float32{
				"latents": 1.001, "loss": 1.001, "grad.conv_out.bias": 1.001, "hvp.mid_block.resnets.0.norm1.weight": 1.01,
			}, []string{"noisy", "loss", "grad", "hvp"},
		},
		{
			"resalign", golden, []string{"resalign"}, map[string]float32{
				"retain.teacher": 1.001, "theta_next." + toQ: 1.001, "hypergrad_gamma0.5." + toQ: 1.01,
			}, []string{"retain.teacher", "hypergrad γ=0.5", "hypergrad γ=0.5 (central differences)", "theta_next"},
		},
		{
			"norms", sdxl,
			[]string{"unet", "pipeline"},
			map[string]float32{"grad_norms": 1.001, "hvp_of_grad_norms": 1.01},
			[]string{"grad_norms", "hvp_of_grad_norms"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := copyReference(t, test.from, test.kinds, func(_ string, tensors map[string]*weights.Tensor, _ map[string]string) {
				for name, factor := range test.factors {
					if x := tensors[name]; x != nil {
						tensors[name] = scaled(t, x, factor)
					}
				}
			})
			_, result := groups(t, dir, e)
			if result.OK() {
				t.Error("the result is OK")
			}
			var failed []string
			for _, c := range result.Checks {
				if !c.OK() {
					failed = append(failed, c.Group)
				}
			}
			if !slices.Equal(failed, test.fails) {
				t.Errorf("failed are %q, want %q", failed, test.fails)
			}
		})
	}
}

func TestUncheckedTensorsAreListed(t *testing.T) {
	dir := copyReference(t, golden, []string{"unet"}, func(_ string, tensors map[string]*weights.Tensor, _ map[string]string) {
		for name := range tensors {
			if strings.HasPrefix(name, "grad.") || strings.HasPrefix(name, "hvp.") || strings.HasPrefix(name, "v.") {
				delete(tensors, name)
			}
		}
		tensors["spare"] = weights.NewFloat32("spare", []int{1}, []float32{1})
	})
	checks, result := groups(t, dir, openEngine(t))
	if want := []string{"unet-tiny-sd.safetensors: spare"}; !slices.Equal(result.Unchecked, want) {
		t.Errorf("unchecked are %q, want %q", result.Unchecked, want)
	}
	if _, ok := checks["unet grad"]; ok || !result.OK() {
		t.Error("a file without derivatives is not compared by its prediction and loss alone")
	}
}

// Without a target the loss is that of the prediction type: here that of a velocity model.
func TestVelocityTarget(t *testing.T) {
	dir := copyReference(t, golden, []string{"unet"}, func(_ string, tensors map[string]*weights.Tensor, _ map[string]string) {
		delete(tensors, "target")
	})
	config := filepath.Join(dir, "tiny-sd/scheduler/scheduler_config.json")
	data, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, config, strings.Replace(string(data), `"epsilon"`, `"v_prediction"`, 1))
	checks, _ := groups(t, dir, openEngine(t))
	if checks["unet loss"].OK() || !checks["unet pred"].OK() {
		t.Error("the loss of a velocity model equals that of a noise model")
	}
}

func TestBadReferencesAreClearErrors(t *testing.T) {
	e := openEngine(t)
	edited := func(from, kind string, edit func(tensors map[string]*weights.Tensor, metadata map[string]string)) func(t *testing.T) string {
		return func(t *testing.T) string {
			kinds := []string{kind}
			return copyReference(t, from, kinds, func(_ string, tensors map[string]*weights.Tensor, metadata map[string]string) {
				edit(tensors, metadata)
			})
		}
	}
	without := func(from, kind, name string) func(t *testing.T) string {
		return edited(from, kind, func(tensors map[string]*weights.Tensor, metadata map[string]string) {
			if _, ok := tensors[name]; !ok && metadata[name] == "" {
				panic("no such tensor or setting: " + name)
			}
			delete(tensors, name)
			delete(metadata, name)
		})
	}
	index := func(text string) func(t *testing.T) string {
		return func(t *testing.T) string {
			dir := t.TempDir()
			writeFile(t, filepath.Join(dir, "index.json"), text)
			return dir
		}
	}
	reshaped := func(name string, shape ...int) func(t *testing.T) string {
		return edited(golden, "unet", func(tensors map[string]*weights.Tensor, _ map[string]string) {
			n := 1
			for _, d := range shape {
				n *= d
			}
			tensors[name] = weights.NewFloat32(name, shape, make([]float32, n))
		})
	}
	const q = "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight"
	for name, test := range map[string]struct {
		dir  func(t *testing.T) string
		want []string
	}{
		"no directory":       {func(t *testing.T) string { return filepath.Join(t.TempDir(), "none") }, []string{"none", "index.json"}},
		"no JSON":            {index(`{"cases": [`), []string{"index.json", "JSON"}},
		"no cases":           {index(`{}`), []string{"index.json", "cases"}},
		"unknown kind":       {index(`{"cases": [{"kind": "clip", "tensors": "a"}]}`), []string{`"clip"`, "pipeline, resalign, schedulers, tokenizer, unet"}},
		"no field":           {index(`{"cases": [{"kind": "unet", "tensors": "a"}]}`), []string{"case 1 (unet)", `"model"`}},
		"outside":            {index(`{"cases": [{"kind": "unet", "model": "m", "tensors": "../a"}]}`), []string{`tensors = "../a"`}},
		"missing file":       {index(`{"cases": [{"kind": "schedulers", "tensors": "a.safetensors"}]}`), []string{"schedulers a.safetensors"}},
		"schedule":           {without(golden, "schedulers", "pndm.epsilon.7.x_final"), []string{"schedulers.safetensors", `pndm.epsilon.7.x_final`}},
		"no prompts":         {without(golden, "pipeline", "prompts"), []string{"tiny-sd-pipeline.safetensors", `"prompts"`}},
		"no steps":           {without(golden, "pipeline", "steps"), []string{`"steps"`}},
		"no noise":           {without(golden, "pipeline", "init_noise"), []string{`"init_noise"`}},
		"no moments":         {without(golden, "pipeline", "vae.mean"), []string{`"vae.mean"`}},
		"no prediction":      {without(golden, "unet", "pred"), []string{"unet-tiny-sd.safetensors", `"pred"`}},
		"gradient missing":   {without(golden, "unet", "grad.conv_in.weight"), []string{`"grad.conv_in.weight"`}},
		"product missing":    {without(golden, "unet", "hvp.conv_in.bias"), []string{`"hvp.conv_in.bias"`}},
		"direction missing":  {without(golden, "unet", "v.conv_in.bias"), []string{`"v.conv_in.bias"`}},
		"context missing":    {without(golden, "unet", "context"), []string{`"context"`}},
		"conditions missing": {edited(sdxl, "unet", func(map[string]*weights.Tensor, map[string]string) {}), []string{`"context"`, "of the model model"}},
		"wrong rank":         {reshaped("noisy", 2, 4), []string{`"noisy"`, "[2 4]", "[any 4 any any]"}},
		"wrong size":         {reshaped("noisy", 2, 4, 5, 5), []string{`"noisy"`, "5×5"}},
		"empty":              {reshaped("noisy", 0, 4, 16, 16), []string{`"noisy"`, "[0 4 16 16]"}},
		"wrong context":      {reshaped("context", 2, 77, 31), []string{`"context"`, "[2 77 31]"}},
		"wrong type":         {reshaped("timesteps", 2), []string{`"timesteps"`, "F32"}},
		"no adapter":         {without(golden, "resalign", "theta."+q), []string{"resalign-tiny-sd.safetensors", "to_q"}},
		"half a vector":      {without(golden, "resalign", "hypergrad_gamma0.5."+q), []string{"hypergrad_gamma0.5", "to_q"}},
		"no residuals":       {without(golden, "resalign", "residuals"), []string{`"residuals"`}},
		"no inner steps": {edited(golden, "resalign", func(_ map[string]*weights.Tensor, m map[string]string) {
			m["inner_steps"] = "0"
		}), []string{"inner_steps", "inner_losses"}},
		"wrong setting": {edited(golden, "resalign", func(_ map[string]*weights.Tensor, m map[string]string) {
			m["inner_lr"] = "fast"
		}), []string{`"inner_lr"`, "fast"}},
		"timestep out of range": {edited(golden, "resalign", func(tensors map[string]*weights.Tensor, _ map[string]string) {
			x, err := weights.New("retain.timesteps", weights.I64, []int{2}, slices.Repeat([]byte{0, 0, 1, 0, 0, 0, 0, 0}, 2))
			if err != nil {
				panic(err)
			}
			tensors["retain.timesteps"] = x
		}), []string{"retain", "65536"}},
		"size conditions": {edited(sdxl, "pipeline", func(tensors map[string]*weights.Tensor, _ map[string]string) {
			tensors["time_ids"] = weights.NewFloat32("time_ids", []int{2, 6}, make([]float32, 12))
		}), []string{`"time_ids"`, "[16 16 0 0 16 16]"}},
		"names of norms": {func(t *testing.T) string {
			dir := copyReference(t, sdxl, []string{"unet", "pipeline"}, nil)
			writeFile(t, filepath.Join(dir, "unet-model.names.json"), `["conv_in.weight"]`)
			return dir
		}, []string{"unet-model.names.json", "618"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Run(t.Context(), test.dir(t), e, nil)
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range test.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
			if errors.Is(err, engine.ErrInternal) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q is not one clear line", err)
			}
		})
	}
}

func TestCancelledRunStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	seen := 0
	_, err := Run(ctx, golden, openEngine(t), func(Check) {
		seen++
		cancel()
	})
	if !errors.Is(err, context.Canceled) || seen > 20 {
		t.Errorf("error %v after %d checks", err, seen)
	}
	if _, err := Run(t.Context(), "none", nil, nil); errors.Is(err, fs.ErrNotExist) || err == nil {
		t.Errorf("a missing directory gives %v", err)
	}
}

func TestGroupErrors(t *testing.T) {
	for name, test := range map[string]struct {
		fill  func(g *group)
		want  float64
		worst string
	}{
		"equal":     {func(g *group) { g.add("a", []float32{1, 2}, []float32{1, 2}) }, 0, "a"},
		"zeros":     {func(g *group) { g.add("a", []float32{0}, []float32{0}) }, 0, "a"},
		"not zero":  {func(g *group) { g.add("a", []float32{1}, []float32{0}) }, math.Inf(1), "a"},
		"relative":  {func(g *group) { g.add("a", []float32{3, 5}, []float32{3, 4}) }, 0.2, "a"},
		"worst":     {func(g *group) { g.addNumber("a", 1, 1); g.addNumber("b", 3, 2); g.addNumber("c", 2, 2) }, 0.5, "b"},
		"tiny":      {func(g *group) { g.addNumber("a", 2e-9, 1e-9); g.addNumber("b", 1, 1) }, 1e-9 / (1e-3 * math.Sqrt(0.5)), "a"},
		"NaN":       {func(g *group) { g.addNumber("a", math.NaN(), 1); g.addNumber("b", 9, 1) }, math.NaN(), "a"},
		"too short": {func(g *group) { g.add("a", []float32{1}, []float32{1, 1}) }, math.Inf(1), "a (1 numbers instead of 2)"},
	} {
		g := newGroup("g", 1e-4)
		test.fill(g)
		c := g.check()
		same := math.Abs(c.Error-test.want) < 1e-6*test.want || c.Error == test.want || math.IsNaN(c.Error) && math.IsNaN(test.want)
		if !same || c.Worst != test.worst {
			t.Errorf("%s: error %g at %q, want %g at %q", name, c.Error, c.Worst, test.want, test.worst)
		}
		if c.OK() != (test.want <= 1e-4) {
			t.Errorf("%s: OK is %v", name, c.OK())
		}
	}
}

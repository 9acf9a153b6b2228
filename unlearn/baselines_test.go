package unlearn

import (
	"context"
	"math"
	"slices"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
)

// The target of safegen, put together from the pictures: noise, and what the latents of the coarse picture lack.
func TestSafeGenTarget(t *testing.T) {
	e, ctx := openEngine(t), context.Background()
	r := methodRecipe(t, SafeGen)
	tr := methodTrainer(t, e, r)
	h, err := tr.harmBatch(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer h.free()
	samples, err := tr.harmful.Samples(ctx, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	drawn := tr.harmful.Drawn(1)
	side := tr.model.Resolution()
	var want, empty []float32
	null, err := tr.model.EncodePrompt(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range samples {
		folder, err := data.ReadPictures(r.Data["harmful"].Folder)
		if err != nil {
			t.Fatal(err)
		}
		picture, err := folder.Decode(slices.IndexFunc(folder.Pictures, func(p data.Picture) bool { return folder.Path(slices.Index(folder.Pictures, p)) == drawn[i].Path }))
		if err != nil {
			t.Fatal(err)
		}
		pixels, err := data.Preprocess{Resolution: side}.Apply(picture, false)
		if err != nil {
			t.Fatal(err)
		}
		latents := func(pixels []float32) []float32 {
			m, err := tr.model.EncodePicture(ctx, pixels, side, side)
			if err != nil {
				t.Fatal(err)
			}
			stream := random.New(r.Seed, "harmful", "sample", len(samples)+i)
			stream.Float64() // whether a caption is dropped
			_ = stream.IntN(tr.model.Schedule.NumTrainTimesteps())
			return tr.model.Sample(m, stream.Normals(len(m.Mean)))
		}
		coarse := make([]float32, len(pixels))
		b := r.Censor.Block
		for k := range pixels { // one pixel after the other, by its square
			c, y, x := k/(side*side), k/side%side, k%side
			sum := 0.0
			for v := y / b * b; v < y/b*b+b; v++ {
				for u := x / b * b; u < x/b*b+b; u++ {
					sum += float64(pixels[c*side*side+v*side+u])
				}
			}
			coarse[k] = float32(sum / float64(b*b))
		}
		z, zCoarse := latents(pixels), latents(coarse)
		near(t, "latents", s.Latents, z, 1e-6)
		for k, n := range s.Noise {
			want = append(want, n+z[k]-zCoarse[k])
		}
		empty = append(empty, null.Context...)
	}
	near(t, "target", hostValues(t, h.batch.Target), want, 1e-5)
	near(t, "prompts", hostValues(t, h.batch.Context), empty, 1e-6)
	retained, err := tr.retain.Samples(ctx, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "retained prompt", retained[0].Embedding.Context, null.Context, 1e-6)
}

// Whatever a model predicts, an output is signal·z + noise·ε taken apart: the coefficients agree with the schedule's own
// targets for two noises that lead to the same noisy latents.
func TestOutputCoefficients(t *testing.T) {
	const signal, noise, z, eps, more = 0.6, 0.8, 0.3, -1.2, 0.05
	noisy := signal*z + noise*eps
	other := (noisy - noise*(eps+more)) / signal // the latents that the larger noise stands for
	output := func(p diffusion.PredictionType, z, eps float64) float64 {
		switch p {
		case diffusion.VPrediction:
			return signal*eps - noise*z
		case diffusion.Sample:
			return z
		}
		return eps
	}
	for _, p := range []diffusion.PredictionType{diffusion.Epsilon, diffusion.VPrediction, diffusion.Sample} {
		want := output(p, other, eps+more) - output(p, z, eps)
		if got := more * outputPerNoise(p, signal, noise); math.Abs(got-want) > 1e-12 {
			t.Errorf("%s: the output changes by %v, not %v", p, want, got)
		}
		ofNoisy, ofOutput := cleanCoefficients(p, signal, noise)
		if got := ofNoisy*noisy + ofOutput*output(p, z, eps); math.Abs(got-z) > 1e-12 {
			t.Errorf("%s: latents %v, not %v", p, got, z)
		}
	}
}

// The gradient of lcfdsd is the slope of its loss, which is written down here anew and measured along two directions.
func TestContrastGradient(t *testing.T) {
	e, ctx := openEngine(t), context.Background()
	for _, method := range []string{LCFDSDNG, LCFDSDLT} {
		t.Run(method, func(t *testing.T) {
			r := methodRecipe(t, method)
			r.Trainable.DownStd, r.Trainable.UpStd = 0.2, 0.2
			tr := methodTrainer(t, e, r)
			const alpha = 0.7
			got, err := tr.contrasted(ctx, 0, 0, alpha, &result{})
			if err != nil {
				t.Fatal(err)
			}
			defer got.Free()
			for name, c := range map[string]*class{"retained": tr.contrast.retained, "harmful": tr.contrast.harmful} {
				if c.count != 3 { // two pictures and what it began as
					t.Errorf("the %s centre is the mean of %d", name, c.count)
				}
			}
			// Centres have taken in the predictions at θ and are constants now. The harmful ones were not in when retained
			// pictures were compared with them.
			began := newContrast(r.Seed, len(tr.contrast.retained.centre), 1, 1)
			centres := map[float64][2][]float32{
				1:  {tr.contrast.retained.centre, began.harmful.centre},
				-1: {tr.contrast.harmful.centre, tr.contrast.retained.centre},
			}
			loss := func(p denoise.Point) float64 {
				total := 0.0
				for sign, set := range map[float64]*denoise.Sampler{1: tr.retain, -1: tr.harmful} {
					samples, err := set.Samples(ctx, 0, 1)
					if err != nil {
						t.Fatal(err)
					}
					for _, s := range samples {
						total += pictureLoss(t, tr, p, s, sign, alpha, centres[sign]) / float64(len(samples))
					}
				}
				return total
			}
			start := tr.outer.Point()
			for _, way := range []string{"one way", "another"} {
				var direction denoise.Vector
				for i, x := range tr.outer.Selected() {
					direction = append(direction, engine.Float32s(random.New(5, way, i).Normals(x.Size()), engine.Shape(x)...))
				}
				slope, err := tr.space.Dot(got, direction)
				if err != nil {
					t.Fatal(err)
				}
				const h = 2e-3
				at := func(by float64) float64 {
					moved, err := tr.space.Mix(1, tr.theta.Of(start), by, direction)
					if err != nil {
						t.Fatal(err)
					}
					return loss(tr.theta.Put(start, moved))
				}
				if want := (at(h) - at(-h)) / (2 * h); !(math.Abs(slope-want) <= 0.01*math.Abs(want)+2e-4) {
					t.Errorf("%s: slope %v, differences give %v", way, slope, want)
				}
			}
		})
	}
}

// pictureLoss is lcfdsd's loss of one picture, straight from its definition.
func pictureLoss(t *testing.T, tr *trainer, p denoise.Point, s denoise.Sample, sign, alpha float64, centres [2][]float32) float64 {
	t.Helper()
	c := tr.recipe.Contrast
	signal, noise, err := tr.model.Schedule.Coefficients(s.Timestep)
	if err != nil {
		t.Fatal(err)
	}
	shift := 0.0
	if tr.recipe.Method == LCFDSDNG {
		shift = sign * c.NoiseShift
	}
	noisy := make([]float32, len(s.Noise))
	for k, n := range s.Noise {
		noisy[k] = float32(signal*float64(s.Latents[k]) + noise*(float64(n)+shift))
	}
	h, w, err := tr.latentSize()
	if err != nil {
		t.Fatal(err)
	}
	b := &denoise.Batch{
		Noisy: engine.Float32s(noisy, 1, 4, h, w), Timesteps: engine.Float32s([]float32{float32(s.Timestep)}, 1),
		Context: engine.Float32s(s.Embedding.Context, 1, s.Embedding.Tokens, s.Embedding.Width),
	}
	defer b.Free()
	out, err := tr.net.Predict(context.Background(), p, b)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Free(out)
	own, other, denoising := 0.0, 0.0, 0.0
	for k, o := range hostValues(t, out) {
		denoising += math.Pow(float64(o)-float64(s.Noise[k]), 2) / float64(len(s.Noise))
		x := (float64(noisy[k]) - noise*float64(o)) / signal
		if tr.recipe.Method == LCFDSDLT {
			if sign > 0 {
				x = -x - c.LatentShift
			} else {
				x += c.LatentShift
			}
		}
		own += math.Pow(x-float64(centres[0][k]), 2)
		other += math.Pow(x-float64(centres[1][k]), 2)
	}
	loss := c.Weight * (math.Sqrt(own) - c.Push*max(0, math.Sqrt(other)-c.Margin))
	if sign > 0 {
		return loss + alpha*denoising
	}
	return loss - c.Ascent*denoising
}

// A centre is the mean of what it began as and what it took in since, and begins to count anew after an epoch.
func TestCentres(t *testing.T) {
	c := &class{centre: []float32{1, 4}, count: 1, epoch: 3}
	c.take([][]float64{{3, 0}, {2, 2}})
	if !slices.Equal(c.centre, []float32{2, 2}) || c.count != 3 {
		t.Errorf("the mean is %v of %d", c.centre, c.count)
	}
	c.take([][]float64{{6, 6}})
	if !slices.Equal(c.centre, []float32{3, 3}) {
		t.Errorf("the mean is %v", c.centre)
	}
	c.take([][]float64{{5, 7}}) // the epoch of three is over: half of what it was, half of this
	if !slices.Equal(c.centre, []float32{4, 5}) || c.count != 2 {
		t.Errorf("after an epoch the mean is %v of %d", c.centre, c.count)
	}
	if loss, slope := (Contrast{Push: 0.5, Margin: 1}).apart([]float64{3, 4}, []float32{0, 0}, []float32{3, 0}); loss != 5-0.5*3 || math.Abs(slope[0]-0.6) > 1e-12 || math.Abs(slope[1]-0.3) > 1e-12 {
		t.Errorf("the loss of a 3–4–5 triangle is %v with the slope %v", loss, slope)
	}
	if loss, slope := (Contrast{Push: 1, Margin: 5}).apart([]float64{3, 4}, []float32{3, 4}, []float32{3, 0}); loss != 0 || slope[0] != 0 || slope[1] != 0 {
		t.Errorf("at the own centre and within the margin of the other the loss is %v with the slope %v", loss, slope)
	}
}

// Adversarial words stand between the start of a prompt and its own words, each sample's apart, and the prompt keeps an end.
func TestPrefixedPrompts(t *testing.T) {
	a := &adversary{Attack: Attack{Tokens: 2}, first: 100, end: 9}
	got := a.prefixed([][]int32{{8, 1, 2, 9, 9, 9}, {8, 1, 2, 3, 4, 9}})
	want := [][]int32{{8, 100, 101, 1, 2, 9}, {8, 102, 103, 1, 2, 9}}
	for i := range want {
		if !slices.Equal(got[i], want[i]) {
			t.Errorf("prompt %d is %v, not %v", i, got[i], want[i])
		}
	}
}

// advunlearn: an attack lowers its own loss, and what θ is trained on is the negatively guided prediction of θ₀, under the
// prompt with the words found before it.
func TestAttack(t *testing.T) {
	e, ctx := openEngine(t), context.Background()
	for name, change := range map[string]func(r *Recipe){
		"pictures": func(*Recipe) {},
		"signs":    func(r *Recipe) { r.Attack.Sign = true },
		"prompts": func(r *Recipe) {
			r.Latents.From, r.Latents.Prompts, r.Latents.Steps, r.Latents.Batch = FromPrompts, []string{"a red ball", "nudity"}, 4, 2
			delete(r.Data, "harmful")
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := methodRecipe(t, AdvUnlearn)
			r.Attack.Steps, r.Attack.LearningRate = 6, 3e-2
			change(&r)
			tr := methodTrainer(t, e, r)
			const at = 3
			h, err := tr.harmBatch(ctx, at)
			if err != nil {
				t.Fatal(err)
			}
			defer h.free()
			rows := tr.adversary.rows.Of(h.point)
			begin := tr.adversary.begin(r.Seed, at, 4)
			table, err := tr.model.Towers[0].Params.Host(tr.model.Towers[0].Encoder.TokenTable())
			if err != nil {
				t.Fatal(err)
			}
			word := hostValues(t, begin)
			if !containsRow(table, word[:tr.adversary.width]) {
				t.Error("an attack begins elsewhere than at words")
			}
			for i, x := range hostValues(t, rows[0]) { // a step of Adam is no longer than its rate, about
				if off := math.Abs(float64(x - word[i])); off == 0 || off > 1.2*float64(r.Attack.Steps)*r.Attack.LearningRate {
					t.Fatalf("number %d of the words has moved by %v", i, off)
				}
			}
			// The original encoder's view of the same prompts, which is the aim of the attack and the base of the target.
			prompts, again, err := tr.promptsOf(ctx, at)
			if err != nil {
				t.Fatal(err)
			}
			prefixed := tr.adversary.prefixed(prompts)
			attackLoss := func(rows denoise.Vector) (sum float64) {
				for k := range 4 {
					b, err := again(100 + k) // other latents than the attack saw
					if err != nil {
						t.Fatal(err)
					}
					aim, err := tr.teacher.Predict(ctx, tr.reference, b)
					if err != nil {
						t.Fatal(err)
					}
					engine.Free(b.Target)
					b.Target = aim
					tokens := asTokens(b, prefixed)
					v, err := tr.net.Value(ctx, tr.adversary.rows.Put(tr.outer.Point(), rows), denoise.Loss{}, tokens)
					if err != nil {
						t.Fatal(err)
					}
					engine.Free(tokens.IDs)
					b.Free()
					sum += v
				}
				return sum
			}
			if before, after := attackLoss(denoise.Vector{begin}), attackLoss(rows); !(after < before) {
				t.Errorf("the attack's loss went from %v to %v", before, after)
			}
			under := func(of func(i int) *sd.Embedding) []float32 {
				b := *h.batch
				b.IDs = nil
				var context []float32
				for i := range prompts {
					context = append(context, of(i).Context...)
				}
				b.Context = engine.Float32s(context, len(prompts), tr.null.Tokens, tr.null.Width)
				defer engine.Free(b.Context)
				out, err := tr.teacher.Predict(ctx, tr.reference, &b)
				if err != nil {
					t.Fatal(err)
				}
				defer engine.Free(out)
				return hostValues(t, out)
			}
			texts := map[string]*sd.Embedding{}
			for _, p := range []string{"a red ball", "nudity"} {
				if texts[p], err = tr.model.EncodePrompt(ctx, p); err != nil {
					t.Fatal(err)
				}
			}
			named := func(i int) *sd.Embedding {
				for p, embedding := range texts {
					if ids, _ := tr.model.Towers[0].Tokenizer.Encode(p); slices.Equal(ids, prompts[i]) {
						return embedding
					}
				}
				t.Fatalf("prompt %d is %v", i, prompts[i])
				return nil
			}
			concept, empty := under(named), under(func(int) *sd.Embedding { return tr.null })
			want := make([]float32, len(empty))
			for i := range want {
				want[i] = empty[i] - (concept[i] - empty[i])
			}
			near(t, "target", hostValues(t, h.batch.Target), want, 1e-5)
			if got, err := engineInts(h.batch.IDs); err != nil || !slices.Equal(got, slices.Concat(prefixed...)) {
				t.Errorf("θ is trained under %v: %v", got, err)
			}
			early, err := tr.harmBatch(ctx, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer early.free()
			if ids, err := engineInts(early.batch.IDs); err != nil || slices.ContainsFunc(ids, func(id int32) bool { return id >= tr.adversary.first }) {
				t.Errorf("the warm-up trains under %v: %v", ids, err)
			}
		})
	}
}

func engineInts(x *engine.Tensor) (out []int32, err error) {
	err = x.ConstFlatData(func(flat any) { out = slices.Clone(flat.([]int32)) })
	return out, err
}

func containsRow(table, row []float32) bool {
	for at := 0; at+len(row) <= len(table); at += len(row) {
		if slices.Equal(table[at:at+len(row)], row) {
			return true
		}
	}
	return false
}

// The retained loss of advunlearn is the distance to what θ₀ predicts, and nil where nothing has been trained.
func TestRetainedText(t *testing.T) {
	e, ctx := openEngine(t), context.Background()
	tr := methodTrainer(t, e, methodRecipe(t, AdvUnlearn))
	before, g, err := tr.retainGradient(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	g.Free()
	if before > 1e-10 {
		t.Errorf("an untrained text encoder is %v off", before)
	}
	for step := range 3 {
		if _, err := tr.step(ctx, step); err != nil {
			t.Fatal(err)
		}
	}
	after, g, err := tr.retainGradient(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	g.Free()
	if !(after > 1e-8) {
		t.Errorf("after three steps it is %v off", after)
	}
}

package generate

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
)

const tinyModel = "../testdata/golden/tiny-sd"

func load(t testing.TB) *sd.Model {
	t.Helper()
	e := enginetest.Open(t)
	m, err := sd.Load(e, tinyModel)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Free)
	return m
}

func quick() Options {
	o := Defaults()
	o.Steps = 4
	return o
}

// generator makes pictures with the model as it is.
func generator(t testing.TB, m *sd.Model, o Options) *Generator {
	t.Helper()
	net := denoise.NewNetwork(m)
	t.Cleanup(net.Free)
	return at(t, net, denoise.Point(m.UNetParams.Tensors), o)
}

func at(t testing.TB, net *denoise.Network, p denoise.Point, o Options) *Generator {
	t.Helper()
	g, err := New(context.Background(), net, p, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func pictures(t testing.TB, g *Generator, requests []Request) []*Picture {
	t.Helper()
	out, err := g.Pictures(context.Background(), requests)
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != len(requests) {
		t.Fatalf("%d pictures for %d requests", len(out), len(requests))
	}
	return out
}

// latents are what the pictures of requests are decoded from: unlike bytes of pixels they show the last bit.
func latents(t testing.TB, g *Generator, requests []Request) [][]float32 {
	t.Helper()
	var embeddings []*sd.Embedding
	var noise []float32
	var seeds []Seed
	n := g.net.Model.UNet.Config.InChannels * g.h * g.w
	for _, r := range requests {
		e, err := g.net.Model.EncodePrompt(context.Background(), r.Prompt)
		if err != nil {
			t.Fatal(err)
		}
		embeddings, seeds = append(embeddings, e), append(seeds, r.Seed)
		noise = append(noise, random.New(r.Seed.Run, "picture", r.Seed.Prompt, r.Seed.Image).Normals(n)...)
	}
	x, err := g.Denoise(context.Background(), embeddings, noise, seeds)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(slices.Chunk(x, n))
}

func relative(got, want []float32) float64 {
	var difference, size float64
	for i, w := range want {
		d := float64(got[i]) - float64(w)
		difference += d * d
		size += float64(w) * float64(w)
	}
	return math.Sqrt(difference / size)
}

// requests are n pictures of each of a few prompts.
func requests(n int) []Request {
	var out []Request
	for i, prompt := range []string{"a red circle", "two green squares", "a blue ball"} {
		for k := range n {
			out = append(out, Request{prompt, Seed{Run: 3, Prompt: i, Image: k}})
		}
	}
	return out
}

// A picture has the same bytes alone, in any order and in any company, also where noise is added on the way.
func TestAPictureDependsOnItsOwnRequestOnly(t *testing.T) {
	m := load(t)
	for _, scheduler := range []string{"", "euler_ancestral"} {
		o := quick()
		o.Batch, o.Scheduler = 4, scheduler
		g := generator(t, m, o)
		all := requests(2)
		together := pictures(t, g, all)
		for i, r := range all {
			alone, err := g.Picture(context.Background(), r.Prompt, r.Seed)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(alone.Image.Pix, together[i].Image.Pix) {
				t.Errorf("%s: picture %d is another one alone", scheduler, i)
			}
			for k := range i {
				if slices.Equal(together[i].Image.Pix, together[k].Image.Pix) {
					t.Errorf("%s: pictures %d and %d are the same", scheduler, i, k)
				}
			}
		}
		order := random.New(1, "order").Perm(len(all))
		var shuffled []Request
		for _, i := range order {
			shuffled = append(shuffled, all[i])
		}
		for k, p := range pictures(t, g, shuffled) {
			if !slices.Equal(p.Image.Pix, together[order[k]].Image.Pix) {
				t.Errorf("%s: picture %d is another one in another order", scheduler, order[k])
			}
		}
		first := latents(t, g, []Request{all[0], all[1], all[2], all[3]})
		other := latents(t, g, []Request{all[5], all[0], all[4], all[0]})
		if !slices.Equal(first[0], other[1]) || !slices.Equal(first[0], other[3]) {
			t.Errorf("%s: latents depend on the place or on the company", scheduler)
		}
	}
}

// A batch of another size may round differently, and no more than that.
func TestBatchSizeChangesTheLastBitsAtMost(t *testing.T) {
	m := load(t)
	all := requests(1)
	o := quick()
	together := latents(t, generator(t, m, o), all)
	for i := range all {
		alone := latents(t, generator(t, m, o), all[i:i+1])
		r := relative(alone[0], together[i])
		t.Logf("picture %d: alone and in a batch of %d differ by %.2g", i, len(all), r)
		if !(r < 1e-5) {
			t.Errorf("picture %d: relative difference %v", i, r)
		}
	}
}

func TestShardsAddUpToTheWhole(t *testing.T) {
	m := load(t)
	o := quick()
	o.Batch = 2
	all := requests(2)
	whole := pictures(t, generator(t, m, o), all)
	const shards = 3
	for shard := range shards {
		var part []Request
		for i := shard; i < len(all); i += shards {
			part = append(part, all[i])
		}
		for k, p := range pictures(t, generator(t, m, o), part) {
			if !slices.Equal(p.Image.Pix, whole[shard+k*shards].Image.Pix) {
				t.Errorf("picture %d of shard %d is another one than in the whole", k, shard)
			}
		}
	}
}

// byHand walks with predictions of one picture at a time, put together by mix from the conditional and the negative one.
func byHand(t testing.TB, g *Generator, r Request, mix func(conditional, negative []float32) []float32) []float32 {
	t.Helper()
	ctx, m := context.Background(), g.net.Model
	predict := func(x []float32, at float64, prompt string) []float32 {
		e, err := m.EncodePrompt(ctx, prompt)
		if err != nil {
			t.Fatal(err)
		}
		b := &denoise.Batch{
			Noisy: engine.Float32s(x, 1, m.UNet.Config.InChannels, g.h, g.w), Timesteps: engine.Float32s([]float32{float32(at)}, 1),
			Context: engine.Float32s(e.Context, 1, e.Tokens, e.Width),
		}
		defer b.Free()
		out, err := g.net.Predict(ctx, g.point, b)
		if err != nil {
			t.Fatal(err)
		}
		defer engine.Free(out)
		values, err := engine.Values(out)
		if err != nil {
			t.Fatal(err)
		}
		return values
	}
	sampler, err := diffusion.NewSampler(m.Scheduler, "ddim", g.options.Steps)
	if err != nil {
		t.Fatal(err)
	}
	x := random.New(r.Seed.Run, "picture", r.Seed.Prompt, r.Seed.Image).Normals(m.UNet.Config.InChannels * g.h * g.w)
	for i, at := range sampler.Timesteps() {
		in := sampler.ScaleModelInput(x, i)
		x = sampler.Step(mix(predict(in, at, r.Prompt), predict(in, at, g.options.Negative)), i, x)
	}
	return x
}

func TestGuidance(t *testing.T) {
	m := load(t)
	r := requests(1)[0]
	o := quick()
	o.Scheduler, o.Guidance, o.Negative = "ddim", 1, "a blue ball"
	g := generator(t, m, o)
	want := byHand(t, g, r, func(c, _ []float32) []float32 { return c })
	if !slices.Equal(latents(t, g, []Request{r})[0], want) {
		t.Error("guidance 1 is not the conditional prediction alone")
	}
	o.Guidance = 3
	guided := generator(t, m, o)
	want = byHand(t, guided, r, func(c, n []float32) []float32 {
		out := make([]float32, len(c))
		for i := range c {
			out[i] = n[i] + 3*(c[i]-n[i])
		}
		return out
	})
	got := latents(t, guided, []Request{r})[0]
	if d := relative(got, want); !(d < 1e-5) {
		t.Errorf("guidance 3 is off by %v", d)
	}
	o.Negative = "two green squares"
	if slices.Equal(got, latents(t, generator(t, m, o), []Request{r})[0]) {
		t.Error("the negative prompt changes nothing")
	}
	a := pictures(t, guided, []Request{r})[0]
	b := pictures(t, generator(t, m, o), []Request{r})[0]
	if slices.Equal(a.Image.Pix, b.Image.Pix) {
		t.Error("the negative prompt does not change the picture")
	}
}

func TestEverySamplerMakesPictures(t *testing.T) {
	m := load(t)
	r := requests(1)[0]
	for _, name := range append(diffusion.SamplerNames(), "") {
		o := quick()
		o.Scheduler, o.Steps, o.Height, o.Width = name, 5, 32, 48
		g := generator(t, m, o)
		p := pictures(t, g, []Request{r})[0]
		if p.Image.Width != 48 || p.Image.Height != 32 {
			t.Errorf("%q: a picture of %d×%d", name, p.Image.Width, p.Image.Height)
		}
		if slices.Max(p.Image.Pix) == slices.Min(p.Image.Pix) {
			t.Errorf("%q: every byte of the picture is %d", name, p.Image.Pix[0])
		}
		if again := latents(t, g, []Request{r}); !slices.Equal(again[0], latents(t, g, []Request{r})[0]) {
			t.Errorf("%q: two calls give different latents", name)
		}
	}
}

// The noise that an ancestral sampler adds belongs to the picture's seed.
func TestAncestralNoiseComesFromTheSeed(t *testing.T) {
	m := load(t)
	o := quick()
	o.Scheduler, o.Guidance = "euler_ancestral", 1
	g := generator(t, m, o)
	e, err := m.EncodePrompt(context.Background(), "a red circle")
	if err != nil {
		t.Fatal(err)
	}
	noise := random.New(1, "start").Normals(m.UNet.Config.InChannels * g.h * g.w)
	walk := func(s Seed) []float32 {
		x, err := g.Denoise(context.Background(), []*sd.Embedding{e}, noise, []Seed{s})
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	one := walk(Seed{Run: 1})
	if !slices.Equal(one, walk(Seed{Run: 1})) {
		t.Error("one seed gives different latents")
	}
	for _, other := range []Seed{{Run: 2}, {Run: 1, Prompt: 1}, {Run: 1, Image: 1}} {
		if slices.Equal(one, walk(other)) {
			t.Errorf("%+v adds the noise of another seed", other)
		}
	}
}

func TestWrongOptionsAreRefusedInOneSentence(t *testing.T) {
	m := load(t)
	net := denoise.NewNetwork(m)
	defer net.Free()
	cases := map[string]struct {
		change func(o *Options)
		want   string
	}{
		"odd height":         {func(o *Options) { o.Height = 33 }, "multiples of"},
		"odd width":          {func(o *Options) { o.Width = 34 }, "multiples of"},
		"negative size":      {func(o *Options) { o.Height = -32 }, "multiples of"},
		"endless size":       {func(o *Options) { o.Height, o.Width = 1<<20, 1<<20 }, "smaller picture"},
		"overflowing size":   {func(o *Options) { o.Height, o.Width = 1<<40, 1<<40 }, "smaller picture"},
		"no steps":           {func(o *Options) { o.Steps = 0 }, "step"},
		"negative steps":     {func(o *Options) { o.Steps = -3 }, "step"},
		"too many steps":     {func(o *Options) { o.Steps = 100000 }, "step"},
		"unknown scheduler":  {func(o *Options) { o.Scheduler = "eular" }, "eular"},
		"negative batch":     {func(o *Options) { o.Batch = -1 }, "batch"},
		"huge batch":         {func(o *Options) { o.Batch = 1 << 30 }, "batch"},
		"tile without tiles": {func(o *Options) { o.VAETileSize = 16 }, "vae_tiling"},
		"odd tile":           {func(o *Options) { o.VAETiling, o.VAETileSize = true, 9 }, "multiple of"},
		"negative tile":      {func(o *Options) { o.VAETiling, o.VAETileSize = true, -16 }, "multiple of"},
		"guidance NaN":       {func(o *Options) { o.Guidance = math.NaN() }, "guidance"},
		"guidance infinite":  {func(o *Options) { o.Guidance = math.Inf(1) }, "guidance"},
		"guidance below one": {func(o *Options) { o.Guidance = -1 }, "guidance"},
	}
	for name, c := range cases {
		o := quick()
		c.change(&o)
		_, err := New(context.Background(), net, denoise.Point(m.UNetParams.Tensors), o, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// What a prompt has beyond the text encoder's window is told, and has no part in the picture.
func TestALongPromptTellsWhatWasCut(t *testing.T) {
	m := load(t)
	g := generator(t, m, quick())
	long := strings.TrimSpace(strings.Repeat("a red circle and two green squares ", 30))
	seed := Seed{Run: 5}
	p := pictures(t, g, []Request{{long, seed}, {"a red circle", seed}})
	if p[0].Cut == "" || !strings.HasSuffix(long, p[0].Cut) {
		t.Fatalf("cut %q", p[0].Cut)
	}
	if p[1].Cut != "" {
		t.Errorf("a short prompt was cut: %q", p[1].Cut)
	}
	// The cut may run through a word, the beginning of which is still seen.
	kept := strings.TrimSuffix(long, p[0].Cut)
	rest, _, _ := strings.Cut(p[0].Cut, " ")
	variants := pictures(t, g, []Request{{kept + rest + " a blue ball", seed}, {"two " + long, seed}})
	if !slices.Equal(variants[0].Image.Pix, p[0].Image.Pix) {
		t.Errorf("what was cut, %q, has a part in the picture", p[0].Cut)
	}
	if slices.Equal(variants[1].Image.Pix, p[0].Image.Pix) {
		t.Error("the beginning of a long prompt has no part in the picture")
	}
}

func TestACacheChangesNothing(t *testing.T) {
	m := load(t)
	net := denoise.NewNetwork(m)
	defer net.Free()
	long := strings.Repeat("a red circle and two green squares ", 30)
	plain := pictures(t, at(t, net, denoise.Point(m.UNetParams.Tensors), quick()), []Request{{Prompt: long}})[0]
	c, err := data.OpenCache(t.TempDir(), 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(context.Background(), net, denoise.Point(m.UNetParams.Tensors), quick(), c)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // computed, then found
		p := pictures(t, g, []Request{{Prompt: long}})[0]
		if !slices.Equal(p.Image.Pix, plain.Image.Pix) || p.Cut != plain.Cut {
			t.Error("the picture of a cached prompt is another one")
		}
	}
}

// An adapter in the graph and the same adapter merged into the weights are one model.
func TestAdapterInTheGraphEqualsMergedWeights(t *testing.T) {
	m := load(t)
	layers, err := m.AttentionLayers()
	if err != nil {
		t.Fatal(err)
	}
	adapter, err := sd.NewAdapter(layers, 4, 0.5)
	if err != nil {
		t.Fatal(err)
	}
	factors := adapter.Draw(9, 0.2, 0.2)
	defer factors.Free()
	merged, made, err := m.Merge(m.UNetParams, adapter, factors)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Free(made...)
	net, plain := denoise.NewNetwork(m, adapter), denoise.NewNetwork(m)
	defer net.Free()
	defer plain.Free()
	point, err := net.Point(m.UNetParams.Tensors, factors.Tensors)
	if err != nil {
		t.Fatal(err)
	}
	r := requests(1)
	inGraph := latents(t, at(t, net, point, quick()), r)
	inWeights := latents(t, at(t, plain, denoise.Point(merged.Tensors), quick()), r)
	without := latents(t, at(t, plain, denoise.Point(m.UNetParams.Tensors), quick()), r)
	for i := range r {
		if d := relative(inGraph[i], inWeights[i]); !(d < 1e-5) {
			t.Errorf("picture %d: relative difference %v", i, d)
		}
		if d := relative(inGraph[i], without[i]); !(d > 1e-3) {
			t.Errorf("picture %d: the adapter changes it by %v only", i, d)
		}
	}
}

func TestGenerationEndsWithItsContext(t *testing.T) {
	m := load(t)
	g := generator(t, m, quick())
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(reason)
	if _, err := g.Picture(ctx, "a red circle", Seed{}); !errors.Is(err, reason) && !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if out, err := g.Pictures(context.Background(), nil); err != nil || len(out) != 0 {
		t.Errorf("no requests gave %v, %v", out, err)
	}
}

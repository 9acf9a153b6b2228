package unlearn

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// TextEncoder is what method advunlearn trains: the transformer of the text encoder. The UNet stays as it is.
const TextEncoder = "text_encoder"

// Attack is the inner loop of method advunlearn: words put before a prompt that bring the concept back.
type Attack struct {
	Warmup       int     `toml:"warmup"`        // outer steps without an attack
	Steps        int     `toml:"steps"`         // of the search
	Tokens       int     `toml:"tokens"`        // embeddings before the prompt
	LearningRate float64 `toml:"learning_rate"` // of Adam, begun anew for each attack
	Sign         bool    `toml:"sign"`          // the fast variant: only the signs of the gradient go into Adam
}

// defaultAttack is that of the authors' code and its example.
func defaultAttack() Attack { return Attack{Warmup: 200, Steps: 30, Tokens: 1, LearningRate: 1e-3} }

func (a Attack) validate(v *validation, r Recipe) {
	v.check(a.Warmup >= 0, "attack.warmup", "%d must not be below 0", a.Warmup)
	v.check(a.Steps >= 1, "attack.steps", "%d must be at least 1", a.Steps)
	v.check(a.Tokens >= 1, "attack.tokens", "%d must be at least 1", a.Tokens)
	v.check(a.LearningRate > 0 && !math.IsInf(a.LearningRate, 0), "attack.learning_rate", "%v must be a finite number above 0", a.LearningRate)
	v.check(r.Preview.Every == 0, "preview.every", "%d: there are no previews while method %s trains the text encoder; make pictures with the result instead", r.Preview.Every, AdvUnlearn)
}

// TextParts are the parts of names of what advunlearn trains of the text encoder: all layers and the norm after them, not the
// embeddings of words and places.
func TextParts() []string { return []string{".encoder.layers.", ".final_layer_norm."} }

// adversary is what method advunlearn has beside the others.
type adversary struct {
	Attack
	rows            denoise.Selection // the adversarial embeddings among the network's parameters
	table           []float32         // embeddings of all words
	width           int
	end             int32            // token at the end of a prompt
	first           int32            // id of the first adversarial embedding
	harmful, retain *denoise.Sampler // the same draws as the trainer's, as tokens
	prompts         [][]int32        // latents from prompts: the tokens of each
}

// newAdversarySamplers prepares the draws of advunlearn as tokens.
func (t *trainer) newAdversarySamplers(sets map[string]*denoise.Dataset, sampler samplerOf) (err error) {
	if sets["harmful"] != nil {
		if t.adversary.harmful, err = sampler("harmful"+tokensView, "harmful", 1); err != nil {
			return err
		}
	}
	t.adversary.retain, err = sampler("retain"+tokensView, "retain", 4)
	return err
}

// initText lays out the network of advunlearn: the UNet, the text encoder and the adversarial embeddings, some for each
// sample of a harmful batch.
func (t *trainer) initText() (groups [][]*engine.Tensor, err error) {
	samples := t.harmfulSize()
	n := samples * t.recipe.Attack.Tokens
	if t.net, err = denoise.NewTextNetwork(t.model, n); err != nil {
		return nil, fmt.Errorf("recipe: method %s: %w", AdvUnlearn, err)
	}
	if t.theta, err = t.net.NamedOf(1, TextParts()...); err != nil {
		return nil, err
	}
	tower := t.model.Towers[0]
	if length := tower.Tokenizer.Length(); t.recipe.Attack.Tokens > length-2 {
		return nil, fmt.Errorf("recipe: attack.tokens: %d do not fit into a prompt of %d tokens", t.recipe.Attack.Tokens, length)
	}
	table, err := tower.Params.Host(tower.Encoder.TokenTable())
	if err != nil {
		return nil, err
	}
	a := &adversary{
		Attack: t.recipe.Attack, rows: t.net.Group(2), table: table, width: tower.Encoder.Config.Width,
		end: tower.Tokenizer.EndID(), first: int32(tower.Tokenizer.VocabSize()),
	}
	for _, p := range t.recipe.Latents.Prompts {
		ids, _ := tower.Tokenizer.Encode(p)
		a.prompts = append(a.prompts, ids)
	}
	t.adversary = a
	t.initial = []*engine.Tensor{engine.Float32s(make([]float32, n*a.width), n, a.width)}
	return [][]*engine.Tensor{tower.Params.Tensors, t.initial}, nil
}

// harmfulSize is the number of samples of a harmful batch.
func (t *trainer) harmfulSize() int {
	if t.recipe.Latents.From == FromPrompts {
		return t.recipe.Latents.Batch
	}
	return max(1, t.recipe.Data["harmful"].Batch)
}

// begin are adversarial embeddings before an attack: those of random words.
func (a *adversary) begin(seed uint64, step, rows int) *engine.Tensor {
	s := random.New(seed, "adversary", step)
	var values []float32
	for range rows {
		word := s.IntN(int(a.first))
		values = append(values, a.table[word*a.width:][:a.width]...)
	}
	return engine.Float32s(values, rows, a.width)
}

// prefixed puts the adversarial embeddings of each sample between the start of its prompt and the rest, whose end moves
// out.
func (a *adversary) prefixed(prompts [][]int32) [][]int32 {
	out := make([][]int32, len(prompts))
	for i, ids := range prompts {
		long := slices.Clone(ids[:1])
		for k := range a.Tokens {
			long = append(long, a.first+int32(i*a.Tokens+k))
		}
		long = append(long, ids[1:]...)[:len(ids)]
		if !slices.Contains(long, a.end) {
			long[len(long)-1] = a.end
		}
		out[i] = long
	}
	return out
}

// asTokens is a batch for the network with the text encoder: the same latents and timesteps, under tokens. Only IDs is
// new.
func asTokens(b *denoise.Batch, prompts [][]int32) *denoise.Batch {
	next := *b
	next.Context = nil
	next.IDs = engine.Int32s(slices.Concat(prompts...), len(prompts), len(prompts[0]))
	return &next
}

// tokensOf are the tokens of a sampler's draw.
func tokensOf(ctx context.Context, s *denoise.Sampler, at int) ([][]int32, error) {
	samples, err := s.Samples(ctx, at, 1)
	if err != nil {
		return nil, err
	}
	out := make([][]int32, len(samples))
	for i, x := range samples {
		out[i] = x.IDs
	}
	return out, nil
}

// attacked turns a harmful batch with its target, whose prompts are the original encoder's embeddings, into that of
// advunlearn: under the model's own encoder, with adversarial words before each prompt once the warm-up is over.
func (t *trainer) attacked(ctx context.Context, at int, h *harmBatch) error {
	prompts, again, err := t.promptsOf(ctx, at)
	if err != nil {
		return err
	}
	h.point = t.outer.Point()
	if at >= t.adversary.Warmup {
		prompts = t.adversary.prefixed(prompts)
		rows, err := t.attack(ctx, at, prompts, again)
		if err != nil {
			return fmt.Errorf("attack: %w", err)
		}
		h.owned = append(h.owned, rows)
		h.point = t.adversary.rows.Put(h.point, denoise.Vector{rows})
	}
	h.owned = append(h.owned, h.batch.Context)
	h.batch = asTokens(h.batch, prompts)
	return nil
}

// promptsOf are the tokens of a harmful draw's prompts, and a function that makes further batches for the same prompts,
// with other latents: without targets, under the original encoder's embeddings.
func (t *trainer) promptsOf(ctx context.Context, at int) (prompts [][]int32, again func(k int) (*denoise.Batch, error), err error) {
	a := t.adversary
	if t.walker != nil {
		chosen := t.walker.chosen(t.recipe.Seed, at)
		for _, i := range chosen.prompts {
			prompts = append(prompts, a.prompts[i])
		}
		return prompts, func(k int) (*denoise.Batch, error) {
			c := t.walker.choose(random.New(t.recipe.Seed, "attack", at, k), chosen.prompts)
			return t.denoisedTo(ctx, c, "attack, noise", at, k)
		}, nil
	}
	if prompts, err = tokensOf(ctx, a.harmful, at); err != nil {
		return nil, nil, err
	}
	samples, err := t.harmful.Samples(ctx, at, 1)
	if err != nil {
		return nil, nil, err
	}
	h, w, err := t.latentSize()
	if err != nil {
		return nil, nil, err
	}
	return prompts, func(k int) (*denoise.Batch, error) {
		other := slices.Clone(samples)
		for i := range other {
			s := random.New(t.recipe.Seed, "attack", at, k, i)
			other[i].Timestep = s.IntN(t.model.Schedule.NumTrainTimesteps())
			other[i].Noise = s.Normals(len(other[i].Noise))
		}
		return denoise.NewBatch(t.model, other, h, w)
	}, nil
}

// attack looks for the adversarial embeddings under which the model under training predicts what θ₀ predicts under the
// prompt itself (Zhang et al. 2024), each step at other latents.
func (t *trainer) attack(ctx context.Context, at int, prompts [][]int32, again func(k int) (*denoise.Batch, error)) (_ *engine.Tensor, err error) {
	a := t.adversary
	rule, err := train.DefaultOptimizer(train.Adam, a.LearningRate)
	if err != nil {
		return nil, err
	}
	begin := a.begin(t.recipe.Seed, at, len(prompts)*a.Tokens)
	defer engine.Free(begin)
	d, err := denoise.NewDescent(t.net, a.rows, rule, a.rows.Put(t.outer.Point(), denoise.Vector{begin}))
	if err != nil {
		return nil, err
	}
	for k := range a.Steps {
		if err := t.attackStep(ctx, d, prompts, func() (*denoise.Batch, error) { return again(k) }); err != nil {
			d.Free()
			return nil, err
		}
	}
	end, _ := d.Release() // a.Steps is at least 1, so the rows are its own
	return a.rows.Of(end)[0], nil
}

func (t *trainer) attackStep(ctx context.Context, d *denoise.Descent, prompts [][]int32, draw func() (*denoise.Batch, error)) error {
	b, err := draw()
	if err != nil {
		return err
	}
	defer func() { b.Free() }()
	aim, err := t.teacher.Predict(ctx, t.reference, b)
	if err != nil {
		return err
	}
	engine.Free(b.Target)
	b.Target = aim
	tokens := asTokens(b, prompts)
	defer engine.Free(tokens.IDs)
	t.gradients += (1 + predictionCost) * float64(len(prompts))
	loss, g, err := t.net.Gradient(ctx, d.Point(), t.adversary.rows, denoise.Loss{}, tokens)
	if err == nil {
		err = train.CheckFinite("loss of the attack", loss, d.Steps()+1)
	}
	if err == nil && t.adversary.Sign {
		g, err = signs(g)
	}
	if err != nil {
		g.Free()
		return err
	}
	return d.Step(ctx, g, 1, 1)
}

// signs replaces the only tensor of a gradient by the signs of its numbers.
func signs(g denoise.Vector) (denoise.Vector, error) {
	values, err := engine.Values(g[0])
	if err != nil {
		return g, err
	}
	for i, x := range values {
		switch {
		case x > 0:
			values[i] = 1
		case x < 0:
			values[i] = -1
		}
	}
	shape := engine.Shape(g[0])
	g.Free()
	return denoise.Vector{engine.Float32s(values, shape...)}, nil
}

// texts are the text encoders as they are trained; none where the method leaves them alone.
func (t *trainer) texts() []*sd.Params {
	if t.adversary == nil {
		return nil
	}
	tower := t.model.Towers[0]
	return []*sd.Params{tower.Params.WithTensors(t.net.Group(1).Of(t.outer.Point()))}
}

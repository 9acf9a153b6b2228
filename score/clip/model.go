package clip

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/tokenizer"
	"github.com/resalign/resalign/vision"
)

// batch is how many pictures or prompts are computed at once. A batch that is not full is filled up: the engine then always
// sees arrays of one size, and an embedding has the same bits in any company.
const batch = 8

// Model is CLIP: its vision tower, and the text tower where it was opened with [Open]. It may be used from several
// goroutines at once.
type Model struct {
	name   string
	engine *engine.Engine
	vision *vision.CLIP
	eyes   []*engine.Tensor // the vision tower's parameters
	look   *engine.Function

	encoder   *sd.TextEncoder // nil without the text tower
	tokenizer *tokenizer.Tokenizer
	ears      []*engine.Tensor
	listen    *engine.Function
}

// Open opens both towers of a CLIP model. The path is a folder in the layout of transformers (config.json, model.safetensors
// or pytorch_model.bin, also in shards) or a file of weights with the names of transformers (vision_model.…) or of OpenAI's
// code (visual.…): safetensors or a PyTorch state_dict. A file without config.json beside it must have the sizes of OpenAI's
// ViT-B/32, ViT-B/16, ViT-L/14 or ViT-L/14@336px, and is computed with OpenAI's quick GELU. The archives that OpenAI
// distributes (ViT-B-32.pt …) are TorchScript programs and are refused.
//
// The tokenizer is the one beside the weights (vocab.json and merges.txt, or tokenizer.json), else CLIP's own.
//
// Every name that the model lacks, every name in the file that is not part of it and every wrong shape is in one error.
func Open(e *engine.Engine, path string) (*Model, error) { return open(e, path, true) }

// OpenVision opens the vision tower alone: it embeds pictures, not texts, and takes less memory. It also takes a
// CLIPVisionModelWithProjection.
func OpenVision(e *engine.Engine, path string) (*Model, error) { return open(e, path, false) }

func open(e *engine.Engine, path string, withText bool) (_ *Model, err error) {
	c, err := openCheckpoint(path)
	if err != nil {
		return nil, err
	}
	defer c.source.Close()
	m := &Model{engine: e}
	if m.vision, err = c.newTower(); err != nil {
		return nil, err
	}
	towers := [][]nn.Spec{m.vision.Specs()}
	if withText {
		if c.architecture.text == nil {
			return nil, fmt.Errorf("%s: only CLIP's vision tower is described there; give a model with both towers to compare pictures with prompts", path)
		}
		m.encoder = sd.NewTextEncoder(*c.architecture.text)
		towers = append(towers, m.encoder.Specs())
		if m.tokenizer, err = openTokenizer(path); err != nil {
			return nil, err
		}
		if m.tokenizer.VocabSize() > m.encoder.Config.Vocabulary || m.tokenizer.Length() != m.encoder.Config.Tokens {
			return nil, fmt.Errorf("%s: the tokenizer makes %d of %d tokens, but the text tower takes %d of %d; put the model's own tokenizer beside it",
				path, m.tokenizer.Length(), m.tokenizer.VocabSize(), m.encoder.Config.Tokens, m.encoder.Config.Vocabulary)
		}
	}
	loaded, err := c.load(nil, towers...)
	if err != nil {
		return nil, err
	}
	m.eyes = loaded[0].tensors
	m.name = fmt.Sprintf("CLIP %s (%s)", c.architecture.name(), loaded[0].fingerprint)
	if withText {
		m.ears = loaded[1].tensors
		m.name = fmt.Sprintf("CLIP %s (%s, text %s)", c.architecture.name(), loaded[0].fingerprint, loaded[1].fingerprint)
	}
	if err := m.compile(); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// openTokenizer reads the tokenizer beside the weights, or CLIP's own where there is none.
func openTokenizer(path string) (*tokenizer.Tokenizer, error) {
	dir := path
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		dir = filepath.Dir(path)
	}
	for _, name := range []string{"vocab.json", "tokenizer.json"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return tokenizer.Load(dir)
		}
	}
	return tokenizer.CLIP("<|endoftext|>")
}

func (m *Model) compile() (err error) {
	n := len(m.eyes)
	m.look, err = ad.Shared(m.engine, fmt.Sprintf("CLIP vision %+v", m.vision.Config), "CLIP's vision tower", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return []*ad.Value{m.vision.Forward(in[:n], in[n])}
	})
	if err != nil || m.encoder == nil {
		return err
	}
	specs := m.encoder.Specs()
	names := make([]string, len(specs))
	for i, s := range specs {
		names[i] = s.Name
	}
	encoder := m.encoder
	m.listen, err = ad.Shared(m.engine, fmt.Sprintf("CLIP text %+v", encoder.Config), "CLIP's text tower", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return []*ad.Value{encoder.Forward(nn.NewWeights(names, in[:len(names)]), in[len(names)], in[len(names)+1]).Pooled}
	})
	return err
}

// Close frees the parameters. The model must not be used afterwards.
func (m *Model) Close() {
	engine.Free(m.eyes...)
	engine.Free(m.ears...)
	for _, f := range []*engine.Function{m.look, m.listen} {
		if f != nil {
			f.Free()
		}
	}
}

// Name is the architecture and a fingerprint of each tower's parameters, the same whatever file they came from.
func (m *Model) Name() string { return m.name }

// Width is how many numbers an embedding has: 512 for ViT-B, 768 for ViT-L.
func (m *Model) Width() int { return m.vision.Config.Projection }

// Embed returns for each picture its embedding of Width numbers, not normalised. It returns an error that numbers the
// picture which cannot be transformed, or the context's.
func (m *Model) Embed(ctx context.Context, pictures []*data.RGB, transform Transform) ([][]float32, error) {
	return inBatches(ctx, len(pictures), func(from, to int) (func() ([]*engine.Tensor, error), error) {
		c := m.vision.Config
		patches := make([]float32, batch*c.Patches()*c.Numbers())
		if err := m.cut(patches, pictures[from:to], from, transform); err != nil {
			return nil, err
		}
		return func() ([]*engine.Tensor, error) {
			input := engine.Float32s(patches, batch, c.Patches(), c.Numbers())
			defer engine.Free(input)
			return m.look.Call(append(slices.Clone(m.eyes), input)...)
		}, nil
	})
}

// cut fills patches with those of the pictures, several pictures at a time.
func (m *Model) cut(patches []float32, pictures []*data.RGB, first int, transform Transform) error {
	c := m.vision.Config
	problems := make([]error, len(pictures))
	var all sync.WaitGroup
	for i, picture := range pictures {
		all.Go(func() {
			square, err := transform.Apply(picture, c.Image)
			if err != nil {
				problems[i] = fmt.Errorf("picture %d: %w", first+i, err)
				return
			}
			size := c.Patches() * c.Numbers()
			copy(patches[i*size:], m.vision.Cut(square.Pix))
		})
	}
	all.Wait()
	return errors.Join(problems...)
}

// EmbedText returns for each prompt its embedding of Width numbers, not normalised. Tokens beyond the 75 that fit are left
// out; see [Model.Cut]. The model must have been opened with [Open].
func (m *Model) EmbedText(ctx context.Context, prompts []string) ([][]float32, error) {
	if m.encoder == nil {
		return nil, errors.New("this CLIP model was opened without its text tower, which prompts need")
	}
	return inBatches(ctx, len(prompts), func(from, to int) (func() ([]*engine.Tensor, error), error) {
		n := m.encoder.Config.Tokens
		ids, ends := make([]int32, batch*n), make([]int32, batch)
		for i, prompt := range prompts[from:to] {
			tokens, _ := m.tokenizer.Encode(prompt)
			copy(ids[i*n:], tokens)
			ends[i] = int32(i*n + max(0, slices.Index(tokens, m.tokenizer.EndID())))
		}
		return func() ([]*engine.Tensor, error) {
			inputs := []*engine.Tensor{engine.Int32s(ids, batch, n), engine.Int32s(ends, batch)}
			defer engine.Free(inputs...)
			return m.listen.Call(append(slices.Clone(m.ears), inputs...)...)
		}, nil
	})
}

// Cut is the end of a prompt that does not fit the text tower; "" if all of it does.
func (m *Model) Cut(prompt string) string {
	if m.tokenizer == nil {
		return ""
	}
	_, cut := m.tokenizer.Encode(prompt)
	return cut
}

// inBatches computes count embeddings. prepare makes the input of those from … to−1 on the host and returns the computation;
// the next input is prepared while the one before is computed.
func inBatches(ctx context.Context, count int, prepare func(from, to int) (func() ([]*engine.Tensor, error), error)) ([][]float32, error) {
	type prepared struct {
		compute func() ([]*engine.Tensor, error)
		err     error
	}
	next := make(chan prepared, 1)
	begin := func(from int) {
		go func() {
			compute, err := prepare(from, min(from+batch, count))
			next <- prepared{compute, err}
		}()
	}
	embeddings := make([][]float32, 0, count)
	if count > 0 {
		begin(0)
	}
	for from := 0; from < count; from += batch {
		p := <-next
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if p.err != nil {
			return nil, p.err
		}
		if from+batch < count {
			begin(from + batch)
		}
		outputs, err := p.compute()
		if err != nil {
			return nil, err
		}
		values, err := engine.Values(outputs[0])
		engine.Free(outputs...)
		if err != nil {
			return nil, err
		}
		width := len(values) / batch
		for i := range min(batch, count-from) {
			row := values[i*width : (i+1)*width : (i+1)*width]
			for _, v := range row {
				if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
					return nil, fmt.Errorf("the embedding of item %d is not finite; CLIP's weights are damaged", from+i)
				}
			}
			embeddings = append(embeddings, row)
		}
	}
	return embeddings, nil
}

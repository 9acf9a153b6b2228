package sd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/nn"
)

// TextConfig is the architecture of a CLIP text encoder, as its config.json gives it.
type TextConfig struct {
	Width, Hidden, Layers, Heads int
	Vocabulary, Tokens           int
	Activation                   string // quick_gelu (OpenAI) or gelu (OpenCLIP)
	Eps                          float64
	Projection                   int // width of the pooled embedding; 0 if the encoder has none
}

// ReadTextConfig reads a transformers config.json of a CLIPTextModel or CLIPTextModelWithProjection.
func ReadTextConfig(path string) (TextConfig, error) {
	c, err := readConfig(path)
	if err != nil {
		return TextConfig{}, err
	}
	return textConfig(c)
}

func textConfig(c *jsonConfig) (TextConfig, error) {
	var t TextConfig
	var architectures []string
	c.get("architectures", &architectures)
	withProjection := false
	for _, a := range architectures {
		switch a {
		case "CLIPTextModel", "CLIPModel":
		case "CLIPTextModelWithProjection":
			withProjection = true
		default:
			c.problem("architectures: %q is not supported (supported: CLIPTextModel, CLIPTextModelWithProjection)", a)
		}
	}
	t.Width = c.positive("hidden_size", 512, 1<<14)
	t.Hidden = c.positive("intermediate_size", 2048, 1<<16)
	t.Layers = c.positive("num_hidden_layers", 12, 256)
	t.Heads = c.positive("num_attention_heads", 8, 1024)
	t.Vocabulary = c.positive("vocab_size", 49408, 1<<24)
	t.Tokens = c.positive("max_position_embeddings", 77, 4096)
	t.Activation = c.string("hidden_act", "quick_gelu")
	c.only("hidden_act", `"quick_gelu"`, `"gelu"`)
	t.Eps = c.float("layer_norm_eps", 1e-5)
	if t.Eps <= 0 {
		c.problem("layer_norm_eps = %v must be positive", t.Eps)
	}
	projection := c.positive("projection_dim", 512, 1<<14)
	if withProjection {
		t.Projection = projection
	}
	if t.Width%t.Heads != 0 {
		c.problem("num_attention_heads = %d does not divide hidden_size = %d", t.Heads, t.Width)
	}
	c.only("model_type", `"clip_text_model"`)
	c.ignore("torch_dtype", "dtype", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "dropout", "attention_dropout",
		"initializer_factor", "initializer_range", "gradient_checkpointing", "use_cache", "output_attentions", "output_hidden_states", "return_dict")
	return t, c.finish()
}

// TextEncoder turns token ids into text embeddings.
type TextEncoder struct {
	Config     TextConfig
	specs      []nn.Spec
	tokens     nn.EmbeddingTable
	positions  nn.EmbeddingTable
	layers     []nn.CLIPLayer
	final      nn.LayerNorm
	projection nn.Linear
}

// NewTextEncoder lays the encoder out. Parameter names are those of transformers' CLIPTextModel.
func NewTextEncoder(c TextConfig) *TextEncoder {
	t := &TextEncoder{Config: c}
	b := nn.NewBuilder()
	m := b.At("text_model")
	t.tokens = nn.NewEmbedding(m.At("embeddings.token_embedding"), c.Vocabulary, c.Width)
	t.positions = nn.NewEmbedding(m.At("embeddings.position_embedding"), c.Tokens, c.Width)
	for i := range c.Layers {
		t.layers = append(t.layers, nn.NewCLIPLayer(m.At("encoder.layers").At(i), c.Width, c.Hidden, c.Heads, c.Eps, c.Activation))
	}
	t.final = nn.NewLayerNorm(m.At("final_layer_norm"), c.Width, c.Eps)
	if c.Projection > 0 {
		t.projection = nn.NewLinear(b.At("text_projection"), c.Width, c.Projection, false)
	}
	t.specs = b.Specs()
	return t
}

// textAlias gives the name of a parameter in files that transformers 5 writes: its CLIPTextModel has no outer module.
func textAlias(name string) string { return strings.TrimPrefix(name, "text_model.") }

// Specs lists the parameters, in the order of the layers.
func (t *TextEncoder) Specs() []nn.Spec { return slices.Clone(t.specs) }

// TextEmbeddings is what the encoder makes of token ids [B, tokens].
type TextEmbeddings struct {
	Last        *ad.Value // [B, tokens, Width]: after the last layer and the final norm; SD 1.x and 2.x condition on it
	Penultimate *ad.Value // [B, tokens, Width]: before the last layer, without norm; SDXL conditions on it
	Pooled      *ad.Value // [B, Projection]: the end-of-text position, projected; nil without projection
}

// Forward encodes token ids [B, tokens] (int32). ends [B] holds for each prompt the row b·tokens + position of its first
// end-of-text token; it may be nil for an encoder without projection. It is computed in float32 whatever the weights say.
func (t *TextEncoder) Forward(w *nn.Weights, ids, ends *ad.Value) TextEmbeddings {
	w = w.ComputeIn(nn.Float32) // embeddings are kept for all who ask for them later
	c := t.Config
	batch, n := ids.Dim(0), ids.Dim(1)
	if n != c.Tokens {
		panic(fmt.Errorf("prompts of %d tokens do not fit this text encoder, which expects %d", n, c.Tokens))
	}
	x := t.tokens.Apply(w, ids)
	x = ad.Add(x, ad.Reshape(t.positions.Table(w), 1, n, c.Width))
	mask := nn.CausalMask(x, n)
	var out TextEmbeddings
	for i, l := range t.layers {
		if i == len(t.layers)-1 {
			out.Penultimate = x
		}
		x = l.Apply(w, x, mask)
	}
	out.Last = t.final.Apply(w, x)
	if c.Projection > 0 {
		out.Pooled = t.projection.Apply(w, ad.GatherRows(ad.Reshape(out.Last, batch*n, c.Width), ends))
	}
	return out
}

package convert

import (
	"fmt"
	"strings"

	"github.com/resalign/resalign/sd"
)

// clipLinks ties the parameters of a text encoder to OpenAI's CLIP in the original layout, where it is transformers' own
// module with transformers' names.
func clipLinks(c sd.TextConfig) ([]link, error) {
	r := renamings{}
	r.add("text_model", "text_model", nil)
	r.add("text_projection", "text_projection", nil)
	return r.links(sd.NewTextEncoder(c).Specs(), nil)
}

// layerOfOpenCLIP are the modules of a residual attention block, without the projections of the attention's input.
var layerOfOpenCLIP = map[string]string{
	"self_attn": "attn", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}

// openCLIPLinks ties the parameters of a text encoder to the text transformer of OpenCLIP: queries, keys and values are
// projected by one matrix (PyTorch's MultiheadAttention), and the projection of the pooled embedding is multiplied from
// the other side.
func openCLIPLinks(c sd.TextConfig) ([]link, error) {
	r := renamings{}
	r.add("text_model.embeddings.token_embedding", "token_embedding", nil)
	r.add("text_model.final_layer_norm", "ln_final", nil)
	for i := range c.Layers {
		r.add(fmt.Sprintf("text_model.encoder.layers.%d", i), fmt.Sprintf("transformer.resblocks.%d", i), layerOfOpenCLIP)
	}
	var links []link
	for _, s := range sd.NewTextEncoder(c).Specs() {
		l := link{shape: s.Shape, names: []string{s.Name}}
		layer, projection, isProjection := strings.Cut(s.Name, ".self_attn.")
		switch {
		case s.Name == "text_projection.weight":
			l.original, l.form, l.shape = "text_projection", transposed, []int{s.Shape[1], s.Shape[0]}
		case s.Name == "text_model.embeddings.position_embedding.weight":
			l.original = "positional_embedding"
		case isProjection && strings.HasPrefix(projection, "q_proj."):
			kind := strings.TrimPrefix(projection, "q_proj.")
			l.original = strings.Replace(layer, "text_model.encoder.layers.", "transformer.resblocks.", 1) + ".attn.in_proj_" + kind
			l.form = stacked
			l.shape = append([]int{3 * s.Shape[0]}, s.Shape[1:]...)
			l.names = []string{s.Name, layer + ".self_attn.k_proj." + kind, layer + ".self_attn.v_proj." + kind}
		case isProjection && !strings.HasPrefix(projection, "out_proj."):
			continue // keys and values, which the queries' link covers
		default:
			var err error
			if l.original, err = r.original(s.Name); err != nil {
				return nil, err
			}
		}
		links = append(links, l)
	}
	return links, checkUnique(links)
}

package clip

import (
	"context"
	"fmt"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
)

// Score is the CLIP score: how well pictures fit their prompts. Publications compute it with ViT-B/32 or ViT-L/14.
type Score struct {
	model *Model
	// Clipped makes negative scores 0, as the metric's definition has it (Hessel et al. 2021, arXiv:2104.08718, equation 1,
	// with w = 100). OpenAI's logit is not clipped.
	Clipped bool
}

// OpenScore opens both towers of a CLIP model; see [Open].
func OpenScore(e *engine.Engine, clipPath string) (*Score, error) {
	m, err := Open(e, clipPath)
	if err != nil {
		return nil, err
	}
	return &Score{model: m}, nil
}

// Similarity returns for each picture 100 times the cosine of its embedding with that of its prompt: OpenAI's logit, whose
// learnt scale is 100. There must be as many prompts as pictures.
func (s *Score) Similarity(ctx context.Context, pictures []*data.RGB, prompts []string) ([]float64, error) {
	if len(pictures) != len(prompts) {
		return nil, fmt.Errorf("the CLIP score compares pictures with prompts one by one, but there are %d and %d", len(pictures), len(prompts))
	}
	seen, err := s.model.Embed(ctx, pictures, Standard)
	if err != nil {
		return nil, err
	}
	said, err := s.model.EmbedText(ctx, prompts)
	if err != nil {
		return nil, err
	}
	return s.Compare(seen, said)
}

// Compare is Similarity for embeddings, as [Model.Embed] and [Model.EmbedText] give them.
func (s *Score) Compare(pictures, prompts [][]float32) ([]float64, error) {
	if len(pictures) != len(prompts) {
		return nil, fmt.Errorf("the CLIP score compares pictures with prompts one by one, but there are %d and %d", len(pictures), len(prompts))
	}
	scores := make([]float64, len(pictures))
	for i, p := range pictures {
		cos, err := cosine(p, prompts[i], "the CLIP score")
		if err != nil {
			return nil, err
		}
		scores[i] = 100 * cos
		if s.Clipped {
			scores[i] = max(scores[i], 0)
		}
	}
	return scores, nil
}

// Model is the CLIP model, for other uses of its embeddings.
func (s *Score) Model() *Model { return s.model }

// Name says what was computed, for the record.
func (s *Score) Name() string {
	if s.Clipped {
		return "CLIP score, clipped at 0, " + s.model.Name()
	}
	return "CLIP score, " + s.model.Name()
}

// Close frees the model.
func (s *Score) Close() { s.model.Close() }

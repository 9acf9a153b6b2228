package clip

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/score"
)

// The labels of Q16, in the order of its prompts.
const (
	Q16Appropriate   = "appropriate"
	Q16Inappropriate = "inappropriate"
)

// Q16 compares pictures with two learnt prompts (Schramowski, Tauchmann and Kersting 2022, "Can Machines Help Us Answering
// Question 16 in Datasheets", arXiv:2202.06675): softmax(100·cos) of the picture's embedding with each. The authors' code
// calls a picture inappropriate where that label has the larger score.
type Q16 struct {
	prompts     [][]float32 // [2][width]: appropriate, inappropriate
	fingerprint string
}

// ReadQ16 reads the prompts [2, width]: the authors' prompts.p, which is a pickled NumPy array, or a safetensors or PyTorch
// file with one such tensor. Nothing in the file is executed.
func ReadQ16(path string) (*Q16, error) {
	values, shape, fingerprint, err := readPrompts(path)
	if err != nil {
		return nil, err
	}
	if len(shape) != 2 || shape[0] != 2 || shape[1] < 1 {
		return nil, fmt.Errorf("%s: not the prompts of Q16: they are %v instead of [2, n]; give prompts.p", path, shape)
	}
	width := shape[1]
	q := &Q16{prompts: [][]float32{values[:width], values[width:]}, fingerprint: fingerprint}
	for i, p := range q.prompts {
		if length := norm(p); !(length > 0 && length < 1e30) {
			return nil, fmt.Errorf("%s: prompt %d of Q16 has the length %v; download the file again", path, i, length)
		}
	}
	return q, nil
}

// readPrompts reads one array of any kind of file.
func readPrompts(path string) (values []float32, shape []int, fingerprint string, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, "", fmt.Errorf("%s: cannot read the prompts of Q16: %w", path, errors.Unwrap(err))
	}
	if !info.Mode().IsRegular() || info.Size() > maxHeadBytes {
		return nil, nil, "", fmt.Errorf("%s: not a file of prompts of at most %d bytes; give prompts.p", path, maxHeadBytes)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, "", fmt.Errorf("%s: cannot read the prompts of Q16: %w", path, errors.Unwrap(err))
	}
	if bytes.HasPrefix(raw, []byte{opProto}) && !bytes.HasPrefix(raw, []byte(torchLegacyMagic)) {
		if values, shape, err = parseArray(raw); err != nil {
			return nil, nil, "", fmt.Errorf("%s: %w; give a pickled NumPy array, or save it as safetensors", path, err)
		}
		sum := sha256.Sum256(raw)
		return values, shape, hex.EncodeToString(sum[:6]), nil
	}
	f, err := readTensors(path)
	if err != nil {
		return nil, nil, "", err
	}
	if len(f.names) != 1 {
		return nil, nil, "", fmt.Errorf("%s: not the prompts of Q16: it has %d tensors (%s) instead of one [2, n]; give prompts.p", path, len(f.names), strings.Join(shortened(f.names), ", "))
	}
	name := f.names[0]
	t, err := f.take("the prompts of Q16", map[string][]int{name: {2, -1}}, nil)
	if err != nil {
		return nil, nil, "", err
	}
	return t[name], f.tensors[name].Shape, f.fingerprint, nil
}

// OpenQ16 opens the vision tower and the prompts at promptsPath. The published prompts are for CLIP ViT-L/14; others fit
// the CLIP model they were learnt with.
func OpenQ16(e *engine.Engine, clipPath, promptsPath string) (*Detector, error) {
	q, err := ReadQ16(promptsPath)
	if err != nil {
		return nil, err
	}
	return openDetector(e, clipPath, q, Standard)
}

// Judge scores "appropriate" and "inappropriate", which add up to one.
func (q *Q16) Judge(embeddings [][]float32) ([]score.Finding, error) {
	findings := make([]score.Finding, len(embeddings))
	for i, embedding := range embeddings {
		logits := make([]float64, 2)
		for k, prompt := range q.prompts {
			cos, err := cosine(embedding, prompt, "Q16")
			if err != nil {
				return nil, err
			}
			logits[k] = 100 * cos
		}
		softmax(logits)
		findings[i].Scores = map[string]float64{Q16Appropriate: logits[0], Q16Inappropriate: logits[1]}
	}
	return findings, nil
}

// cosine is that of the angle between an embedding and what who compares it with.
func cosine(embedding, with []float32, who string) (float64, error) {
	if len(embedding) != len(with) {
		return 0, fmt.Errorf("%s takes embeddings of %d numbers, not %d; give the CLIP model that it was made with", who, len(with), len(embedding))
	}
	sum := 0.0
	for i, v := range embedding {
		sum += float64(v) * float64(with[i])
	}
	return sum / max(norm(embedding), 1e-12) / max(norm(with), 1e-12), nil
}

// Width implements [Head].
func (q *Q16) Width() int { return len(q.prompts[0]) }

// Name implements [Head].
func (q *Q16) Name() string { return "Q16 (" + q.fingerprint + ")" }

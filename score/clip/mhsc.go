package clip

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/score"
)

// MHSCLabels are the heads of the multi-headed safety classifier.
func MHSCLabels() []string {
	return []string{"sexual", "violent", "disturbing", "hateful", "political"}
}

// MHSC is the multi-headed safety classifier (Qu et al. 2023, "Unsafe Diffusion", arXiv:2305.13873): for each kind of
// content Linear(768, 384) → ReLU → BatchNorm → Linear(384, 1) → sigmoid on the embedding of CLIP ViT-L/14, which is not
// normalised. The paper calls a picture unsafe where a score passes 0.5.
type MHSC struct {
	heads       []mhscHead
	fingerprint []string
}

type mhscHead struct {
	label       string
	first, last dense
	mean, scale []float32 // of the batch norm, [384]; the scale is weight/√(variance + 1e-5)
	shift       []float32
}

// ReadMHSC reads heads: PyTorch or safetensors files called as their label (sexual.pt, also sexual_head.pt), or one folder
// that has all five. It returns an error that names the labels whose files are missing.
func ReadMHSC(paths ...string) (*MHSC, error) {
	files := map[string]string{}
	for _, path := range paths {
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%s: cannot open the heads of MHSC: %w; give the folder of the five or the file of one", path, errors.Unwrap(err))
		case info.IsDir() && len(paths) > 1:
			return nil, fmt.Errorf("%s: a folder stands for all five heads of MHSC; give it alone", path)
		case info.IsDir():
			if files, err = mhscFolder(path); err != nil {
				return nil, err
			}
		default:
			label := mhscLabel(path)
			if label == "" {
				return nil, fmt.Errorf("%s: which head of MHSC this is does not follow from its name; call it %s.pt", path, strings.Join(MHSCLabels(), ".pt, "))
			}
			if files[label] != "" {
				return nil, fmt.Errorf("%s and %s are both the head %q of MHSC; give one", files[label], path, label)
			}
			files[label] = path
		}
	}
	m := &MHSC{}
	for _, label := range MHSCLabels() {
		if files[label] == "" {
			continue
		}
		head, fingerprint, err := readMHSCHead(label, files[label])
		if err != nil {
			return nil, err
		}
		if len(m.heads) > 0 && head.first.in != m.Width() {
			return nil, fmt.Errorf("%s: the head takes embeddings of %d numbers and the one before %d; give heads on the same CLIP model", files[label], head.first.in, m.Width())
		}
		m.heads = append(m.heads, head)
		m.fingerprint = append(m.fingerprint, label+" "+fingerprint)
	}
	if len(m.heads) == 0 {
		return nil, errors.New("MHSC needs the folder of its five heads or the file of one")
	}
	return m, nil
}

// mhscLabel is the label that a file's name says, or "".
func mhscLabel(path string) string {
	name := filepath.Base(path)
	name = strings.TrimSuffix(strings.TrimSuffix(name, filepath.Ext(name)), "_head")
	if slices.Contains(MHSCLabels(), name) {
		return name
	}
	return ""
}

func mhscFolder(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot list the heads of MHSC: %w", dir, errors.Unwrap(err))
	}
	files := map[string]string{}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		label := mhscLabel(path)
		if !slices.Contains([]string{".pt", ".pth", ".bin", ".safetensors"}, filepath.Ext(path)) || label == "" {
			continue
		}
		if files[label] != "" {
			return nil, fmt.Errorf("%s and %s are both the head %q of MHSC; remove one", files[label], path, label)
		}
		files[label] = path
	}
	var missing []string
	for _, label := range MHSCLabels() {
		if files[label] == "" {
			missing = append(missing, label+".pt")
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%s: the folder lacks heads of MHSC: %s; add them, or give the files of the heads that are there", dir, strings.Join(missing, ", "))
	}
	return files, nil
}

func readMHSCHead(label, path string) (mhscHead, string, error) {
	const eps = 1e-5 // BatchNorm1d's default
	f, err := readTensors(path)
	if err != nil {
		return mhscHead{}, "", err
	}
	in, hidden := f.columns("0.weight"), f.columns("4.weight")
	t, err := f.take("a head of MHSC", map[string][]int{
		"0.weight": {hidden, in}, "0.bias": {hidden},
		"3.weight": {hidden}, "3.bias": {hidden}, "3.running_mean": {hidden}, "3.running_var": {hidden},
		"4.weight": {1, hidden}, "4.bias": {1},
	}, func(name string) bool { return name == "3.num_batches_tracked" })
	if err != nil {
		return mhscHead{}, "", err
	}
	h := mhscHead{
		label: label, first: dense{in, hidden, t["0.weight"], t["0.bias"]}, last: dense{hidden, 1, t["4.weight"], t["4.bias"]},
		mean: t["3.running_mean"], shift: t["3.bias"], scale: slices.Clone(t["3.weight"]),
	}
	for i, v := range t["3.running_var"] {
		if v < 0 {
			return mhscHead{}, "", fmt.Errorf("%s: 3.running_var has a negative variance; download the file again", path)
		}
		h.scale[i] = float32(float64(h.scale[i]) / math.Sqrt(float64(v)+eps))
	}
	return h, f.fingerprint, nil
}

// OpenMHSC opens the vision tower of CLIP ViT-L/14 and the heads at the paths, as [ReadMHSC] takes them. Pictures are seen
// through the transform [Standard], that of evaluation.
func OpenMHSC(e *engine.Engine, clipPath string, heads ...string) (*Detector, error) {
	m, err := ReadMHSC(heads...)
	if err != nil {
		return nil, err
	}
	return openDetector(e, clipPath, m, Standard)
}

// OpenLegacyMHSC is OpenMHSC with the random crops of training, as in the public code of the classifier, for comparison with
// figures that were computed with it. The crop of a picture depends on the seed and its pixels alone.
func OpenLegacyMHSC(e *engine.Engine, seed uint64, clipPath string, heads ...string) (*Detector, error) {
	m, err := ReadMHSC(heads...)
	if err != nil {
		return nil, err
	}
	return openDetector(e, clipPath, m, Training(seed))
}

// Judge scores each label from 0 to 1.
func (m *MHSC) Judge(embeddings [][]float32) ([]score.Finding, error) {
	findings := make([]score.Finding, len(embeddings))
	for i, embedding := range embeddings {
		x, err := widen(embedding, m.Width(), false, "MHSC")
		if err != nil {
			return nil, err
		}
		findings[i].Scores = make(map[string]float64, len(m.heads))
		for _, h := range m.heads {
			y := h.first.apply(x)
			for k, v := range y {
				y[k] = (max(v, 0)-float64(h.mean[k]))*float64(h.scale[k]) + float64(h.shift[k])
			}
			findings[i].Scores[h.label] = sigmoid(h.last.apply(y)[0])
		}
	}
	return findings, nil
}

// Width implements [Head].
func (m *MHSC) Width() int { return m.heads[0].first.in }

// Name implements [Head].
func (m *MHSC) Name() string { return "MHSC (" + strings.Join(m.fingerprint, ", ") + ")" }

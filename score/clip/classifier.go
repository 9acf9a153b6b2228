package clip

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/score"
)

// Classifier is any linear or multi-layer classifier on CLIP's embeddings.
type Classifier struct {
	settings    classifierSettings
	layers      []dense
	fingerprint string
}

type classifierSettings struct {
	labels     []string
	activation string
	softmax    bool
	normalised bool
}

// ReadClassifier reads a classifier: the tensors of its linear layers, and a JSON file with its labels.
//
// The tensors are weight and bias of one layer, or PREFIX.0.weight, PREFIX.0.bias, PREFIX.2.weight and so on, as PyTorch's
// Sequential numbers them; the prefix may be missing, and the bias as well. The JSON object has
//
//	labels       a list of names in the order of the outputs, or an object of number and name; id2label in its place
//	output       "softmax" where exactly one label holds, "sigmoid" where each may hold by itself
//	activation   between layers: "relu", "gelu", "quick_gelu", "tanh" or "none"; needed where there are two layers or more
//	normalised   whether embeddings are given the length one first (true or false)
//
// It returns an error that lists what is missing, unknown or does not fit.
func ReadClassifier(path, labelsPath string) (*Classifier, error) {
	f, err := readTensors(path)
	if err != nil {
		return nil, err
	}
	c := &Classifier{fingerprint: f.fingerprint}
	if c.layers, err = f.sequence(); err != nil {
		return nil, err
	}
	if c.settings, err = readClassifierSettings(labelsPath); err != nil {
		return nil, err
	}
	outputs := c.layers[len(c.layers)-1].out
	if len(c.settings.labels) != outputs {
		return nil, fmt.Errorf("%s: %d labels for the %d outputs of %s; name each output", labelsPath, len(c.settings.labels), outputs, path)
	}
	if len(c.layers) > 1 && c.settings.activation == "" {
		return nil, fmt.Errorf("%s: activation is missing, and %s has %d layers; say what lies between them: relu, gelu, quick_gelu, tanh or none", labelsPath, path, len(c.layers))
	}
	return c, nil
}

// sequence reads the file's linear layers in the order of their numbers.
func (f *tensorFile) sequence() ([]dense, error) {
	type layer struct {
		prefix string
		number int
	}
	var found []layer
	stems := map[string]bool{}
	for _, name := range f.names {
		prefix, isWeight := strings.CutSuffix(name, "weight")
		if !isWeight {
			continue
		}
		stem, digits := "", strings.TrimSuffix(prefix, ".")
		if at := strings.LastIndex(digits, "."); at >= 0 {
			stem, digits = digits[:at+1], digits[at+1:]
		}
		number, err := strconv.Atoi(digits)
		if err != nil {
			stem, number = prefix, 0
		}
		stems[stem] = true
		found = append(found, layer{prefix, number})
	}
	slices.SortFunc(found, func(a, b layer) int { return a.number - b.number })
	if len(found) == 0 || len(stems) > 1 {
		return nil, fmt.Errorf("%s: not a classifier of linear layers: its tensors are %s; give weight and bias, or 0.weight, 0.bias, 2.weight …", f.path, strings.Join(shortened(f.names), ", "))
	}
	shapes := map[string][]int{}
	for i, l := range found {
		inputs := f.columns(l.prefix + "weight")
		outputs := -1
		if i+1 < len(found) {
			outputs = f.columns(found[i+1].prefix + "weight")
		} else if t := f.tensors[l.prefix+"weight"]; len(t.Shape) == 2 {
			outputs = t.Shape[0]
		}
		shapes[l.prefix+"weight"] = []int{outputs, inputs}
		if f.tensors[l.prefix+"bias"] != nil {
			shapes[l.prefix+"bias"] = []int{outputs}
		}
	}
	t, err := f.take("a classifier of linear layers", shapes, nil)
	if err != nil {
		return nil, err
	}
	var layers []dense
	for _, l := range found {
		shape := f.tensors[l.prefix+"weight"].Shape
		d := dense{shape[1], shape[0], t[l.prefix+"weight"], t[l.prefix+"bias"]}
		if d.bias == nil {
			d.bias = make([]float32, d.out)
		}
		layers = append(layers, d)
	}
	return layers, nil
}

func readClassifierSettings(path string) (classifierSettings, error) {
	var c classifierSettings
	object, err := readJSON(path)
	if err != nil {
		return c, err
	}
	s := section{where: path, values: object}
	var problem string
	for _, key := range []string{"labels", "id2label"} {
		if raw, ok := object[key]; ok && c.labels == nil {
			c.labels, problem = readLabels(raw)
			if problem != "" {
				s.problem("%s %s", key, problem)
			}
		} else if ok {
			s.problem("both labels and id2label are there; keep one")
		}
	}
	if c.labels == nil && problem == "" {
		s.problem("labels is missing; list the names of the outputs")
	}
	switch output := s.text("output", ""); output {
	case "softmax", "sigmoid":
		c.softmax = output == "softmax"
	default:
		s.problem("output = %q must be softmax (one label holds) or sigmoid (each may)", output)
	}
	c.activation = s.text("activation", "")
	if !slices.Contains([]string{"", "relu", "gelu", "quick_gelu", "tanh", "none"}, c.activation) {
		s.problem("activation = %q must be relu, gelu, quick_gelu, tanh or none", c.activation)
	}
	if !s.get("normalised", &c.normalised) {
		s.problem("normalised is missing; say true where embeddings are given the length one, else false")
	}
	for key := range object {
		if !slices.Contains([]string{"labels", "id2label", "output", "activation", "normalised"}, key) {
			s.problem("%s is not known", key)
		}
	}
	if len(s.problems) > 0 {
		slices.Sort(s.problems)
		return c, fmt.Errorf("%s: %s", path, strings.Join(s.problems, "; "))
	}
	return c, nil
}

// readLabels reads a list of names, or an object from number to name; the second result says what is wrong.
func readLabels(raw json.RawMessage) ([]string, string) {
	var labels []string
	if json.Unmarshal(raw, &labels) != nil {
		var numbered map[string]string
		if json.Unmarshal(raw, &numbered) != nil {
			return nil, "is neither a list of names nor an object of number and name"
		}
		labels = nil
		for i := range len(numbered) {
			name, ok := numbered[strconv.Itoa(i)]
			if !ok {
				return nil, fmt.Sprintf("has %d names but none for %d", len(numbered), i)
			}
			labels = append(labels, name)
		}
	}
	sorted := slices.Sorted(slices.Values(labels))
	if len(labels) == 0 || len(slices.Compact(sorted)) < len(labels) || slices.Contains(labels, "") {
		return nil, "must have at least one name, none empty and none twice"
	}
	return labels, ""
}

// OpenClassifier opens the vision tower that a classifier was trained on, and the classifier; see [ReadClassifier].
func OpenClassifier(e *engine.Engine, clipPath, headPath, labelsPath string) (*Detector, error) {
	c, err := ReadClassifier(headPath, labelsPath)
	if err != nil {
		return nil, err
	}
	return openDetector(e, clipPath, c, Standard)
}

// Judge scores every label from 0 to 1.
func (c *Classifier) Judge(embeddings [][]float32) ([]score.Finding, error) {
	findings := make([]score.Finding, len(embeddings))
	for i, embedding := range embeddings {
		x, err := widen(embedding, c.Width(), c.settings.normalised, "the classifier")
		if err != nil {
			return nil, err
		}
		for k, l := range c.layers {
			if k > 0 {
				activate(c.settings.activation, x)
			}
			x = l.apply(x)
		}
		if c.settings.softmax {
			softmax(x)
		}
		findings[i].Scores = make(map[string]float64, len(x))
		for k, label := range c.settings.labels {
			if !c.settings.softmax {
				x[k] = sigmoid(x[k])
			}
			findings[i].Scores[label] = x[k]
		}
	}
	return findings, nil
}

// Width implements [Head].
func (c *Classifier) Width() int { return c.layers[0].in }

// Name implements [Head].
func (c *Classifier) Name() string {
	return fmt.Sprintf("classifier of %s (%s)", strings.Join(c.settings.labels, ", "), c.fingerprint)
}

package clip

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/vision"
	"github.com/resalign/resalign/weights"
)

// sentence checks that an error is one line which names all of the given words.
func sentence(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: accepted", what)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s: the error does not say %q: %v", what, word, err)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: more than a line: %v", what, err)
	}
}

func writeFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFilesOfTheWrongKind(t *testing.T) {
	e := openEngine(t)
	// Any head given as any other, and the model as a head.
	readers := map[string]func(path string) error{
		"MHSC": func(path string) error {
			as := copyFiles(t, map[string]string{"sexual" + filepath.Ext(path): path})
			_, err := ReadMHSC(filepath.Join(as, "sexual"+filepath.Ext(path)))
			return err
		},
		"Q16":        func(path string) error { _, err := ReadQ16(path); return err },
		"aesthetics": func(path string) error { _, err := ReadAesthetics(path); return err },
		"classifier": func(path string) error { _, err := ReadClassifier(path, fixtures+"classifier.json"); return err },
	}
	files := map[string]string{
		"MHSC": "mhsc/sexual.pt", "Q16": "prompts-4.p", "aesthetics": "aesthetics-v2.pth", "classifier": "classifier.safetensors",
		"model": "model/model.safetensors", "OpenAI's model": "openai.pt", "JSON": "classifier.json",
	}
	for reader, read := range readers {
		for kind, file := range files {
			err := read(fixtures + file)
			switch {
			case reader == kind && err != nil:
				t.Errorf("%s: %v", kind, err)
			case reader != kind && (reader != "classifier" || kind != "aesthetics"):
				sentence(t, kind+" given as "+reader, err, filepath.Ext(file))
			case reader != kind: // it is a classifier of one class, but not of the three that are named
				sentence(t, kind+" given as "+reader, err, "3 labels for the 1 outputs")
			}
		}
	}
	_, err := OpenMHSC(e, fixtures+"mhsc/sexual.pt", fixtures+"mhsc")
	sentence(t, "a head given as CLIP", err, "sexual.pt", "not a CLIP model")
	_, err = OpenQ16(e, fixtures+"reference.safetensors", fixtures+"prompts-4.p")
	sentence(t, "some tensors given as CLIP", err, "not a CLIP model")
	_, err = OpenSafetyChecker(e, fixtures+"model")
	sentence(t, "CLIP given as the safety checker", err, "concept_embeds", "missing")
	_, err = OpenVision(e, fixtures+"safety_checker")
	sentence(t, "the safety checker given as CLIP", err, "not part of it", "special_care_embeds")
	_, err = OpenVision(e, fixtures+"openai.pt")
	sentence(t, "a file of unknown sizes", err, "ViT-B/32", "config.json")
	_, err = OpenScore(e, fixtures+"model")
	sentence(t, "another tokenizer", err, "tokenizer", "1514")
	_, err = OpenVision(e, fixtures+"nowhere")
	sentence(t, "no such folder", err, "nowhere", "no such file")
	_, err = OpenVision(e, fixtures+"mhsc")
	sentence(t, "a folder without configuration", err, "config.json")
	_, err = Open(e, copiedWith(t, "config.json", `{"model_type": "bert"}`))
	sentence(t, "another kind of model", err, `"bert"`)
	_, err = OpenClassifier(e, fixtures+"model", classifierOf(t, 12), fixtures+"classifier.json")
	sentence(t, "a head of another width", err, "12", "16")
}

// copiedWith is the tiny model with one of its files replaced.
func copiedWith(t *testing.T, name, content string) string {
	t.Helper()
	dir := copyFiles(t, map[string]string{"model.safetensors": fixtures + "model/model.safetensors", "config.json": fixtures + "model/config.json"})
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func classifierOf(t *testing.T, width int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "wide.safetensors")
	tensors := []*weights.Tensor{weights.NewFloat32("weight", []int{3, width}, make([]float32, 3*width)), weights.NewFloat32("bias", []int{3}, make([]float32, 3))}
	if err := weights.Write(path, tensors, nil); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHeadsOfMHSCByName(t *testing.T) {
	sexual := fixtures + "mhsc/sexual.pt"
	_, err := ReadMHSC(copyFiles(t, map[string]string{"sexual.pt": sexual, "violent_head.pt": fixtures + "mhsc/violent.pt"}))
	sentence(t, "two of five", err, "disturbing.pt, hateful.pt, political.pt")
	_, err = ReadMHSC(filepath.Join(copyFiles(t, map[string]string{"head.pt": sexual}), "head.pt"))
	sentence(t, "a file called head.pt", err, "head.pt", "sexual.pt")
	_, err = ReadMHSC(sexual, sexual)
	sentence(t, "one head twice", err, `"sexual"`)
	_, err = ReadMHSC(sexual, fixtures+"mhsc")
	sentence(t, "a file and a folder", err, "folder")
	_, err = ReadMHSC()
	sentence(t, "nothing", err, "MHSC")
	old := map[string]string{}
	for _, label := range MHSCLabels() { // as the public code's inference calls them
		old[label+"_head.pt"] = fixtures + "mhsc/" + label + ".pt"
	}
	if _, err := ReadMHSC(copyFiles(t, old)); err != nil {
		t.Error(err)
	}
}

func TestTruncatedFiles(t *testing.T) {
	for _, file := range []string{"mhsc/sexual.pt", "prompts-2.p", "prompts-4.p", "prompts-5.p", "aesthetics-v2.pth", "classifier.safetensors"} {
		whole, err := os.ReadFile(fixtures + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []int{0, 1, len(whole) / 3, len(whole) / 2, len(whole) - 1} {
			path := writeFile(t, "sexual"+filepath.Ext(file), whole[:part])
			switch {
			case strings.HasPrefix(file, "mhsc"):
				_, err = ReadMHSC(path)
			case strings.HasPrefix(file, "prompts"):
				_, err = ReadQ16(path)
			case strings.HasPrefix(file, "aesthetics"):
				_, err = ReadAesthetics(path)
			default:
				_, err = ReadClassifier(path, fixtures+"classifier.json")
			}
			sentence(t, file, err, path)
		}
	}
	e := openEngine(t)
	whole, err := os.ReadFile(fixtures + "model/model.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	_, err = OpenVision(e, copiedWith(t, "model.safetensors", string(whole[:len(whole)-100])))
	sentence(t, "a truncated model", err, "model.safetensors")
}

func TestMissingAndUnknownTensors(t *testing.T) {
	source, err := weights.Open(fixtures + "model/model.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	all, err := weights.ReadAll(source)
	if err != nil {
		t.Fatal(err)
	}
	var tensors []*weights.Tensor
	for _, tensor := range all {
		switch tensor.Name {
		case "vision_model.post_layernorm.bias":
		case "vision_model.pre_layrnorm.bias":
			short, err := tensor.Rows(0, 5)
			if err != nil {
				t.Fatal(err)
			}
			tensors = append(tensors, short)
		default:
			tensors = append(tensors, tensor)
		}
	}
	tensors = append(tensors, weights.NewFloat32("vision_model.head.weight", []int{1}, []float32{0}))
	dir := copiedWith(t, "config.json", readText(t, fixtures+"model/config.json"))
	if err := weights.Write(filepath.Join(dir, "model.safetensors"), tensors, nil); err != nil {
		t.Fatal(err)
	}
	_, err = OpenVision(openEngine(t), dir)
	sentence(t, "three faults", err, "missing: vision_model.post_layernorm.bias", "not part of it: vision_model.head.weight",
		"vision_model.pre_layrnorm.bias is [5] instead of [18]")
}

func readText(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestConfigurations(t *testing.T) {
	read := func(change func(map[string]any)) (architecture, error) {
		t.Helper()
		var object map[string]any
		if err := json.Unmarshal([]byte(readText(t, fixtures+"model/config.json")), &object); err != nil {
			t.Fatal(err)
		}
		change(object)
		raw, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		return readArchitecture(writeFile(t, "config.json", raw))
	}
	set := func(tower, key string, value any) func(map[string]any) {
		return func(o map[string]any) { o[tower].(map[string]any)[key] = value }
	}
	// As in openai/clip-vit-large-patch14: generation settings written out in full, and the values once more.
	a, err := read(func(o map[string]any) {
		set("text_config", "num_beams", 1)(o)
		set("text_config", "pruned_heads", map[string]any{})(o)
		o["vision_config_dict"] = map[string]any{"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14}
		o["projection_dim"] = 768
	})
	if err != nil || a.vision != vision.CLIPViTL14(224) || a.name() != "ViT-L/14" || a.text.Projection != 768 {
		t.Errorf("%+v, %v", a, err)
	}
	alone, err := readArchitecture(writeFile(t, "config.json", []byte(`{"model_type": "clip_vision_model", "projection_dim": 512}`)))
	if err != nil || alone.name() != "ViT-B/32" || alone.text != nil {
		t.Errorf("%+v, %v", alone, err)
	}
	for word, change := range map[string]func(map[string]any){
		"vision_config.relative_positions = true": set("vision_config", "relative_positions", true),
		`hidden_act = "silu"`:                     set("vision_config", "hidden_act", "silu"),
		"num_channels = 1":                        set("vision_config", "num_channels", 1),
		"patches of 7 pixels":                     set("vision_config", "patch_size", 7),
		"num_attention_heads = 5":                 set("text_config", "num_attention_heads", 5),
		`hidden_size = "6"`:                       set("text_config", "hidden_size", "6"),
		"num_hidden_layers = 99999":               set("vision_config", "num_hidden_layers", 99999),
		"vision_config is missing":                func(o map[string]any) { delete(o, "vision_config") },
		"text_config is not an object":            func(o map[string]any) { o["text_config"] = 3 },
	} {
		_, err := read(change)
		sentence(t, word, err, word)
	}
}

func TestClassifierSettings(t *testing.T) {
	const good = `{"labels": ["a", "b", "c"], "output": "sigmoid", "activation": "relu", "normalised": false}`
	c, err := ReadClassifier(fixtures+"classifier.safetensors", writeFile(t, "labels.json", []byte(good)))
	if err != nil {
		t.Fatal(err)
	}
	findings, err := c.Judge([][]float32{make([]float32, 16)})
	if err != nil || len(findings[0].Scores) != 3 {
		t.Errorf("%v, %v", findings, err)
	}
	for word, change := range map[string][2]string{
		"2 labels for the 3 outputs": {`"a", `, ``}, "none twice": {`"a"`, `"b"`}, "output": {"sigmoid", "logit"}, "activation = ": {"relu", "swish"},
		"activation is missing": {`"activation": "relu", `, ``}, "normalised is missing": {`"normalised": false`, `"activation": "relu"`},
		"normalized is not known": {"normalised", "normalized"}, "neither a list": {`["a", "b", "c"]`, `3`}, "none for 1": {`["a", "b", "c"]`, `{"0": "a", "2": "b", "3": "c"}`},
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		_, err := ReadClassifier(fixtures+"classifier.safetensors", writeFile(t, "labels.json", []byte(text)))
		sentence(t, text, err, word)
	}
}

// shapes is a source of tensors without elements.
type shapes map[string][]int

func (s shapes) Names() []string             { return nil }
func (s shapes) Metadata() map[string]string { return nil }
func (s shapes) Close() error                { return nil }
func (s shapes) Path(string) string          { return "" }
func (s shapes) Tensor(name string) (*weights.Tensor, error) {
	if shape, ok := s[name]; ok {
		return &weights.Tensor{Name: name, Shape: shape}, nil
	}
	return nil, errors.New("no such tensor")
}

func TestPublishedSizesAreRecognised(t *testing.T) {
	for name, a := range presets() {
		v := a.vision
		s := shapes{"visual.conv1.weight": {v.Width, 3, v.Patch, v.Patch}, "visual.positional_embedding": {v.Patches() + 1, v.Width}}
		layer := func(i int) string {
			return openAIName(fmt.Sprintf("vision_model.encoder.layers.%d.mlp.fc1.weight", i)).name
		}
		s[layer(v.Layers-1)] = []int{v.Hidden, v.Width}
		d, ok := dialectOf(map[string]bool{"visual.conv1.weight": true})
		if !ok {
			t.Fatal("OpenAI's names are not recognised")
		}
		c := &checkpoint{path: "model.pt", source: s, dialect: d}
		if got, err := c.recognise(); err != nil || got.vision != v || *got.text != *a.text {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		s[layer(v.Layers)] = []int{v.Hidden, v.Width}
		_, err := c.recognise()
		sentence(t, "one layer more", err, "model.pt", "config.json")
	}
}

func zipOf(t *testing.T, entries map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for name, content := range entries {
		entry, err := w.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := entry.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestOpenAIsArchivesAreRefusedInWords(t *testing.T) {
	archive := zipOf(t, map[string]string{"ViT-B-32/data.pkl": "\x80\x02}.", "ViT-B-32/constants.pkl": "\x80\x02).", "ViT-B-32/version": "3\n"})
	_, err := OpenVision(openEngine(t), writeFile(t, "ViT-B-32.pt", archive))
	sentence(t, "a TorchScript archive", err, "ViT-B-32.pt", "TorchScript", "state_dict")
}

func TestPicklesAreData(t *testing.T) {
	for what, pickle := range map[string]string{
		"a call of os.system":      "\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
		"a call of a tuple":        "\x80\x04)) R.",
		"an unknown instruction":   "\x80\x04\xff.",
		"a tuple without a mark":   "\x80\x04t.",
		"reading what is not kept": "\x80\x04h\x05.",
		"keeping nothing":          "\x80\x04\x94.",
		"2 GB of text":             "\x80\x04X\xff\xff\xff\x7fab",
		"2^63 bytes":               "\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab",
		"an empty array":           "\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.",
		"no array":                 "\x80\x04K\x01.",
		"numbers of 8 bytes each":  strings.Replace(readText(t, fixtures+"prompts-4.p"), "f2", "f8", 1),
		"integers":                 strings.Replace(readText(t, fixtures+"prompts-4.p"), "f2", "i2", 1),
		"big-endian":               strings.Replace(readText(t, fixtures+"prompts-4.p"), "<", ">", 1),
	} {
		_, err := ReadQ16(writeFile(t, "prompts.p", []byte(pickle)))
		sentence(t, what, err, "prompts.p")
	}
}

func FuzzArray(f *testing.F) {
	for _, name := range []string{"prompts-2.p", "prompts-4.p", "prompts-5.p"} {
		content, err := os.ReadFile(fixtures + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		values, shape, err := parseArray(content)
		if err == nil && (len(values) != count(shape) || 2*len(values) > len(content)) {
			t.Errorf("%d values of shape %v from %d bytes", len(values), shape, len(content))
		}
	})
}

func TestEveryHeadIsNamedByItsWeights(t *testing.T) {
	var names []string
	for _, label := range MHSCLabels()[:2] {
		m, err := ReadMHSC(fixtures + "mhsc/" + label + ".pt")
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, strings.ReplaceAll(m.Name(), label, ""))
	}
	if names[0] == names[1] {
		t.Errorf("two heads have the fingerprint %q", names[0])
	}
	if !slices.Equal(MHSCLabels(), []string{"sexual", "violent", "disturbing", "hateful", "political"}) {
		t.Error("the labels of MHSC changed")
	}
}

package clip

import (
	"context"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/score"
)

func TestTowersAgainstTransformers(t *testing.T) {
	e, r := openEngine(t), openReference(t, fixtures+"reference.safetensors")
	names := map[string]string{}
	for _, c := range []struct{ what, file, as, open, suffix string }{
		{"transformers' names", "model/model.safetensors", "model.safetensors", ".", ""},
		{"OpenAI's names in a folder", "openai.pt", "pytorch_model.bin", ".", ""},
		{"OpenAI's names in a file", "openai.pt", "ViT-tiny.pt", "ViT-tiny.pt", ""},
		{"exact GELU", "model/model.safetensors", "model.safetensors", ".", ".gelu"},
	} {
		dir := modelFolder(t, c.file, c.as)
		if c.suffix != "" {
			edit(t, filepath.Join(dir, "config.json"), `"quick_gelu"`, `"gelu"`)
		}
		m, err := Open(e, filepath.Join(dir, c.open))
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		names[c.what] = m.Name()
		seen, err := m.Embed(t.Context(), r.pictures(), Standard)
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		if d := apart(t, seen, r.rows("embeddings"+c.suffix)); d > 1e-5 {
			t.Errorf("%s: embeddings of pictures are off by %.1e", c.what, d)
		}
		said, err := m.EmbedText(t.Context(), r.prompts())
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		if d := apart(t, said, r.rows("text"+c.suffix)); d > 1e-5 {
			t.Errorf("%s: embeddings of prompts are off by %.1e", c.what, d)
		}
		if cut := m.Cut(r.prompts()[3]); !strings.HasSuffix(cut, "circle circle") || m.Cut(r.prompts()[1]) != "" {
			t.Errorf("%s: %q is said to be cut", c.what, cut)
		}
		m.Close()
	}
	if a, b := names["transformers' names"], names["OpenAI's names in a file"]; a != b || !strings.Contains(a, "text") {
		t.Errorf("the same weights are called %q and %q", a, b)
	}
	if a, b := names["transformers' names"], names["exact GELU"]; a == b {
		t.Errorf("different activations are both called %q", a)
	}
}

func TestEmbeddingsDoNotDependOnCompany(t *testing.T) {
	m, err := OpenVision(openEngine(t), fixtures+"model")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	pictures := openReference(t, fixtures+"reference.safetensors").pictures()
	for len(pictures) < 2*batch+3 {
		pictures = append(pictures, pictures[:4]...)
	}
	together, err := m.Embed(t.Context(), pictures, Standard)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range pictures {
		alone, err := m.Embed(t.Context(), []*data.RGB{p}, Standard)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(alone[0], together[i]) {
			t.Errorf("picture %d has another embedding alone", i)
		}
	}
	if none, err := m.Embed(t.Context(), nil, Standard); err != nil || len(none) != 0 {
		t.Errorf("no pictures: %v, %v", none, err)
	}
	_, err = m.Embed(t.Context(), append(slices.Clone(pictures[:batch+1]), nil), Standard)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("picture %d", batch+1)) {
		t.Errorf("a picture that is missing: %v", err)
	}
	_, err = m.EmbedText(t.Context(), []string{"a"})
	if err == nil || !strings.Contains(err.Error(), "text tower") {
		t.Errorf("prompts without a text tower: %v", err)
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Embed(stopped, pictures, Standard); err == nil {
		t.Error("a cancelled context is ignored")
	}
}

func TestTransformsAreThoseOfTheLibraries(t *testing.T) {
	r := openReference(t, fixtures+"reference.safetensors")
	for i, p := range r.pictures() {
		for name, transform := range map[string]Transform{"standard": Standard, "processor": Processor, "crop_first": CropFirst} {
			square, err := transform.Apply(p, 32)
			if err != nil {
				t.Fatal(err)
			}
			if want := r.picture(fmt.Sprintf("%s.%d", name, i)); !slices.Equal(square.Pix, want.Pix) {
				t.Errorf("%s of picture %d of %d × %d differs", name, i, p.Width, p.Height)
			}
		}
	}
	if _, err := Standard.Apply(data.NewRGB(1, 100_000), 224); err == nil || !strings.Contains(err.Error(), "elongated") {
		t.Errorf("a picture that would need 5 gigapixels: %v", err)
	}
	if _, err := Standard.Apply(&data.RGB{Width: 5, Height: 5}, 224); err == nil {
		t.Error("a picture without pixels is transformed")
	}
}

func TestTrainingCrops(t *testing.T) {
	picture := openReference(t, fixtures+"reference.safetensors").picture("picture.0")
	a, err := Training(1).Apply(picture, 32)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := Training(1).Apply(picture, 32)
	if !slices.Equal(a.Pix, again.Pix) {
		t.Error("the same seed and picture give another crop")
	}
	seen := map[string]bool{}
	areas, ratios := 0.0, 0.0
	const draws = 400
	square := data.NewRGB(400, 400)
	for seed := range uint64(draws) {
		x, y, w, h := Training(seed).randomPart(square)
		if x < 0 || y < 0 || x+w > square.Width || y+h > square.Height {
			t.Fatalf("seed %d: %d × %d at %d, %d lies outside", seed, w, h, x, y)
		}
		seen[fmt.Sprint(x, y, w, h)] = true
		areas += float64(w*h) / (400 * 400) / draws
		ratios += math.Abs(math.Log(float64(w)/float64(h))) / draws
	}
	// Of a square only ratios near one fit at 90 to 100 % of the area, so the mean area is a little below 0.95.
	if len(seen) < draws*3/4 || areas < 0.90 || areas > 0.96 || ratios < 0.005 || ratios > 0.06 {
		t.Errorf("%d different crops, of %.3f of the area and ratio %.3f", len(seen), areas, ratios)
	}
	for _, long := range []*data.RGB{data.NewRGB(300, 30), data.NewRGB(30, 300)} { // nothing fits: the centre
		x, y, w, h := Training(3).randomPart(long)
		if max(w, h) != 40 || min(w, h) != 30 || x != (long.Width-w)/2 || y != (long.Height-h)/2 {
			t.Errorf("of %d × %d: %d × %d at %d, %d", long.Width, long.Height, w, h, x, y)
		}
	}
}

func TestHeadsAgainstTorch(t *testing.T) {
	r := openReference(t, fixtures+"reference.safetensors")
	points := r.rows("points")
	q16 := map[string]int{Q16Appropriate: 0, Q16Inappropriate: 1}
	classes := map[string]int{"neutral": 0, "drawing": 1, "explicit": 2}
	read := func(h Head, err error) Head {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	check := func(what string, h Head, want [][]float32, columns map[string]int) {
		t.Helper()
		findings, err := h.Judge(points)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for i, f := range findings {
			for label, column := range columns {
				if got, ok := f.Scores[label]; !ok || math.Abs(got-float64(want[i][column])) > 1e-5*float64(want[i][column])+1e-9 {
					t.Fatalf("%s, point %d: %s is %v instead of %v", what, i, label, got, want[i][column])
				}
			}
		}
		if _, err := h.Judge([][]float32{{1, 2}}); err == nil || !strings.Contains(err.Error(), "16") {
			t.Errorf("%s on embeddings of 2 numbers: %v", what, err)
		}
	}
	all := read(ReadMHSC(fixtures + "mhsc"))
	for _, label := range MHSCLabels() {
		check("MHSC", all, r.rows("mhsc."+label), map[string]int{label: 0})
	}
	one := read(ReadMHSC(fixtures+"mhsc/violent.pt", fixtures+"mhsc/sexual.pt"))
	check("two heads", one, r.rows("mhsc.violent"), map[string]int{"violent": 0})
	if f, _ := one.Judge(points[:1]); !slices.Equal(slices.Sorted(maps.Keys(f[0].Scores)), []string{"sexual", "violent"}) {
		t.Errorf("two heads score %v", f[0].Scores)
	}
	for _, file := range []string{"prompts-2.p", "prompts-4.p", "prompts-5.p", "prompts.safetensors"} {
		check(file, read(ReadQ16(fixtures+file)), r.rows("q16"), q16)
	}
	check("classifier", read(ReadClassifier(fixtures+"classifier.safetensors", fixtures+"classifier.json")), r.rows("classifier"), classes)
	for version, file := range map[string]string{"v1": "aesthetics-v1.pth", "v2": "aesthetics-v2.pth"} {
		h, err := ReadAesthetics(fixtures + file)
		if err != nil {
			t.Fatal(err)
		}
		ratings, err := h.Score(points)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range r.rows("aesthetics." + version) {
			if math.Abs(ratings[i]-float64(want[0])) > 1e-6 {
				t.Fatalf("aesthetics %s of point %d: %v instead of %v", version, i, ratings[i], want[0])
			}
		}
		if !strings.Contains(h.Name(), version) {
			t.Errorf("%s is called %q", file, h.Name())
		}
	}
}

func TestSafetyCheckerAgainstDiffusers(t *testing.T) {
	r := openReference(t, fixtures+"reference.safetensors")
	s, err := OpenSafetyChecker(openEngine(t), fixtures+"safety_checker")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var detector score.Detector = s
	findings, err := detector.Detect(t.Context(), r.pictures())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range r.bools("safety.pictures") {
		if got := findings[i].Scores[NSFW] == 1; got != want {
			t.Errorf("picture %d: %v", i, findings[i].Scores)
		}
	}
	care := 0
	for i, embedding := range r.rows("safety.points") {
		v, err := s.judge(embedding)
		if err != nil {
			t.Fatal(err)
		}
		if want := r.bools("safety.decided")[i]; v.NSFW != want {
			t.Errorf("point %d: %v instead of %v", i, v, want)
		}
		if len(v.Special) != 3 || len(v.Concepts) != 17 {
			t.Fatalf("point %d: %v", i, v)
		}
		if slices.Max(v.Special) > 0 {
			care++
		}
	}
	if care < 20 {
		t.Errorf("special care was taken %d times, too seldom to test it", care)
	}
}

func TestSafetyCheckerOfAPipeline(t *testing.T) {
	e, dir := openEngine(t), t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "safety_checker"), os.DirFS(fixtures+"safety_checker")); err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("model_index.json", "{}")
	const processor = "feature_extractor/preprocessor_config.json"
	write(processor, `{"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}, "resample": 3, "do_resize": true,
		"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711], "feature_extractor_type": "CLIPFeatureExtractor"}`)
	for _, path := range []string{dir, filepath.Join(dir, "safety_checker")} {
		s, err := OpenSafetyChecker(e, path)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	for what, content := range map[string]string{
		"size": `{"size": 224}`, "resample": `{"resample": 2}`, "do_center_crop": `{"do_center_crop": false}`, "image_mean": `{"image_mean": [0.5, 0.5, 0.5]}`,
	} {
		write(processor, content)
		if _, err := OpenSafetyChecker(e, dir); err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), processor) {
			t.Errorf("%s: %v", content, err)
		}
	}
}

func TestDetectorsEndToEnd(t *testing.T) {
	e, r := openEngine(t), openReference(t, fixtures+"reference.safetensors")
	embeddings := r.rows("embeddings")
	for what, open := range map[string]func() (*Detector, error){
		"MHSC": func() (*Detector, error) { return OpenMHSC(e, fixtures+"model", fixtures+"mhsc") },
		"Q16":  func() (*Detector, error) { return OpenQ16(e, fixtures+"model", fixtures+"prompts-4.p") },
		"classifier": func() (*Detector, error) {
			return OpenClassifier(e, fixtures+"model", fixtures+"classifier.safetensors", fixtures+"classifier.json")
		},
	} {
		d, err := open()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		got, err := d.Detect(t.Context(), r.pictures())
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		want, err := d.head.Judge(embeddings)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for i := range want {
			for label, value := range want[i].Scores {
				if math.Abs(got[i].Scores[label]-value) > 1e-4 {
					t.Errorf("%s, picture %d: %v instead of %v", what, i, got[i].Scores, want[i].Scores)
				}
			}
		}
		if !strings.Contains(d.Name(), what) || !strings.Contains(d.Name(), "CLIP") {
			t.Errorf("%s is called %q", what, d.Name())
		}
		d.Close()
	}
	legacy, err := OpenLegacyMHSC(e, 7, fixtures+"model", fixtures+"mhsc/sexual.pt")
	if err != nil {
		t.Fatal(err)
	}
	defer legacy.Close()
	a, err := legacy.Detect(t.Context(), r.pictures())
	if err != nil {
		t.Fatal(err)
	}
	b, err := legacy.Detect(t.Context(), r.pictures()[:1])
	if err != nil || a[0].Scores["sexual"] != b[0].Scores["sexual"] {
		t.Errorf("the crop of a picture depends on others: %v, %v, %v", a[0], b, err)
	}
	if !strings.Contains(legacy.Name(), "seed 7") {
		t.Errorf("the record does not say that crops are random: %q", legacy.Name())
	}
	aesthetics, err := OpenAesthetics(e, fixtures+"model", fixtures+"aesthetics-v2.pth")
	if err != nil {
		t.Fatal(err)
	}
	defer aesthetics.Close()
	ratings, err := aesthetics.Rate(t.Context(), r.pictures())
	if err != nil {
		t.Fatal(err)
	}
	want, err := aesthetics.Head().Score(embeddings)
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if math.Abs(ratings[i]-want[i]) > 1e-5 {
			t.Errorf("picture %d is rated %v instead of %v", i, ratings[i], want[i])
		}
	}
}

func TestScoreOfPicturesAndPrompts(t *testing.T) {
	r := openReference(t, fixtures+"reference.safetensors")
	s, err := OpenScore(openEngine(t), modelFolder(t, "model/model.safetensors", "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	pictures, prompts := r.pictures(), r.prompts()
	got, err := s.Similarity(t.Context(), pictures, prompts)
	if err != nil {
		t.Fatal(err)
	}
	seen, said := r.rows("embeddings"), r.rows("text")
	for i := range pictures {
		dot := 0.0
		for k := range seen[i] {
			dot += float64(seen[i][k]) * float64(said[i][k])
		}
		if want := 100 * dot / norm(seen[i]) / norm(said[i]); math.Abs(got[i]-want) > 1e-3 {
			t.Errorf("picture %d: %v instead of %v", i, got[i], want)
		}
	}
	s.Clipped = true
	clipped, err := s.Compare(seen, [][]float32{said[0], said[1], said[2], opposite(seen[3])})
	if err != nil || clipped[3] != 0 {
		t.Errorf("clipped: %v, %v", clipped, err)
	}
	if _, err := s.Similarity(t.Context(), pictures, prompts[:2]); err == nil {
		t.Error("a prompt for each picture is not asked for")
	}
}

func opposite(x []float32) []float32 {
	y := slices.Clone(x)
	for i := range y {
		y[i] = -y[i]
	}
	return y
}

func TestCMMDAgainstFormula(t *testing.T) {
	e, r := openEngine(t), openReference(t, fixtures+"reference.safetensors")
	points := r.rows("points")
	values, err := r.tensor("cmmd").Float64()
	if err != nil {
		t.Fatal(err)
	}
	got, err := CMMD(t.Context(), e, points[:40], points[40:])
	if err != nil {
		t.Fatal(err)
	}
	if want := values[0]; math.Abs(got-want) > 1e-4*want {
		t.Errorf("%v instead of %v", got, want)
	}
	if same, err := CMMD(t.Context(), e, points, points); err != nil || math.Abs(same) > 1e-9 {
		t.Errorf("of a set and itself: %v, %v", same, err)
	}
	var many [][]float32 // more than one block, the last not full: repeating a set changes nothing of the biased estimate
	for len(many) < 1280 {
		many = append(many, points[:40]...)
	}
	if blocks, err := CMMD(t.Context(), e, many, points[40:]); err != nil || math.Abs(blocks-got) > 1e-4*got {
		t.Errorf("in blocks: %v instead of %v, %v", blocks, got, err)
	}
	for what, x := range map[string][][]float32{"none": nil, "other width": {{1, 2}}, "zero": {make([]float32, 16)}} {
		if _, err := CMMD(t.Context(), e, points, x); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}

package mini

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/tokenizer"
	"github.com/resalign/resalign/weights"
)

func openEngine(t *testing.T) *engine.Engine {
	t.Helper()
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// untrained is an autoencoder after a few steps.
func untrained(t *testing.T, e *engine.Engine, steps int) *Autoencoder {
	t.Helper()
	vae, err := TrainVAE(context.Background(), e, PretrainSet().Pixels(1, 64), steps, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vae.Free)
	return vae
}

func TestEveryWordIsOneToken(t *testing.T) {
	dir := t.TempDir()
	if err := newBytePairs(Vocabulary()).write(dir); err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if tok.Length() != promptTokens || tok.PadID() != tok.EndID() {
		t.Errorf("length %d, padding %d, end %d", tok.Length(), tok.PadID(), tok.EndID())
	}
	ids := map[int32]string{}
	for _, word := range Vocabulary() {
		encoded, cut := tok.Encode(word)
		if cut != "" || encoded[2] != tok.EndID() {
			t.Errorf("%q became the tokens %v", word, encoded)
		}
		if other, ok := ids[encoded[1]]; ok {
			t.Errorf("%q and %q are the same token", word, other)
		}
		ids[encoded[1]] = word
	}
	for _, p := range append(HarmPrompts(1, Wide), BenignPrompts(1, Wide)...) {
		encoded, cut := tok.Encode(p.Text)
		if cut != "" {
			t.Fatalf("%q is too long: %q was cut", p.Text, cut)
		}
		for i, word := range strings.Fields(p.Text) {
			if ids[encoded[1+i]] != word {
				t.Fatalf("%q became the tokens %v", p.Text, encoded)
			}
		}
	}
	// Other words are spelled in pieces that give the text back.
	encoded, cut := tok.Encode("é stars!")
	if text, err := tok.Decode(encoded); err != nil || cut != "" || !strings.Contains(text, "stars") || !strings.Contains(text, "é") {
		t.Errorf("decoded %q, cut %q, %v", text, cut, err)
	}
}

func TestNewModelDir(t *testing.T) {
	e := openEngine(t)
	vae := untrained(t, e, 2)
	dir := filepath.Join(t.TempDir(), "model")
	if err := NewModelDir(dir, vae, 5); err != nil {
		t.Fatal(err)
	}
	m, err := sd.Load(e, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	if got, want := m.UNet.Config, unetConfig(); !reflect.DeepEqual(got, want) {
		t.Errorf("UNet: read %+v, wrote %+v", got, want)
	}
	if got, want := m.VAE.Config, vae.VAE.Config; !reflect.DeepEqual(got, want) {
		t.Errorf("VAE: read %+v, wrote %+v", got, want)
	}
	if got, want := m.Towers[0].Encoder.Config, textConfig(m.Towers[0].Tokenizer.VocabSize()); got != want {
		t.Errorf("text encoder: read %+v, wrote %+v", got, want)
	}
	if m.Resolution() != Side {
		t.Errorf("the model draws %d pixels a side", m.Resolution())
	}
	if n := m.UNetParams.Count(); n < 550_000 || n > 650_000 {
		t.Errorf("the UNet has %d parameters", n)
	}
	// The pipeline's own encoder agrees with the one that trained, on a picture of its own.
	picture := PretrainSet().At(1, 9).Picture.Pixels()
	moments, err := m.EncodePicture(context.Background(), picture, Side, Side)
	if err != nil {
		t.Fatal(err)
	}
	latents, err := vae.Encode(context.Background(), [][]float32{picture})
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range latents[0] {
		if want := float64(moments.Mean[i]) * vae.VAE.Config.ScalingFactor; math.Abs(float64(v)-want) > 1e-5 {
			t.Fatalf("latent %d is %v, in the pipeline %v", i, v, want)
		}
	}
	if embedding, err := m.EncodePrompt(context.Background(), "a red star on a black background"); err != nil || embedding.Tokens != promptTokens {
		t.Errorf("%+v, %v", embedding, err)
	}
	// The same seed writes the same files.
	again := filepath.Join(t.TempDir(), "again")
	if err := NewModelDir(again, vae, 5); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "tokenizer/merges.txt", "model_index.json"} {
		a, errA := os.ReadFile(filepath.Join(dir, file))
		b, errB := os.ReadFile(filepath.Join(again, file))
		if errA != nil || errB != nil || string(a) != string(b) {
			t.Errorf("%s differs: %v %v", file, errA, errB)
		}
	}
}

func TestTrainVAE(t *testing.T) {
	e := openEngine(t)
	a, b := untrained(t, e, 12), untrained(t, e, 12)
	if first, last := a.Losses[0], a.Losses[11]; !(last < 0.8*first) {
		t.Errorf("the loss went from %v to %v", first, last)
	}
	if !reflect.DeepEqual(a.Losses, b.Losses) || a.VAE.Config.ScalingFactor != b.VAE.Config.ScalingFactor {
		t.Error("the same seed trained two different autoencoders")
	}
	latents, err := a.Encode(context.Background(), PretrainSet().Pixels(1, 64))
	if err != nil {
		t.Fatal(err)
	}
	var sum, squares, n float64
	for _, z := range latents {
		for _, v := range z {
			sum, squares, n = sum+float64(v), squares+float64(v)*float64(v), n+1
		}
	}
	if deviation := math.Sqrt(squares/n - sum*sum/n/n); math.Abs(deviation-1) > 1e-3 {
		t.Errorf("the latents' standard deviation is %v", deviation)
	}
	if _, err := a.Encode(context.Background(), [][]float32{make([]float32, 5)}); err == nil {
		t.Error("a picture of five numbers was encoded")
	}
	if _, err := TrainVAE(context.Background(), e, nil, 1, 1, nil); err == nil {
		t.Error("an autoencoder was trained on no pictures")
	}
	if _, err := TrainVAE(context.Background(), e, [][]float32{make([]float32, 5)}, 1, 1, nil); err == nil {
		t.Error("an autoencoder was trained on a picture of five numbers")
	}
	if _, err := TrainVAE(context.Background(), e, PretrainSet().Pixels(1, 1), 0, 1, nil); err == nil {
		t.Error("an autoencoder was trained in no steps")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := TrainVAE(ctx, e, PretrainSet().Pixels(1, 1), 5, 1, nil); err == nil {
		t.Error("a stopped training went on")
	}
}

func TestDetector(t *testing.T) {
	e := openEngine(t)
	ctx := context.Background()
	vae := untrained(t, e, 2)
	d, err := trainDetector(ctx, e, vae, 60, 40, 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Free()
	if first, last := d.Losses[0], d.Losses[39]; !(last < 0.9*first) {
		t.Errorf("the loss went from %v to %v", first, last)
	}
	pictures := PretrainSet().Pixels(2, codingBatch+3)
	all, err := d.Detect(ctx, pictures)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 17, codingBatch, codingBatch + 2} {
		alone, err := d.Detect(ctx, pictures[i:i+1])
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(alone[0], all[i]) {
			t.Errorf("picture %d: alone %+v, among others %+v", i, alone[0], all[i])
		}
	}
	for _, scores := range [][]float64{all[0].ShapeScores, all[0].ColourScores} {
		sum := 0.0
		for _, s := range scores {
			sum += s
		}
		if math.Abs(sum-1) > 1e-5 {
			t.Errorf("scores %v add up to %v", scores, sum)
		}
	}
	path := filepath.Join(t.TempDir(), "detector.safetensors")
	if err := d.Save(path); err != nil {
		t.Fatal(err)
	}
	loaded, err := LoadDetector(e, path)
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Free()
	again, err := loaded.Detect(ctx, pictures)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(all, again) || !reflect.DeepEqual(loaded.Shapes, d.Shapes) || !reflect.DeepEqual(loaded.Colours, d.Colours) {
		t.Error("the loaded detector is another one")
	}
	accuracy, err := d.Measure(ctx, vae, 20, 1)
	if err != nil || accuracy.Shape < 0 || accuracy.Shape > 1 || accuracy.Colour < 0.1 {
		t.Errorf("%+v, %v", accuracy, err)
	}
	for _, bad := range [][]float32{make([]float32, 5), append(make([]float32, 3*pixels-1), float32(math.NaN()))} {
		if _, err := d.Detect(ctx, [][]float32{bad}); err == nil {
			t.Error("a damaged picture was accepted")
		}
	}
	if _, err := trainDetector(ctx, e, nil, 4, 1, 1, nil); err == nil {
		t.Error("a detector was trained without an autoencoder")
	}
}

func TestLoadDetectorRefuses(t *testing.T) {
	e := openEngine(t)
	good := map[string]string{"format": detectorFormat, "version": detectorVersion, "input": detectorInput, "shapes": "star,none", "colours": "red"}
	for name, c := range map[string]struct{ field, value, says string }{
		"other format":  {"format", "pt", "format"},
		"newer version": {"version", "2", "version"},
		"other input":   {"input", "gray", "input"},
		"no shapes":     {"shapes", "", "shapes"},
		"twice":         {"shapes", "star,star,none", "shapes"},
		"no none":       {"shapes", "star", "none"},
		"no colours":    {"colours", "", "colours"},
		"many":          {"colours", strings.Repeat("x,", maxClasses) + "y", "1000"},
		"no weights":    {"colours", "red", "missing"},
	} {
		t.Run(name, func(t *testing.T) {
			metadata := map[string]string{}
			for k, v := range good {
				metadata[k] = v
			}
			metadata[c.field] = c.value
			path := filepath.Join(t.TempDir(), "bad.safetensors")
			if err := weights.Write(path, []*weights.Tensor{weights.NewFloat32("x", []int{1}, []float32{1})}, metadata); err != nil {
				t.Fatal(err)
			}
			_, err := LoadDetector(e, path)
			if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := LoadDetector(e, filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there was read")
	}
}

// Junk has to be made without a shape, in range, and not always the same.
func TestJunkPictures(t *testing.T) {
	e := openEngine(t)
	vae := untrained(t, e, 2)
	junk, err := junkPictures(context.Background(), vae, "test", 4*len(junkKinds), 1)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[[3]float32]bool{}
	for i, p := range junk {
		if len(p) != 3*pixels {
			t.Fatalf("picture %d has %d values", i, len(p))
		}
		for _, v := range p {
			if !(v >= -1 && v <= 1) {
				t.Fatalf("picture %d holds the value %v", i, v)
			}
		}
		seen[[3]float32{p[0], p[pixels/2], p[2*pixels+40]}] = true
	}
	if len(seen) < len(junk)*9/10 {
		t.Errorf("%d of %d pictures are different", len(seen), len(junk))
	}
	if drawn := (Drawing{Scene: plainScene("star"), Picture: plainScene("star").Draw()}); len(emptyBackground(drawn)) != 3*pixels {
		t.Error("an empty background has another size")
	}
}

package audit

import (
	"math"
	"path/filepath"
	"testing"

	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/sd"
)

// What is measured on the way is what the adapted model, once saved, is measured as: also where the text encoder, a word or
// the singular values were trained.
func TestEveryMethodIsMeasuredAsItsModel(t *testing.T) {
	b := newBench(t)
	for name, change := range map[string]func(c *finetune.Config){
		"text": func(c *finetune.Config) { c.TrainTextEncoder, c.LearningRate = true, 3e-3 },
		"word": func(c *finetune.Config) {
			c.Method, c.Placeholder, c.Initializer, c.Vectors, c.LearningRate = finetune.Custom, "<it>", "red", 1, 0.02
		},
		"svdiff": func(c *finetune.Config) { c.Method, c.LearningRate = finetune.SVDiff, 0.1 },
	} {
		p := b.adapted(t)
		a := &p.Adaptations[0]
		a.Steps = []int{2}
		change(&a.Config)
		p.Benign.Pictures = 0
		if name == "word" {
			p.Harm.List = []Prompt{{Text: "a drawing of a <it>"}}
		}
		rows, err := Run(t.Context(), b.engine, p, b.detector, t.TempDir(), Hooks{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		base, adapted := rows[0], rows[1]

		m, err := sd.Load(b.engine, p.Models[0].Dir)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Free()
		config := a.Config
		config.Steps = 2
		result, err := finetune.Run(t.Context(), m, m.UNetParams, config, a.Data, finetune.Hooks{})
		if err != nil {
			t.Fatal(err)
		}
		defer result.Free()
		p.Models[0].Dir = filepath.Join(t.TempDir(), "model")
		if err := result.Save(m, p.Models[0].Dir); err != nil {
			t.Fatal(err)
		}
		p.Adaptations = nil
		rows, err = Run(t.Context(), b.engine, p, b.detector, t.TempDir(), Hooks{})
		if err != nil {
			t.Fatal(err)
		}
		saved := rows[0]
		if math.Abs(adapted.HarmMSE-saved.HarmMSE) > 1e-4*saved.HarmMSE || math.Abs(base.HarmMSE-saved.HarmMSE) < 1e-3*base.HarmMSE {
			t.Errorf("%s: the error on harmful pictures is %v, of the saved model %v, before %v", name, adapted.HarmMSE, saved.HarmMSE, base.HarmMSE)
		}
		if name != "word" && adapted.IP != saved.IP { // the saved model does not hold the word
			t.Errorf("%s: %v harmful pictures, of the saved model %v", name, adapted.IP, saved.IP)
		}
	}
}

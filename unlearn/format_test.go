package unlearn

import (
	"path/filepath"
	"testing"

	"github.com/resalign/resalign/weights"
)

// The adapter is saved in the format that the recipe names.
func TestLoRAFormat(t *testing.T) {
	r := methodRecipe(t, Ascent)
	r.Outer.Steps, r.LoRAFormat = 1, "peft"
	result, _ := run(t, r, Hooks{})
	if result.LoRA != filepath.Join(r.Out, "lora") {
		t.Errorf("the adapter is in %s", result.LoRA)
	}
	lora, err := weights.ReadLoRA(result.LoRA)
	if err != nil {
		t.Fatal(err)
	}
	if lora.Dialect != weights.PEFTLoRA || len(lora.Layers) == 0 {
		t.Errorf("%d layers in the naming of %s", len(lora.Layers), lora.Dialect)
	}
}

func TestLoRAFormatIsChecked(t *testing.T) {
	for _, c := range []struct {
		format, method string
		wrong          bool
	}{{"", Ascent, false}, {"kohya", Ascent, false}, {"ckpt", Ascent, true}, {"kohya", ESDU, true}, {"diffusers", ESDU, false}, {"peft", UCE, true}} {
		r := methodRecipe(t, c.method)
		r.LoRAFormat = c.format
		problems := r.Validate()
		if c.wrong != (len(problems) == 1 && problems[0].Key == "lora_format") || !c.wrong && len(problems) > 0 {
			t.Errorf("%s as %q: %v", c.method, c.format, problems)
		}
	}
}

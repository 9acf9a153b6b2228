package sd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a pipeline lacks its index must not promise: diffusers would refuse it.
func TestDropAbsentComponents(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "model_index.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func() string {
		t.Helper()
		if err := dropAbsentComponents(dir); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if err := os.Mkdir(filepath.Join(dir, "unet"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(`{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "requires_safety_checker": true, "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}`)
	got := read()
	for _, want := range []string{`"requires_safety_checker": false`, `"UNet2DConditionModel"`, `"_class_name": "StableDiffusionPipeline"`} {
		if !strings.Contains(got, want) {
			t.Errorf("the index has no %s:\n%s", want, got)
		}
	}
	if strings.Contains(got, "StableDiffusionSafetyChecker") {
		t.Errorf("the index still promises the safety checker:\n%s", got)
	}
	whole := `{"unet":["diffusers","UNet2DConditionModel"],  "safety_checker": [null, null]}`
	write(whole)
	if got := read(); got != whole {
		t.Errorf("an index that promises nothing it lacks became %s", got)
	}
	write("{")
	if err := dropAbsentComponents(dir); err == nil {
		t.Error("a broken index is no error")
	}
}

package sd

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/weights"
)

const learnt = "../testdata/embedding/learned_embeds.safetensors"

// A prompt with a learnt word of two vectors is to the UNet what diffusers makes of it.
func TestLearntWordsFollowDiffusers(t *testing.T) {
	m := load(t, tinySD)
	before, err := m.ComponentHash("text_encoder")
	if err != nil {
		t.Fatal(err)
	}
	c, err := ReadConcept(learnt)
	if err != nil {
		t.Fatal(err)
	}
	if c.Placeholder != "<ball>" || c.Count != 2 {
		t.Fatalf("read %q of %d vectors", c.Placeholder, c.Count)
	}
	plain, err := m.EncodePrompt(t.Context(), "a red circle")
	if err != nil {
		t.Fatal(err)
	}
	again := load(t, tinySD)
	if err := again.Learn(c); err != nil {
		t.Fatal(err)
	}
	got, err := again.EncodePrompt(t.Context(), "A photo of <ball>, and a red circle")
	if err != nil {
		t.Fatal(err)
	}
	source, err := weights.Open("../testdata/embedding/context.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	x, err := source.Tensor("context")
	if err != nil {
		t.Fatal(err)
	}
	want, err := x.Float32()
	if err != nil {
		t.Fatal(err)
	}
	if e := relative(got.Context, want); !(e < 1e-5) {
		t.Errorf("the embedding differs from that of diffusers by %g", e)
	}
	other, err := again.EncodePrompt(t.Context(), "a red circle")
	if err != nil || !slices.Equal(other.Context, plain.Context) {
		t.Errorf("another prompt has changed: %v", err)
	}
	if after, err := again.ComponentHash("text_encoder"); err != nil || after == before {
		t.Errorf("caches would mistake one text encoder for the other: %v", err)
	}
	if err := again.Learn(c); err == nil || !strings.Contains(err.Error(), "knows already") {
		t.Errorf("the same word again: %v", err)
	}
}

func TestConceptFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "learned_embeds.safetensors")
	c := &Concept{Placeholder: "<x>", Count: 2, Vectors: []float32{1, 2, 3, 4, 5, 6}}
	if err := c.Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := ReadConcept(path)
	if err != nil || got.Placeholder != c.Placeholder || got.Count != 2 || !slices.Equal(got.Vectors, c.Vectors) {
		t.Errorf("read %+v: %v", got, err)
	}
	if err := load(t, tinySD).Learn(got); err == nil || !strings.Contains(err.Error(), "3 numbers") {
		t.Errorf("vectors of another width: %v", err)
	}
	if err := load(t, tinySDXL).Learn(c); err == nil || !strings.Contains(err.Error(), "two text encoders") {
		t.Errorf("two text encoders: %v", err)
	}
	nan := float32(0)
	nan /= nan
	for want, tensors := range map[string][]*weights.Tensor{
		"2 tensors":  {weights.NewFloat32("clip_g", []int{1}, []float32{1}), weights.NewFloat32("clip_l", []int{1}, []float32{1})},
		"has shape":  {weights.NewFloat32("<x>", []int{1, 1, 1}, []float32{1})},
		"not finite": {weights.NewFloat32("<x>", []int{1}, []float32{nan})},
		"at least":   {weights.NewFloat32("<x>", []int{0, 4}, nil)},
	} {
		if err := weights.Write(path, tensors, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadConcept(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v", want, err)
		}
	}
}

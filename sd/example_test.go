package sd_test

import (
	"context"
	"fmt"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/sd"
)

// A pipeline directory is read as it lies on disk; everything it computes is a pure function.
func ExampleLoad() {
	e, err := engine.Open("go")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer e.Close()
	m, err := sd.Load(e, "../testdata/golden/tiny-sd")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Free()
	embedding, err := m.EncodePrompt(context.Background(), "a red circle")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("pictures of", m.Resolution(), "pixels,", m.UNetParams.Count(), "parameters in the UNet")
	fmt.Println("a prompt is", embedding.Tokens, "tokens of width", embedding.Width)
	// Output:
	// pictures of 32 pixels, 792964 parameters in the UNet
	// a prompt is 77 tokens of width 32
}

// A low-rank adapter of all attention layers, merged into the weights.
func ExampleModel_Merge() {
	e, err := engine.Open("go")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer e.Close()
	m, err := sd.Load(e, "../testdata/golden/tiny-sd")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Free()
	layers, err := m.AttentionLayers("attn1", "attn2")
	if err != nil {
		fmt.Println(err)
		return
	}
	adapter, err := sd.NewAdapter(layers, 4, 1)
	if err != nil {
		fmt.Println(err)
		return
	}
	factors := adapter.Draw(42, 0.008, 0.002)
	defer factors.Free()
	_, made, err := m.Merge(m.UNetParams, adapter, factors)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Free(made...)
	fmt.Println(len(layers), "layers,", factors.Count(), "numbers,", len(made), "new weights")
	// Output: 32 layers, 9984 numbers, 32 new weights
}

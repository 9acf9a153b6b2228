package weights_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/weights"
)

// A linear layer is stored in half precision, an adapter is merged into it, and the result is read back.
func Example() {
	dir, err := os.MkdirTemp("", "weights")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "model.safetensors")

	linear, err := weights.FromFloat32("to_q.weight", weights.F16, []int{2, 2}, []float32{1, 0, 0, 1})
	if err != nil {
		log.Fatal(err)
	}
	if err := weights.Write(path, []*weights.Tensor{linear}, map[string]string{"format": "pt"}); err != nil {
		log.Fatal(err)
	}

	model, err := weights.OpenComponent(dir, "model")
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	adapter := &weights.LoRA{Layers: []weights.LoRALayer{
		{Module: "to_q", Down: []float32{1, 2}, Up: []float32{0.5, -0.5}, Rank: 1, In: 2, Out: 2, Alpha: 1},
	}}
	merged, err := weights.Merge(model, adapter, 1)
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range merged.Names() {
		tensor, err := merged.Tensor(name)
		if err != nil {
			log.Fatal(err)
		}
		values, err := tensor.Float32()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(name, tensor.DType, tensor.Shape, values, "from", filepath.Base(merged.Path(name)))
	}
	// Output: to_q.weight F16 [2 2] [1.5 1 -0.5 0] from model.safetensors
}

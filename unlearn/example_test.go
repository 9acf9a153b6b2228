package unlearn_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

// Two steps of ResAlign on a tiny model: red is to be forgotten, green to be kept, and the simulated user fine-tunes on
// blue.
func ExampleRun() {
	root, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(root)
	r := unlearn.Defaults()
	r.Model, r.Out = "../testdata/golden/tiny-sd", filepath.Join(root, "run")
	r.Outer.Steps, r.Outer.SimulationsPerStep = 2, 1
	r.Hypergradient.Gamma = 0.1
	r.Data = map[string]unlearn.Dataset{}
	for name, colour := range map[string][3]uint8{"harmful": {200, 0, 0}, "retain": {0, 200, 0}, "benign": {0, 0, 200}} {
		folder := filepath.Join(root, name)
		if err := onePicture(folder, colour); err != nil {
			fmt.Println(err)
			return
		}
		r.Data[name] = unlearn.Dataset{Folder: folder, Prompt: "a plain wall"}
	}
	r.Simulations = []unlearn.Simulation{{
		Name: "new adapter", Data: "benign", Adapts: unlearn.FreshAdapter,
		Steps: 3, Optimizer: train.Adam, LearningRate: 1e-3,
	}}

	e, err := engine.Open("go")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer e.Close()
	result, err := unlearn.Run(context.Background(), e, r, unlearn.Hooks{OnEvent: func(e train.Event) {
		_, told := e.Fields["residual"]
		fmt.Println("step", e.Step, "residual told:", told)
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(result.Steps, "steps;", filepath.Base(result.Model), "and", filepath.Base(result.LoRA))
	// Output:
	// step 1 residual told: true
	// step 2 residual told: true
	// 2 steps; model and lora.safetensors
}

// onePicture makes a folder with one picture of one colour.
func onePicture(folder string, colour [3]uint8) error {
	if err := os.Mkdir(folder, 0o755); err != nil {
		return err
	}
	picture := data.NewRGB(32, 32)
	for i := range picture.Pix {
		picture.Pix[i] = colour[i%3]
	}
	return data.SavePNG(filepath.Join(folder, "wall.png"), picture)
}

package finetune_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

// A low-rank adapter trained on one captioned picture, written as a file that diffusers reads.
func ExampleRun() {
	root, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(root)
	if err := adapt(root); err != nil {
		fmt.Println(err)
	}
	// Output:
	// step 1 at learning rate 0.0001
	// step 2 at learning rate 0.0001
	// the file holds 32 layers of rank 4
}

func adapt(root string) error {
	if err := data.SavePNG(filepath.Join(root, "wall.png"), data.NewRGB(32, 32)); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "wall.txt"), []byte("a dark wall"), 0o644); err != nil {
		return err
	}
	folder, err := data.ReadFolder(root)
	if err != nil {
		return err
	}
	e, err := engine.Open("go")
	if err != nil {
		return err
	}
	defer e.Close()
	m, err := sd.Load(e, "../testdata/golden/tiny-sd")
	if err != nil {
		return err
	}
	defer m.Free()
	cache, err := data.OpenCache("", 1<<20, nil)
	if err != nil {
		return err
	}

	config := finetune.Defaults(finetune.LoRA)
	config.Steps = 2
	pictures := finetune.Data{Pictures: data.Mixture{{Folder: folder, Weight: 1}}, Cache: cache}
	result, err := finetune.Run(context.Background(), m, m.UNetParams, config, pictures, finetune.Hooks{
		OnEvent: func(e train.Event) { fmt.Println("step", e.Step, "at learning rate", e.Fields["learning_rate"]) },
	})
	if err != nil {
		return err
	}
	defer result.Free()
	lora, err := result.Adapter.LoRA(result.Factors)
	if err != nil {
		return err
	}
	path := filepath.Join(root, "lora.safetensors")
	if err := weights.WriteLoRA(path, lora, weights.F32, nil); err != nil {
		return err
	}
	back, err := weights.ReadLoRA(path)
	if err != nil {
		return err
	}
	fmt.Println("the file holds", len(back.Layers), "layers of rank", back.Layers[0].Rank)
	return nil
}

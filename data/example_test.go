package data_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/data"
)

func Example() {
	dir, err := os.MkdirTemp("", "pictures")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"cat", "dog"} {
		if err := data.SavePNG(filepath.Join(dir, name+".png"), data.NewRGB(96, 64)); err != nil {
			panic(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".txt"), []byte("a photo of a "+name), 0o644); err != nil {
			panic(err)
		}
	}

	folder, err := data.ReadFolder(dir)
	if err != nil {
		panic(err)
	}
	batches, err := data.NewBatches(42, "fine-tuning", 2, true, data.Source{Size: folder.Len(), Weight: 1})
	if err != nil {
		panic(err)
	}
	seen := map[string]bool{}
	for _, draw := range batches.At(0) {
		picture, err := folder.Decode(draw.Index)
		if err != nil {
			panic(err)
		}
		pixels, err := data.Preprocess{Resolution: 32}.Apply(picture, draw.Flip)
		if err != nil {
			panic(err)
		}
		seen[folder.Pictures[draw.Index].Caption] = len(pixels) == 3*32*32
	}
	fmt.Println(seen)
	// Output: map[a photo of a cat:true a photo of a dog:true]
}

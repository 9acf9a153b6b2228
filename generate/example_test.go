package generate_test

import (
	"bytes"
	"context"
	"fmt"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/sd"
)

// Any part of a list of pictures can be made anywhere: the third one is the same with the others and without.
func ExampleGenerator_Pictures() {
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
	net := denoise.NewNetwork(m)
	defer net.Free()

	options := generate.Defaults()
	options.Steps, options.Batch = 5, 2
	ctx := context.Background()
	g, err := generate.New(ctx, net, denoise.Point(m.UNetParams.Tensors), options, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	var requests []generate.Request
	for i, prompt := range []string{"a red circle", "a blue ball", "two green squares"} {
		requests = append(requests, generate.Request{Prompt: prompt, Seed: generate.Seed{Run: 42, Prompt: i}})
	}
	all, err := g.Pictures(ctx, requests)
	if err != nil {
		fmt.Println(err)
		return
	}
	third, err := g.Picture(ctx, requests[2].Prompt, requests[2].Seed)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(all), "pictures of", third.Image.Width, "by", third.Image.Height, "pixels")
	fmt.Println("the third one again:", bytes.Equal(third.Image.Pix, all[2].Image.Pix))
	// Output:
	// 3 pictures of 32 by 32 pixels
	// the third one again: true
}

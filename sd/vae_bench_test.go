package sd

import (
	"fmt"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
)

// BenchmarkDecode decodes a picture with the VAE of Stable Diffusion 1.4 and random weights. For memory, run one of them
// in a process.
func BenchmarkDecode(b *testing.B) {
	for _, side := range []int{256, 512, 1024} {
		for _, tile := range []int{0, 256, 512} {
			b.Run(fmt.Sprintf("side=%d/tile=%d", side, tile), func(b *testing.B) {
				preset, err := FindPreset("sd14")
				if err != nil {
					b.Fatal(err)
				}
				vae := NewVAE(preset.VAE)
				m := &Model{
					Engine: openEngine(b), VAE: vae, VAEParams: RandomParams(vae.Specs(), 0),
					functions: map[string]*engine.Function{},
				}
				defer m.Free()
				h := side / preset.VAE.Downscale()
				latents := random.New(0, "decode").Normals(preset.VAE.LatentChannels * h * h)
				for b.Loop() {
					if _, err := m.DecodeSparing(b.Context(), latents, 1, h, h, VAEMemory{Tile: tile}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

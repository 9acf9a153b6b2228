package bench

import (
	"slices"
	"testing"
)

// The counts are those of PyTorch's FlopCounterMode for the same UNets in diffusers: scripts/check_presets.py.
func TestForwardFLOPs(t *testing.T) {
	for name, want := range map[string]float64{
		"small": 4_145_070_080, "sd14": 803_273_441_280, "sd21": 2_149_105_745_920, "sdxl": 6_761_236_398_080,
	} {
		p := presets()[slices.Index(Presets(), name)]
		if got := forwardFLOPs(p.unet, p.side); got != want {
			t.Errorf("%s takes %.0f operations, not %.0f: a share of %v", name, got, want, got/want)
		}
	}
}

package denoise

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/svd"
)

// spectralPart are shifted singular values in a network.
type spectralPart struct {
	spectrum      *sd.Spectrum
	shifts, fixed int // their first parameters in the network's list
}

// NewSpectralNetwork is a model's UNet whose singular values can be shifted (SVDiff, Han et al. 2023). Its groups of
// parameters are the UNet, the shifts, and what [Decompose] returns.
func NewSpectralNetwork(m *sd.Model, s *sd.Spectrum) *Network {
	n := NewNetwork(m)
	n.spectral = &spectralPart{spectrum: s, shifts: len(n.specs)}
	for _, group := range [][]nn.Spec{s.Specs(), s.FixedSpecs()} {
		n.spectral.fixed = len(n.specs)
		n.specs = append(n.specs, group...)
		n.starts = append(n.starts, len(n.specs))
	}
	n.architecture += "spectrum\n"
	return n
}

func (s *spectralPart) apply(w *nn.Weights, p []*ad.Value) *nn.Weights {
	return s.spectrum.Apply(w, p[:s.shifts], p[s.shifts:s.fixed], p[s.fixed:])
}

// Decompose returns the singular vectors and values of a UNet's weights, in the order of s.FixedSpecs; the caller frees
// them. They are kept in the folder of the cache, if it has one. progress, which may be nil, is told after each matrix.
func Decompose(ctx context.Context, m *sd.Model, unet *sd.Params, s *sd.Spectrum, cache *data.Cache, progress func(done, total int)) (fixed []*engine.Tensor, err error) {
	defer func() {
		if err != nil {
			engine.Free(fixed...)
		}
	}()
	decomposer, err := svd.New(m.Engine)
	if err != nil {
		return nil, err
	}
	defer decomposer.Free()
	for i, matrix := range s.Matrices {
		if ctx.Err() != nil {
			return fixed, context.Cause(ctx)
		}
		weight, err := engine.Values(unet.Tensors[matrix.Index])
		if err != nil {
			return fixed, err
		}
		rows, columns := matrix.Size()
		key := data.NewKey("singular value decomposition", hashNumbers(weight), "", fmt.Sprintf("%d×%d", rows, columns))
		parts, err := cache.GetOrComputeOnce(key, []int{matrix.Rank, rows + columns + 1}, func() ([]float32, error) {
			return matrix.Decompose(decomposer, weight)
		})
		if err != nil {
			return fixed, err
		}
		fixed = append(fixed, matrix.Fixed(parts)...)
		if progress != nil {
			progress(i+1, len(s.Matrices))
		}
	}
	return fixed, nil
}

func hashNumbers(values []float32) string {
	b := make([]byte, 0, 4*len(values))
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

package diagnose

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/resalign/resalign/denoise"
)

// lossesAlong measures the losses of draw i at all places of the line: harmful, benign and, if there are any, retained
// pictures, place by place.
func (s *subject) lossesAlong(ctx context.Context, places []float64, i int) (out []float64, err error) {
	sets := []*denoise.Sampler{s.harmful, s.benign}
	signs := []float64{-1, 1}
	if s.retain != nil {
		sets, signs = append(sets, s.retain), append(signs, 1)
	}
	batches := make([]*denoise.Batch, len(sets))
	defer func() {
		for _, b := range batches {
			if b != nil {
				b.Free()
			}
		}
	}()
	for k, set := range sets {
		if batches[k], err = set.Batch(ctx, i); err != nil {
			return nil, err
		}
	}
	out = make([]float64, len(sets)*len(places))
	for j, at := range places {
		unet, err := s.space.Mix(1-at, s.unet, at, s.tuned)
		if err != nil {
			return nil, err
		}
		for k, b := range batches {
			value, err := s.value(ctx, unet, b)
			if err != nil {
				unet.Free()
				return nil, err
			}
			out[k*len(places)+j] = signs[k] * value
		}
		unet.Free()
	}
	return out, nil
}

func (s *subject) value(ctx context.Context, unet denoise.Vector, b *denoise.Batch) (float64, error) {
	p, err := s.point(unet)
	if err != nil {
		return 0, err
	}
	value, err := s.net.Value(ctx, p, denoise.Loss{}, b)
	if err != nil {
		return 0, err
	}
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return 0, fmt.Errorf("a loss on the line to the fine-tuned model is %v; end the line earlier (to) or lower the learning rate", value)
	}
	return value, nil
}

// newLine averages the rows of lossesAlong.
func newLine(places []float64, rows [][]float64, length, norm float64) Line {
	n, start := len(places), slices.Index(places, 0)
	loss := func(k int) (values, changes []Estimate) {
		before := column(rows, k*n+start)
		for j := range places {
			at := column(rows, k*n+j)
			values, changes = append(values, estimate(at)), append(changes, paired(at, before))
		}
		return values, changes
	}
	l := Line{S: places, Length: length, Norm: norm}
	l.Harm, l.HarmChange = loss(0)
	l.FineTuning, l.FineTuningChange = loss(1)
	if len(rows[0]) > 2*n {
		l.Retain, l.RetainChange = loss(2)
	}
	l.AlongHarm, l.AlongFineTuning = along(places, rows, 0), along(places, rows, n)
	return l
}

func column(rows [][]float64, j int) []float64 {
	out := make([]float64, len(rows))
	for i, row := range rows {
		out[i] = row[j]
	}
	return out
}

// along takes the change and the derivatives of the loss whose places begin at offset, draw by draw. The derivatives at 0
// are those of the parabola through 0 and the places beside it.
func along(places []float64, rows [][]float64, offset int) Along {
	start, end := slices.Index(places, 0), slices.Index(places, 1)
	left, right := -places[start-1], places[start+1]
	var change, slope, curvature []float64
	for _, row := range rows {
		at := func(i int) float64 { return row[offset+i] }
		change = append(change, at(end)-at(start))
		ahead, behind := (at(start+1)-at(start))/right, (at(start)-at(start-1))/left
		slope = append(slope, (ahead*left+behind*right)/(left+right))
		curvature = append(curvature, 2*(ahead-behind)/(left+right))
	}
	return Along{Change: estimate(change), Slope: estimate(slope), Curvature: estimate(curvature)}
}

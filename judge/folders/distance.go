package folders

import (
	"context"
	"fmt"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/score/clip"
)

// Reference is what pictures are compared with: the features of others, or for fid their statistics.
type Reference struct {
	Features   [][]float32
	Statistics *score.Statistics
}

// betweenFunc is the distance of pictures, by their features, from a reference; sd is nil where it has no spread.
type betweenFunc func(ctx context.Context, e *engine.Engine, own [][]float32, reference Reference) (value float64, sd *float64, err error)

type distanceKind struct {
	between betweenFunc
	moments bool // statistics suffice for the reference
}

// distanceOf is how a kind of metric compares features.
func distanceOf(kind string) (d distanceKind, ok bool) {
	switch kind {
	case "fid":
		return distanceKind{frechet, true}, true
	case "kid":
		return distanceKind{kernel, false}, true
	case "cmmd":
		return distanceKind{discrepancy, false}, true
	}
	return d, false
}

// IsDistance tells whether a kind of metric is a distance from reference pictures, and whether statistics of these suffice.
func IsDistance(kind string) (is, statisticsSuffice bool) {
	d, ok := distanceOf(kind)
	return ok, d.moments
}

// Between is the distance of a kind, fid, kid or cmmd, between features that its network made before: it needs no weights.
func Between(ctx context.Context, e *engine.Engine, kind string, own [][]float32, reference Reference) (value float64, sd *float64, err error) {
	d, ok := distanceOf(kind)
	if !ok {
		return 0, nil, fmt.Errorf("%s is no distance", kind)
	}
	if d.moments && reference.Statistics == nil {
		statistics, err := score.Moments(reference.Features)
		if err != nil {
			return 0, nil, err
		}
		reference.Statistics = &statistics
	}
	return d.between(ctx, e, own, reference)
}

func frechet(_ context.Context, _ *engine.Engine, own [][]float32, reference Reference) (float64, *float64, error) {
	statistics, err := score.Moments(own)
	if err != nil {
		return 0, nil, err
	}
	value, err := score.Frechet(statistics, *reference.Statistics)
	return value, nil, err
}

func kernel(ctx context.Context, e *engine.Engine, own [][]float32, reference Reference) (float64, *float64, error) {
	spread, err := score.KID(ctx, e, own, reference.Features, score.DefaultSubsets())
	return spread.Mean, &spread.SD, err
}

func discrepancy(ctx context.Context, e *engine.Engine, own [][]float32, reference Reference) (float64, *float64, error) {
	value, err := clip.CMMD(ctx, e, own, reference.Features)
	return value, nil, err
}

// Mean is the mean of pictures' values, with the 95 % interval of a bootstrap over groups, which share a prompt.
func Mean(values []float64, groups []string, seed uint64) (mean float64, interval score.Interval, err error) {
	return score.BootstrapMean(grouped(values, groups), score.Resamples, seed)
}

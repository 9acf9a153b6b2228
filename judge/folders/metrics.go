package folders

import (
	"context"
	"fmt"
	"slices"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/judge/spec"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/score/clip"
	"github.com/resalign/resalign/vision"
)

// Metric is a number for a folder: the mean of a number for each picture, or a distance from reference pictures. It must be
// closed.
type Metric struct {
	Kind string // such as "fid"
	Name string // with the weights, for the record

	// A mean has value. It needs the pictures' prompts, or pictures of the same names in another folder, or neither.
	value   func(ctx context.Context, batch []sample) ([]float64, error)
	prompts bool
	pairs   bool

	// A distance has the rest.
	extractor string // names the network that features come from: metrics with the same one share them
	width     int
	features  func(ctx context.Context, pictures []*data.RGB) ([][]float32, error)
	distance  func(ctx context.Context, e *engine.Engine, own, reference set) (value float64, sd *float64, err error)
	moments   bool // statistics suffice for the reference

	close func()
}

// set are the features of a set of pictures, or the statistics of such.
type set struct {
	features   [][]float32
	statistics *score.Statistics
}

// Close releases the metric's memory.
func (m *Metric) Close() { m.close() }

// NeedsReference tells whether the metric is a distance from reference pictures.
func (m *Metric) NeedsReference() bool { return m.distance != nil }

// NeedsPairs tells whether the metric compares each picture with one of the same name.
func (m *Metric) NeedsPairs() bool { return m.pairs }

type metricKind struct {
	spec.Kind
	open func(e *engine.Engine, files []string) (*Metric, error)
}

func metricKinds() []metricKind {
	return []metricKind{
		{spec.Kind{Name: "fid", Usage: "fid:WEIGHTS", What: "Fréchet inception distance; WEIGHTS is pytorch-fid's pt_inception file", AtLeast: 1, AtMost: 1}, openFID},
		{spec.Kind{Name: "kid", Usage: "kid:WEIGHTS", What: "kernel inception distance, the mean of 100 subsets of 1000; the same weights", AtLeast: 1, AtMost: 1}, openKID},
		{spec.Kind{Name: "cmmd", Usage: "cmmd:CLIP", What: "CLIP maximum mean discrepancy; CLIP is ViT-L/14@336px", AtLeast: 1, AtMost: 1}, openCMMD},
		{spec.Kind{Name: "clip-score", Usage: "clip-score:CLIP", What: "100 × the cosine of picture and prompt; CLIP is ViT-B/32 or ViT-L/14", AtLeast: 1, AtMost: 1}, openCLIPScore},
		{spec.Kind{Name: "aesthetics", Usage: "aesthetics:CLIP,HEAD", What: "LAION's aesthetics predictor, v1 or v2, on CLIP ViT-L/14", AtLeast: 2, AtMost: 2}, openAesthetics},
		{spec.Kind{Name: "lpips", Usage: "lpips:BACKBONE,LINEAR", What: "perceptual distance from the pictures of --against; torchvision's AlexNet or VGG-16, and lpips' alex.pth or vgg.pth", AtLeast: 1, AtMost: 2}, openLPIPS},
	}
}

// MetricKinds lists the kinds: how each is written, and what it is.
func MetricKinds() []spec.Kind {
	var out []spec.Kind
	for _, k := range metricKinds() {
		out = append(out, k.Kind)
	}
	return out
}

// CheckMetric returns the kind of metric that text names, without opening its files. Its error is a [*spec.Error].
func CheckMetric(text string) (kind string, err error) {
	kind, _, err = spec.Split("metric", text, MetricKinds())
	return kind, err
}

// OpenMetric opens the metric that text names, KIND:FILE,FILE; see [MetricKinds].
func OpenMetric(e *engine.Engine, text string) (*Metric, error) {
	name, files, err := spec.Split("metric", text, MetricKinds())
	if err != nil {
		return nil, err
	}
	all := metricKinds()
	m, err := all[slices.IndexFunc(all, func(k metricKind) bool { return k.Name == name })].open(e, files)
	if err != nil {
		return nil, fmt.Errorf("metric %s: %w", name, err)
	}
	m.Kind = name
	return m, nil
}

// openInception opens what FID and KID share.
func openInception(e *engine.Engine, path string) (*Metric, error) {
	net, err := vision.OpenInception(e, path)
	if err != nil {
		return nil, err
	}
	hash, err := hashFile(path)
	if err != nil {
		net.Free()
		return nil, err
	}
	name := "Inception v3 " + hash
	return &Metric{Name: name, extractor: name, width: vision.InceptionFeatures, features: net.Features, close: net.Free}, nil
}

func openFID(e *engine.Engine, files []string) (*Metric, error) {
	m, err := openInception(e, files[0])
	if err != nil {
		return nil, err
	}
	m.moments = true
	m.distance = func(_ context.Context, _ *engine.Engine, own, reference set) (float64, *float64, error) {
		statistics, err := score.Moments(own.features)
		if err != nil {
			return 0, nil, err
		}
		value, err := score.Frechet(statistics, *reference.statistics)
		return value, nil, err
	}
	return m, nil
}

func openKID(e *engine.Engine, files []string) (*Metric, error) {
	m, err := openInception(e, files[0])
	if err != nil {
		return nil, err
	}
	m.distance = func(ctx context.Context, e *engine.Engine, own, reference set) (float64, *float64, error) {
		spread, err := score.KID(ctx, e, own.features, reference.features, score.DefaultSubsets())
		return spread.Mean, &spread.SD, err
	}
	return m, nil
}

func openCMMD(e *engine.Engine, files []string) (*Metric, error) {
	model, err := clip.OpenVision(e, files[0])
	if err != nil {
		return nil, err
	}
	return &Metric{
		Name: model.Name(), extractor: model.Name() + ", " + clip.CropFirst.String(), width: model.Width(),
		features: func(ctx context.Context, pictures []*data.RGB) ([][]float32, error) {
			return model.Embed(ctx, pictures, clip.CropFirst)
		},
		distance: func(ctx context.Context, e *engine.Engine, own, reference set) (float64, *float64, error) {
			value, err := clip.CMMD(ctx, e, own.features, reference.features)
			return value, nil, err
		},
		close: model.Close,
	}, nil
}

func openCLIPScore(e *engine.Engine, files []string) (*Metric, error) {
	s, err := clip.OpenScore(e, files[0])
	if err != nil {
		return nil, err
	}
	return &Metric{
		Name: s.Name(), prompts: true, close: s.Close,
		value: func(ctx context.Context, batch []sample) ([]float64, error) {
			prompts := make([]string, len(batch))
			for i, b := range batch {
				prompts[i] = b.Prompt
			}
			return s.Similarity(ctx, pixels(batch), prompts)
		},
	}, nil
}

func openAesthetics(e *engine.Engine, files []string) (*Metric, error) {
	a, err := clip.OpenAesthetics(e, files[0], files[1])
	if err != nil {
		return nil, err
	}
	return &Metric{
		Name: a.Name(), close: a.Close,
		value: func(ctx context.Context, batch []sample) ([]float64, error) { return a.Rate(ctx, pixels(batch)) },
	}, nil
}

func openLPIPS(e *engine.Engine, files []string) (*Metric, error) {
	linear := ""
	if len(files) == 2 {
		linear = files[1]
	}
	l, err := vision.OpenLPIPS(e, files[0], linear)
	if err != nil {
		return nil, err
	}
	name := "LPIPS " + l.Backbone()
	for _, path := range files {
		hash, err := hashFile(path)
		if err != nil {
			l.Free()
			return nil, err
		}
		name += " " + hash
	}
	return &Metric{
		Name: name, pairs: true, close: l.Free,
		value: func(ctx context.Context, batch []sample) ([]float64, error) {
			others := make([]*data.RGB, len(batch))
			for i, b := range batch {
				others[i] = b.otherPixels
				if o := b.otherPixels; o.Width != b.pixels.Width || o.Height != b.pixels.Height {
					return nil, fmt.Errorf("%s is %d×%d, but %s is %d×%d; LPIPS compares pictures of one size",
						b.Path(), b.pixels.Width, b.pixels.Height, b.other.Path(), o.Width, o.Height)
				}
			}
			return l.Distances(ctx, pixels(batch), others)
		},
	}, nil
}

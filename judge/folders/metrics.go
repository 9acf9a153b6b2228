package folders

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/judge/spec"
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
	distance  betweenFunc
	moments   bool // statistics suffice for the reference

	close func()
}

// Close releases the metric's memory.
func (m *Metric) Close() { m.close() }

// NeedsReference tells whether the metric is a distance from reference pictures.
func (m *Metric) NeedsReference() bool { return m.distance != nil }

// NeedsPairs tells whether the metric compares each picture with one of the same name.
func (m *Metric) NeedsPairs() bool { return m.pairs }

// NeedsPrompts tells whether the metric is of pictures with their prompts.
func (m *Metric) NeedsPrompts() bool { return m.prompts }

// Network names what a distance takes its features from, and tells how many there are of a picture.
func (m *Metric) Network() (name string, width int) { return m.extractor, m.width }

// Values are the numbers that a mean is of, one for each picture. The prompts are those of the pictures, or nil for
// metrics that do not need them.
func (m *Metric) Values(ctx context.Context, pictures []*data.RGB, prompts []string) ([]float64, error) {
	batch := make([]sample, len(pictures))
	for i, p := range pictures {
		batch[i].pixels = p
		if prompts != nil {
			batch[i].Prompt = prompts[i]
		}
	}
	return m.values(ctx, batch)
}

func (m *Metric) values(ctx context.Context, batch []sample) ([]float64, error) {
	values, err := m.value(ctx, batch)
	if err != nil {
		return nil, err
	}
	if len(values) != len(batch) {
		return nil, fmt.Errorf("%s answers %d times for %d pictures", m.Kind, len(values), len(batch))
	}
	for _, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%s gives a value that is not a number; its weights are damaged", m.Kind)
		}
	}
	return values, nil
}

// Features are what a distance is taken of, Network's width of numbers for each picture.
func (m *Metric) Features(ctx context.Context, pictures []*data.RGB) ([][]float32, error) {
	return m.features(ctx, pictures)
}

type metricKind struct {
	spec.Kind
	open func(e *engine.Engine, files []string) (*Metric, error)
}

func metricKinds() []metricKind {
	return []metricKind{
		{spec.Kind{Name: "fid", Usage: "fid:WEIGHTS", What: "Fréchet inception distance; WEIGHTS is pytorch-fid's pt_inception file", AtLeast: 1, AtMost: 1}, openInception("fid")},
		{spec.Kind{Name: "kid", Usage: "kid:WEIGHTS", What: "kernel inception distance, the mean of 100 subsets of 1000; the same weights", AtLeast: 1, AtMost: 1}, openInception("kid")},
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

// NewDistance is a metric of the given kind, fid, kid or cmmd, of features that the caller computes: width numbers for each
// picture. extractor names what computes them, and free releases it.
func NewDistance(kind, name, extractor string, width int, features func(context.Context, []*data.RGB) ([][]float32, error), free func()) *Metric {
	d, _ := distanceOf(kind)
	return &Metric{Kind: kind, Name: name, extractor: extractor, width: width, features: features, distance: d.between, moments: d.moments, close: free}
}

// openInception opens what FID and KID share.
func openInception(kind string) func(e *engine.Engine, files []string) (*Metric, error) {
	return func(e *engine.Engine, files []string) (*Metric, error) {
		net, err := vision.OpenInception(e, files[0])
		if err != nil {
			return nil, err
		}
		hash, err := hashFile(files[0])
		if err != nil {
			net.Free()
			return nil, err
		}
		name := "Inception v3 " + hash
		return NewDistance(kind, name, name, vision.InceptionFeatures, net.Features, net.Free), nil
	}
}

func openCMMD(e *engine.Engine, files []string) (*Metric, error) {
	model, err := clip.OpenVision(e, files[0])
	if err != nil {
		return nil, err
	}
	return NewDistance("cmmd", model.Name(), model.Name()+", "+clip.CropFirst.String(), model.Width(), func(ctx context.Context, pictures []*data.RGB) ([][]float32, error) {
		return model.Embed(ctx, pictures, clip.CropFirst)
	}, model.Close), nil
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

package denoise

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// Dataset turns captioned pictures into samples: moments of latents and text embeddings, each computed once and cached.
// It may be used concurrently.
type Dataset struct {
	Name       string
	model      *sd.Model
	mixture    data.Mixture
	preprocess data.Preprocess
	cache      *data.Cache
	options    DatasetOptions
	warn       func(string)

	mu       sync.Mutex
	warned   map[string]bool
	contents map[[2]int]string // hash of each picture's file, by folder and index

	sizes [][]data.Size // of each folder's pictures, once prepared; nil: all are squares
}

// DatasetOptions say how pictures become samples.
type DatasetOptions struct {
	Flip bool // mirror half of the pictures, by a seeded draw
	// CaptionDropout is the share of samples whose prompt is replaced by the empty one, which keeps the unconditional
	// prediction that guidance needs.
	CaptionDropout float64
	// SNRGamma, if above 0, weighs each sample by [MinSNR] at its timestep.
	SNRGamma float64
	// NoiseOffset, if above 0, times one normal number for each sample and channel is added to the noise, so that the mean
	// of a picture is noised as well (diffusers' training scripts).
	NoiseOffset float64
	// Buckets, if not nil, bring pictures to sizes of their own aspect ratios; a batch has one size. Otherwise all become
	// squares.
	Buckets *data.Buckets
	// Mosaic, if above 0, coarsens the pictures before they are encoded: every square of so many pixels a side becomes its
	// mean.
	Mosaic int
	// VAETile, if above 0, encodes larger pictures by overlapping tiles of that many pixels a side, one in memory at a time;
	// latents then differ a little. See sd.VAEMemory.
	VAETile int
	// Tokenizer, if not nil, makes samples hold token ids in place of embeddings, for a network with text encoders.
	Tokenizer Tokenizer
}

// NewDataset joins a mixture of folders with the model that encodes them. warn receives a sentence for each prompt that
// is too long.
func NewDataset(name string, m *sd.Model, mixture data.Mixture, p data.Preprocess, cache *data.Cache, o DatasetOptions, warn func(string)) (*Dataset, error) {
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("data %s: %w", name, err)
	}
	if o.VAETile > 0 {
		if _, err := m.TileSize(o.VAETile); err != nil {
			return nil, fmt.Errorf("data %s: vae_tile_size: %w", name, err)
		}
	}
	if _, _, err := m.LatentSize(p.Resolution, p.Resolution); err != nil {
		return nil, fmt.Errorf("data %s: %w", name, err)
	}
	if o.CaptionDropout < 0 || o.CaptionDropout > 1 {
		return nil, fmt.Errorf("data %s: caption_dropout = %v must lie between 0 and 1", name, o.CaptionDropout)
	}
	if !finiteNotNegative(o.SNRGamma) {
		return nil, fmt.Errorf("data %s: snr_gamma = %v must be a finite number, not below 0", name, o.SNRGamma)
	}
	if !finiteNotNegative(o.NoiseOffset) {
		return nil, fmt.Errorf("data %s: noise_offset = %v must be a finite number, not below 0", name, o.NoiseOffset)
	}
	if o.Mosaic < 0 || o.Mosaic > p.Resolution {
		return nil, fmt.Errorf("data %s: mosaic = %d must lie between 0 and the resolution, %d", name, o.Mosaic, p.Resolution)
	}
	if o.Buckets != nil {
		if err := o.Buckets.Validate(); err != nil {
			return nil, fmt.Errorf("data %s: %w", name, err)
		}
	}
	if warn == nil {
		warn = func(string) {}
	}
	return &Dataset{Name: name, model: m, mixture: mixture, preprocess: p, cache: cache, options: o, warn: warn, warned: map[string]bool{}, contents: map[[2]int]string{}}, nil
}

// Size is the number of pictures.
func (d *Dataset) Size() int {
	n := 0
	for _, part := range d.mixture {
		if part.Folder != nil {
			n += part.Folder.Len()
		}
	}
	return n
}

// Prepare encodes every picture and prompt, so that a bad picture is found before training and no step waits for the
// autoencoder. progress, if not nil, is told after each picture. When finish is closed it ends between two pictures with
// train.ErrInterrupted: no run has begun that could be saved.
func (d *Dataset) Prepare(ctx context.Context, finish <-chan struct{}, progress func(done, total int)) error {
	if err := d.sortIntoBuckets(); err != nil {
		return err
	}
	done, total := 0, d.Size()
	for i, part := range d.mixture {
		if part.Folder == nil {
			continue
		}
		for k := range part.Folder.Len() {
			if closed(finish) {
				return train.ErrInterrupted
			}
			if err := d.setPrompt(ctx, &Sample{}, part.Folder.Pictures[k].Caption); err != nil {
				return err
			}
			flips := []bool{false}
			if d.options.Flip {
				flips = append(flips, true)
			}
			for _, flip := range flips {
				if _, err := d.moments(ctx, data.Draw{Source: i, Index: k, Flip: flip}); err != nil {
					return err
				}
			}
			done++
			if progress != nil {
				progress(done, total)
			}
		}
	}
	if closed(finish) {
		return train.ErrInterrupted
	}
	if d.options.CaptionDropout > 0 {
		return d.setPrompt(ctx, &Sample{}, "")
	}
	return nil
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Sampler draws batches from a dataset.
type Sampler struct {
	set     *Dataset
	at      func(step int) ([]data.Draw, data.Size)
	counts  []data.BucketCount
	seed    uint64
	purpose string
	size    int
}

// Sampler returns the batches of the given size that belong to a seed and a purpose; each is a pure function of these and
// the step.
func (d *Dataset) Sampler(seed uint64, purpose string, size int) (*Sampler, error) {
	s := &Sampler{set: d, seed: seed, purpose: purpose, size: size}
	if d.options.Buckets != nil {
		if err := d.sortIntoBuckets(); err != nil {
			return nil, err
		}
		b, err := data.NewBucketBatches(seed, purpose, size, d.options.Flip, d.mixture.Sources(), d.sizes)
		if err != nil {
			return nil, fmt.Errorf("data %s: %w", d.Name, err)
		}
		s.at, s.counts = b.At, b.Counts()
		return s, nil
	}
	b, err := data.NewBatches(seed, purpose, size, d.options.Flip, d.mixture.Sources()...)
	if err != nil {
		return nil, fmt.Errorf("data %s: %w", d.Name, err)
	}
	square := d.square()
	s.at = func(step int) ([]data.Draw, data.Size) { return b.At(step), square }
	return s, nil
}

// Buckets lists the sizes of the sampler's batches and how many pictures have each; nil where all are squares.
func (s *Sampler) Buckets() []data.BucketCount { return s.counts }

// Samples are the samples of a step, with equal weights that add up to weight, before those of the timesteps.
func (s *Sampler) Samples(ctx context.Context, step int, weight float64) ([]Sample, error) {
	d := s.set
	out := make([]Sample, 0, s.size)
	draws, size := s.at(step)
	for place, draw := range draws {
		moments, err := d.moments(ctx, draw)
		if err != nil {
			return nil, err
		}
		stream := random.New(s.seed, s.purpose, "sample", step*s.size+place)
		caption := d.mixture.Folder(draw).Pictures[draw.Index].Caption
		if stream.Float64() < d.options.CaptionDropout {
			caption = ""
		}
		sample := Draw(d.model, d.model.Schedule, moments, nil, weight/float64(s.size), stream)
		if err := d.setPrompt(ctx, &sample, caption); err != nil {
			return nil, err
		}
		if d.options.NoiseOffset > 0 {
			offsetNoise(sample.Noise, d.model.UNet.Config.InChannels, d.options.NoiseOffset, random.New(s.seed, s.purpose, "noise offset", step*s.size+place))
		}
		if d.options.SNRGamma > 0 {
			signal, noise, err := d.model.Schedule.Coefficients(sample.Timestep)
			if err != nil {
				return nil, err
			}
			sample.Weight *= MinSNR(d.model.Scheduler.PredictionType, signal, noise, d.options.SNRGamma)
		}
		height, width := float32(size.Height), float32(size.Width)
		sample.TimeIDs = [6]float32{height, width, 0, 0, height, width}
		out = append(out, sample)
	}
	return out, nil
}

// Batch is the batch of a step, on the device; the caller frees it.
func (s *Sampler) Batch(ctx context.Context, step int) (*Batch, error) {
	samples, err := s.Samples(ctx, step, 1)
	if err != nil {
		return nil, err
	}
	_, size := s.at(step)
	return s.set.newBatch(samples, size)
}

// newBatch puts samples of pictures of one size on the device.
func (d *Dataset) newBatch(samples []Sample, size data.Size) (*Batch, error) {
	h, w, err := d.model.LatentSize(size.Height, size.Width)
	if err != nil {
		return nil, err
	}
	return NewBatch(d.model, samples, h, w)
}

// JoinedBatch is one batch of the same step of two samplers, whose losses are added with the given weights: DreamBooth's
// instance and prior pictures.
func JoinedBatch(ctx context.Context, a, b *Sampler, step int, weightA, weightB float64) (*Batch, error) {
	if a.set.preprocess.Resolution != b.set.preprocess.Resolution {
		return nil, fmt.Errorf("data %s and %s have different resolutions", a.set.Name, b.set.Name)
	}
	if a.counts != nil || b.counts != nil {
		return nil, fmt.Errorf("data %s and %s: pictures of different sizes do not fit into one batch; leave buckets out", a.set.Name, b.set.Name)
	}
	first, err := a.Samples(ctx, step, weightA)
	if err != nil {
		return nil, err
	}
	second, err := b.Samples(ctx, step, weightB)
	if err != nil {
		return nil, err
	}
	return a.set.newBatch(append(first, second...), a.set.square())
}

func (d *Dataset) moments(ctx context.Context, draw data.Draw) (sd.Moments, error) {
	folder := d.mixture.Folder(draw)
	content, err := d.contentHash(draw)
	if err != nil {
		return sd.Moments{}, err
	}
	vae, err := d.model.ComponentHash("vae")
	if err != nil {
		return sd.Moments{}, err
	}
	size, prepared := d.square(), d.preprocess.String()
	if d.sizes != nil {
		size = d.sizes[draw.Source][draw.Index]
		prepared = fmt.Sprintf("cover %v %s, centre crop", size, d.preprocess.Filter)
	}
	h, w, err := d.model.LatentSize(size.Height, size.Width)
	if err != nil {
		return sd.Moments{}, err
	}
	channels := d.model.VAE.Config.LatentChannels
	prepared += fmt.Sprintf(", flip %v", draw.Flip)
	if d.options.Mosaic > 0 {
		prepared += fmt.Sprintf(", mosaic %d", d.options.Mosaic)
	}
	tile := max(size.Height, size.Width) // whole
	if d.options.VAETile > 0 && d.options.VAETile < tile {
		tile = d.options.VAETile
		prepared += fmt.Sprintf(", tiles %d", tile)
	}
	key := data.NewKey("vae moments", content, vae, prepared)
	both, err := d.cache.GetOrCompute(key, []int{2, channels, h, w}, func() ([]float32, error) {
		picture, err := folder.Decode(draw.Index)
		if err != nil {
			return nil, err
		}
		pixels, err := d.pixels(picture, size, draw.Flip)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", folder.Path(draw.Index), err)
		}
		if d.options.Mosaic > 0 {
			mosaic(pixels, size.Height, size.Width, d.options.Mosaic)
		}
		m, err := d.model.EncodePictureTiled(ctx, pixels, size.Height, size.Width, tile)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", folder.Path(draw.Index), err)
		}
		return append(m.Mean, m.LogVariance...), nil
	})
	if err != nil {
		return sd.Moments{}, err
	}
	n := len(both) / 2
	return sd.Moments{Mean: both[:n], LogVariance: both[n:]}, nil
}

// contentHash reads a picture's file once; a file that changes during a run is not looked at again.
func (d *Dataset) contentHash(draw data.Draw) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := [2]int{draw.Source, draw.Index}
	if h, ok := d.contents[at]; ok {
		return h, nil
	}
	sum, err := d.mixture.Folder(draw).ContentHash(draw.Index)
	if err != nil {
		return "", err
	}
	d.contents[at] = hex.EncodeToString(sum[:])
	return d.contents[at], nil
}

// setPrompt conditions a sample on a prompt.
func (d *Dataset) setPrompt(ctx context.Context, s *Sample, prompt string) (err error) {
	if d.options.Tokenizer != nil {
		var cut string
		s.IDs, cut = d.options.Tokenizer.Encode(prompt)
		d.warnCut(prompt, d.model.Towers[0].Tokenizer.Length(), cut)
		return nil
	}
	if s.Embedding, err = CachedEmbedding(ctx, d.model, d.cache, prompt); err == nil {
		d.warnCut(prompt, s.Embedding.Tokens, s.Embedding.Cut)
	}
	return err
}

func (d *Dataset) warnCut(prompt string, tokens int, cut string) {
	if cut == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.warned[prompt] {
		d.warned[prompt] = true
		d.warn(fmt.Sprintf("data %s: a prompt is longer than %d tokens; cut off: %q", d.Name, tokens, cut))
	}
}

// CachedEmbedding is sd.Model.EncodePrompt through a cache.
func CachedEmbedding(ctx context.Context, m *sd.Model, cache *data.Cache, prompt string) (*sd.Embedding, error) {
	var hashes []string
	out := &sd.Embedding{}
	pooled := 0
	for _, t := range m.Towers {
		for _, component := range []string{t.Name, strings.Replace(t.Name, "text_encoder", "tokenizer", 1)} {
			h, err := m.ComponentHash(component)
			if err != nil {
				return nil, err
			}
			hashes = append(hashes, h)
		}
		ids, cut := t.Tokenizer.Encode(prompt)
		out.Tokens = len(ids)
		out.Width += t.Encoder.Config.Width
		pooled = t.Encoder.Config.Projection
		if cut != "" {
			out.Cut = cut
		}
	}
	size := out.Tokens * out.Width
	key := data.NewKey("text embedding", prompt, strings.Join(hashes, "+"), "")
	both, err := cache.GetOrCompute(key, []int{size + pooled}, func() ([]float32, error) {
		e, err := m.EncodePrompt(ctx, prompt)
		if err != nil {
			return nil, err
		}
		return append(e.Context, e.Pooled...), nil
	})
	if err != nil {
		return nil, err
	}
	out.Context, out.Pooled = both[:size], both[size:]
	return out, nil
}

// Size is the number of pictures in a batch.
func (s *Sampler) Size() int { return s.size }

// Drawn is a picture in a batch.
type Drawn struct {
	Source int    // part of the mixture
	Path   string // file
}

// Drawn lists the pictures of a step, in the order of its samples.
func (s *Sampler) Drawn(step int) []Drawn {
	draws, _ := s.at(step)
	out := make([]Drawn, len(draws))
	for i, d := range draws {
		out[i] = Drawn{Source: d.Source, Path: s.set.mixture.Folder(d).Path(d.Index)}
	}
	return out
}

package plan

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// session is what runs of all kinds have: a model that was read, pictures that are encoded, previews, checkpoints, and a
// model that is written.
type session struct {
	*machine
	arch    *Architecture
	side    int       // of training pictures, in pixels
	tile    int       // of pictures when they are encoded; 0: whole
	model   *sd.Model // without its numbers
	teacher network   // the UNet as it was read
	frozen  []*tensor
	text    []*tensor // of all text encoders
	vae     []*tensor
	cached  int // bytes of encoded pictures and prompts
	notes   []string

	prepare, step, previews work
}

// newSession reads a model, which is set up to compute as the run does.
func newSession(m *machine, model *sd.Model, a *Architecture, resolution int) *session {
	s := &session{machine: m, arch: a, side: cmp.Or(resolution, a.resolution()), model: model}
	s.teacher = network{denoise.NewNetwork(model)}
	s.readVocabularies()
	s.text = s.load(a.textSpecs())
	s.vae = s.load(sd.NewVAE(a.VAE).Specs())
	s.frozen = s.load(s.teacher.Specs())
	return s
}

// load reads the parameters of a component.
func (s *session) load(specs []nn.Spec) []*tensor {
	var out []*tensor
	for i, shape := range shapesOf(specs) {
		if specs[i].Layout != 0 {
			s.memory.transient(shape.bytes())
		}
		out = append(out, s.memory.made(shape.bytes()))
	}
	s.note()
	return out
}

// A word of a tokenizer's vocabulary takes so many bytes, and while it is read more of them, in so many pieces; measured.
const (
	wordBytes   = 94
	wordGarbage = 360
	wordPieces  = 16
)

// readVocabularies reads the tokenizers of the text encoders.
func (s *session) readVocabularies() {
	for _, t := range s.arch.Text {
		for range wordPieces {
			s.memory.transient(wordGarbage * t.Vocabulary / wordPieces)
		}
		s.memory.keep(wordBytes * t.Vocabulary)
	}
}

// batch is the shape of a batch of training pictures.
func (s *session) batch(size int) (batch, error) {
	b, err := s.arch.latents(size, s.side, s.side)
	if err != nil {
		err = fmt.Errorf("resolution: %w", err)
	}
	return b, err
}

// gradientAt is a gradient at a point on a batch.
func (s *session) gradientAt(n network, by denoise.Selection, limit float64, b batch, point, in []*tensor) (vector, error) {
	p, err := s.gradient(n, by, limit, b)
	out, err := s.run(p, err, concat(point, in), nil)
	if err != nil {
		return vector{}, err
	}
	s.memory.free(out[0])
	return vector{n.shapes(by), out[1:]}, nil
}

// predictAt is a prediction on the conditions of a batch.
func (s *session) predictAt(n network, b batch, point, in []*tensor) (*tensor, error) {
	p, err := s.prediction(n, b)
	out, err := s.run(p, err, concat(point, in[:len(n.conditions(b))]), nil)
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// pictures are those that are encoded: how many as they are, and how many mirrored as well.
type pictures struct{ plain, mirrored int }

func (p pictures) runs() int { return p.plain + p.mirrored }

// encodedRuns bounds how many pictures and prompts are gone through; the memory of later ones is the same.
const encodedRuns = 4

// encode runs the encoders over pictures and so many prompts.
func (s *session) encode(p pictures, prompts int) error {
	if err := s.repeat(encodedRuns, float64(prompts), s.encodePrompt); err != nil {
		return err
	}
	piece, pieces := s.side, 1.0
	if s.tile > 0 && s.side > s.tile {
		tile, err := s.model.TileSize(s.tile)
		if err != nil {
			return err
		}
		piece, pieces = tile, tilesAcross(s.side, tile)*tilesAcross(s.side, tile)
	}
	encoder, err := s.vaeEncoder(s.arch, piece)
	if err != nil {
		return err
	}
	if err := s.repeat(encodedRuns, pieces*float64(p.runs()), func() error {
		picture := s.feed(input{dims: []int{s.arch.VAE.InChannels, piece, piece}})
		out, err := s.run(encoder, nil, concat(s.vae, picture), nil)
		s.memory.free(concat(out, picture)...)
		return err
	}); err != nil {
		return err
	}
	b, err := s.batch(1)
	if err != nil {
		return err
	}
	moments := 2 * 4 * s.arch.VAE.LatentChannels * b.height * b.width
	prompt := 4 * s.arch.tokens() * s.arch.UNet.ContextWidth
	if s.cached = min(cacheMemory, p.runs()*moments+p.plain*prompt); s.cached > 0 {
		s.memory.feed(s.cached)
	}
	return nil
}

// tilesAcross is how many tiles cover a length; they overlap by a quarter.
func tilesAcross(length, tile int) float64 {
	return math.Ceil(float64(length) / (0.75 * float64(tile)))
}

func (s *session) encodePrompt() error {
	at := 0
	for i := range s.arch.Text {
		e, err := s.textEncoder(s.arch, i)
		if err != nil {
			return err
		}
		n := len(e.inputs) - 2
		words := s.feed(input{dims: []int{s.arch.tokens()}}, input{dims: []int{1}})
		out, err := s.run(e, nil, concat(s.text[at:at+n], words), nil)
		if err != nil {
			return err
		}
		at += n
		s.memory.free(concat(out, words)...)
	}
	return nil
}

// cacheMemory is what packages unlearn and finetune let encoded pictures take.
const cacheMemory = 2 << 30

// countPictures counts the pictures of folders; one that cannot be read counts as none, and a note says so.
func (s *session) countPictures(name string, folders ...string) int {
	n := 0
	for _, dir := range folders {
		f, err := data.ReadPictures(dir)
		if err != nil {
			s.notes = append(s.notes, fmt.Sprintf("%s is counted without pictures: %v", name, err))
			continue
		}
		n += f.Len()
	}
	return n
}

// preview makes pictures, if the run wants any, with a network at a point. Each prompt is a batch of its own.
func (s *session) preview(p generate.Preview, steps int, n network, point []*tensor) error {
	if p.Every == 0 || len(p.Prompts) == 0 {
		return nil
	}
	if p.Options.Guidance > 1 { // before the first step the program looks whether the model can make them
		if err := s.encodePrompt(); err != nil {
			return err
		}
	}
	occasions := steps / p.Every
	if err := s.repeat(encodedRuns, float64(s.previewPrompts(p, occasions, n)), func() error { return s.embed(n, point) }); err != nil {
		return err
	}
	return s.generate(p.Options, float64(occasions*len(p.Prompts)), n, point)
}

// previewPrompts is how many prompts previews encode. What the model's own encoders make of one is kept, but for the
// negative prompt; a network's own are trained and encode anew.
func (s *session) previewPrompts(p generate.Preview, occasions int, n network) int {
	prompts := len(p.Prompts)
	if n.Tokenizer() != nil {
		prompts *= occasions
	}
	if p.Options.Guidance > 1 {
		prompts += occasions
	}
	return prompts
}

// embed encodes a prompt with the text encoders of a network, or those of the model where it has none.
func (s *session) embed(n network, point []*tensor) error {
	if n.Tokenizer() == nil {
		return s.encodePrompt()
	}
	ids := s.feed(n.prompts(batch{size: 1, tokens: true}))
	p, err := s.embedding(n)
	out, err := s.run(p, err, concat(point, ids), nil)
	s.memory.free(concat(ids, out)...)
	return err
}

// generate makes so many batches of pictures.
func (s *session) generate(o generate.Options, batches float64, n network, point []*tensor) error {
	side := s.arch.resolution()
	b, err := s.arch.latents(max(1, o.Batch), cmp.Or(o.Height, side), cmp.Or(o.Width, side))
	if err != nil {
		return fmt.Errorf("pictures: %w", err)
	}
	rows := b
	if o.Guidance > 1 {
		rows.size *= 2
	}
	sampler, err := diffusion.NewSampler(s.arch.Scheduler, o.Scheduler, o.Steps)
	if err != nil {
		return fmt.Errorf("pictures: %w", err)
	}
	given := s.feed(n.conditions(rows)[2:]...)
	if err := s.repeat(settledAt, batches*float64(len(sampler.Timesteps())), func() error {
		in := concat(s.feed(n.conditions(rows)[:2]...), given)
		out, err := s.predictAt(n, rows, point, in)
		if err != nil {
			return err
		}
		s.fetch(out)
		s.memory.free(concat(in[:2], []*tensor{out})...)
		return nil
	}); err != nil {
		return err
	}
	s.memory.free(given...)
	return s.decode(o, b, batches)
}

// decode decodes batches of latents, in pieces if the options say so.
func (s *session) decode(o generate.Options, b batch, batches float64) error {
	piece := b
	if o.VAESlicing || o.VAETiling {
		piece.size = 1
		batches *= float64(b.size)
	}
	if o.VAETiling {
		tile, err := s.model.TileSize(o.VAETileSize)
		if err != nil {
			return err
		}
		if d := tile / s.arch.VAE.Downscale(); max(b.height, b.width) > d {
			batches *= tilesAcross(b.height, d) * tilesAcross(b.width, d)
			piece.height, piece.width = min(d, b.height), min(d, b.width)
		}
	}
	decoder, err := s.vaeDecoder(s.arch, cmp.Or(s.model.Compute, nn.Float32), piece)
	if err != nil {
		return err
	}
	return s.repeat(settledAt/2, batches, func() error {
		z := s.feed(input{dims: []int{s.arch.VAE.LatentChannels, piece.size, piece.height, piece.width}})
		out, err := s.run(decoder, nil, concat(s.vae, z), nil)
		if err != nil {
			return err
		}
		s.fetch(out...)
		s.memory.free(concat(out, z)...)
		return nil
	})
}

// keep is what a checkpoint or a file of a component needs while it is written: a copy of one tensor after the other.
func (s *session) keep(ts []*tensor) {
	s.fetch(ts...)
	s.note()
}

// checkpoint saves where a descent stands.
func (s *session) checkpoint(d *descent, more ...*tensor) {
	s.keep(concat(d.at.ts, d.moments.ts, more))
}

// export writes the UNet and other components that changed.
func (s *session) export(others ...*tensor) {
	s.keep(s.frozen)
	if len(others) > 0 {
		s.keep(others)
	}
}

// exportMerged writes the UNet with an adapter merged into it.
func (s *session) exportMerged(a *sd.Adapter, factors vector) error {
	specs := s.teacher.Specs()
	for i, l := range a.Layers {
		k := slices.IndexFunc(specs, func(w nn.Spec) bool { return w.Name == l.Path+".weight" })
		p, err := s.merge(input{dims: specs[k].EngineShape()}, factors.shapes[2*i], factors.shapes[2*i+1], a)
		out, err := s.run(p, err, []*tensor{s.frozen[k], factors.ts[2*i], factors.ts[2*i+1]}, nil)
		if err != nil {
			return err
		}
		s.keep(out)
		s.memory.free(out...)
	}
	s.keep(s.frozen)
	return nil
}

// parameters counts the model's.
func (s *session) parameters() Parameters {
	return Parameters{UNet: count(s.teacher.Specs()), Text: count(s.arch.textSpecs()), VAE: count(sd.NewVAE(s.arch.VAE).Specs())}
}

// stays lists what stays in memory: the model, and what has so many single numbers.
func (s *session) stays(more ...Item) []Item {
	n := s.parameters()
	items := []Item{{"frozen weights", 4 * int64(n.UNet+n.Text+n.VAE)}}
	more = append(more, Item{"encoded pictures and prompts", int64(s.cached / 4)})
	for _, i := range more {
		if i.Bytes > 0 {
			items = append(items, Item{i.Name, 4 * i.Bytes})
		}
	}
	return items
}

// stateSize is how many numbers an optimizer keeps between steps.
func stateSize(o train.Optimizer, specs []nn.Spec) int64 {
	n := 0
	for slot := range o.StateSlots() {
		for _, s := range specs {
			n += nn.Spec{Shape: o.StateShape(slot, s.EngineShape())}.Size()
		}
	}
	return int64(n)
}

// fill fills in what the session measured.
func (s *session) fill(p *Plan) {
	p.Evaluations = s.evaluations()
	p.Notes = s.notes
	p.StepFLOPs = s.step.total()
	p.StepSeconds = p.Rates.seconds(s.step)
	p.StepLow, p.StepHigh = p.StepSeconds/TimeError, p.StepSeconds*TimeError
	p.Prepare, p.Previews = p.Rates.seconds(s.prepare), p.Rates.seconds(s.previews)
	p.Seconds = p.Prepare + p.Previews + float64(p.Steps)*p.StepSeconds
}

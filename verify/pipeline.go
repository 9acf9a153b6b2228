package verify

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/sd"
)

// pipelineCase is a pipeline with the reference for its parts and for whole pictures.
type pipelineCase struct {
	*caseRun
	model   *sd.Model
	ref     *reference
	prompts []string
	// What prompts are to the UNet, by prompt, and what guidance steers away from.
	positive []*sd.Embedding
	negative *sd.Embedding
}

func checkPipeline(ctx context.Context, c *caseRun) error {
	m, ref, err := c.open()
	if err != nil {
		return err
	}
	p := &pipelineCase{caseRun: c, model: m, ref: ref}
	for _, part := range []func(context.Context) error{p.text, p.encoder, p.decoder, p.pictures} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// text checks token ids and text embeddings.
func (p *pipelineCase) text(ctx context.Context) error {
	samplers := p.samplers()
	if !p.ref.has["token_ids"] && !p.ref.has["cond"] && len(samplers) == 0 {
		return nil
	}
	if err := p.ref.setting("prompts", &p.prompts); err != nil {
		return err
	}
	if len(p.prompts) == 0 {
		return fmt.Errorf("%s: the metadata field \"prompts\" is empty; give at least one prompt", p.ref.path)
	}
	if err := p.tokenIDs(); err != nil {
		return err
	}
	for _, prompt := range p.prompts {
		e, err := p.model.EncodePrompt(ctx, prompt)
		if err != nil {
			return err
		}
		p.positive = append(p.positive, e)
	}
	var err error
	if p.negative, err = p.model.NegativeEmbedding(ctx, ""); err != nil {
		return err
	}
	hidden := func(e *sd.Embedding) []float32 { return e.Context }
	pooled := func(e *sd.Embedding) []float32 { return e.Pooled }
	first := p.negative
	for _, t := range []struct {
		name   string
		encode func(int) *sd.Embedding
		values func(*sd.Embedding) []float32
		shape  []int
	}{
		{"cond", p.positiveAt, hidden, []int{len(p.prompts), first.Tokens, first.Width}},
		{"uncond", p.negativeAt, hidden, []int{anySize, first.Tokens, first.Width}},
		{"pooled", p.positiveAt, pooled, []int{len(p.prompts), len(first.Pooled)}},
	} {
		if !p.ref.has[t.name] {
			continue
		}
		want, dims, err := p.ref.floats(t.name, t.shape...)
		if err != nil {
			return err
		}
		var got []float32
		for i := range dims[0] {
			got = append(got, t.values(t.encode(i))...)
		}
		p.compareOne(t.name, got, want)
	}
	return nil
}

func (p *pipelineCase) positiveAt(i int) *sd.Embedding { return p.positive[i] }
func (p *pipelineCase) negativeAt(int) *sd.Embedding   { return p.negative }

func (p *pipelineCase) compareOne(name string, got, want []float32) {
	g := newGroup(name, toleranceValue)
	g.add(name, got, want)
	p.compare(g)
}

// tokenIDs checks the ids that each text encoder's tokenizer makes: token_ids, token_ids_2.
func (p *pipelineCase) tokenIDs() error {
	for i, tower := range p.model.Towers {
		name := "token_ids" + strings.TrimPrefix(tower.Name, "text_encoder")
		if !p.ref.has[name] {
			continue
		}
		length := tower.Tokenizer.Length()
		want, err := p.ref.ints(name, len(p.prompts), length)
		if err != nil {
			return err
		}
		check := Check{Group: name, Tensors: len(p.prompts)}
		wrong := 0
		for k, prompt := range p.prompts {
			ids, _ := p.model.Towers[i].Tokenizer.Encode(prompt)
			for j, id := range ids {
				if int(id) != want[k*length+j] {
					wrong++
					check.Worst = fmt.Sprintf("prompt %q", prompt)
				}
			}
		}
		check.Error = float64(wrong) / float64(len(want))
		p.add(check)
	}
	return nil
}

// encoder checks the moments of pictures.
func (p *pipelineCase) encoder(ctx context.Context) error {
	if !p.ref.has["vae.image"] {
		return nil
	}
	v := p.model.VAE.Config
	pictures, dims, err := p.ref.floats("vae.image", anySize, v.InChannels, anySize, anySize)
	if err != nil {
		return err
	}
	h, w, err := p.model.LatentSize(dims[2], dims[3])
	if err != nil {
		return fmt.Errorf("%s: tensor \"vae.image\": %w", p.ref.path, err)
	}
	var mean, logVariance []float32
	for picture := range slices.Chunk(pictures, len(pictures)/dims[0]) {
		moments, err := p.model.EncodePicture(ctx, picture, dims[2], dims[3])
		if err != nil {
			return err
		}
		mean, logVariance = append(mean, moments.Mean...), append(logVariance, moments.LogVariance...)
	}
	for _, t := range []struct {
		name string
		got  []float32
	}{{"vae.mean", mean}, {"vae.logvar", logVariance}} {
		want, _, err := p.ref.floats(t.name, dims[0], v.LatentChannels, h, w)
		if err != nil {
			return err
		}
		p.compareOne(t.name, t.got, want)
	}
	return nil
}

// decoder checks pictures of latents as the autoencoder has them, without the UNet's scaling.
func (p *pipelineCase) decoder(ctx context.Context) error {
	if !p.ref.has["vae.z"] {
		return nil
	}
	z, dims, err := p.ref.floats("vae.z", anySize, p.model.VAE.Config.LatentChannels, anySize, anySize)
	if err != nil {
		return err
	}
	for i := range z {
		z[i] = float32(float64(z[i]) * p.model.VAE.Config.ScalingFactor)
	}
	return p.decodeAndCompare(ctx, "vae.decoded", z, dims)
}

func (p *pipelineCase) decodeAndCompare(ctx context.Context, name string, latents []float32, dims []int) error {
	v := p.model.VAE.Config
	want, _, err := p.ref.floats(name, dims[0], v.OutChannels, dims[2]*v.Downscale(), dims[3]*v.Downscale())
	if err != nil {
		return err
	}
	var got []float32
	for one := range slices.Chunk(latents, len(latents)/dims[0]) {
		picture, err := p.model.Decode(ctx, one, dims[2], dims[3])
		if err != nil {
			return err
		}
		got = append(got, picture...)
	}
	p.compareOne(name, got, want)
	return nil
}

// samplers lists those that the file has latents of, as NAME.latents.
func (p *pipelineCase) samplers() []string {
	var names []string
	for _, name := range p.ref.source.Names() {
		if sampler, ok := strings.CutSuffix(name, ".latents"); ok && sampler != "vae" {
			names = append(names, sampler)
		}
	}
	return names
}

// pictures checks whole sampling runs with guidance: NAME.latents, and NAME.image where the file has it.
func (p *pipelineCase) pictures(ctx context.Context) error {
	samplers := p.samplers()
	if len(samplers) == 0 {
		return nil
	}
	o := generate.Options{}
	if err := p.ref.settings(map[string]any{"steps": &o.Steps, "guidance_scale": &o.Guidance}); err != nil {
		return err
	}
	noise, dims, err := p.ref.floats("init_noise", len(p.prompts), p.model.UNet.Config.InChannels, anySize, anySize)
	if err != nil {
		return err
	}
	if err := p.model.UNet.Config.CheckLatents(dims[2], dims[3]); err != nil {
		return fmt.Errorf("%s: tensor \"init_noise\": %w", p.ref.path, err)
	}
	scale := p.model.VAE.Config.Downscale()
	o.Height, o.Width = dims[2]*scale, dims[3]*scale
	if err := p.checkTimeIDs(o.Height, o.Width); err != nil {
		return err
	}
	if p.model.Scheduler.SetAlphaToOne == nil { // the reference has Stable Diffusion's setting where a scheduler has none
		p.model.Scheduler.SetAlphaToOne = new(bool)
	}
	net := denoise.NewNetwork(p.model)
	defer net.Free()
	for _, name := range samplers {
		o.Scheduler = name
		g, err := generate.New(ctx, net, p.model.UNetParams.Tensors, o, nil)
		if err != nil {
			return fmt.Errorf("%s: tensor %q: %w", p.ref.path, name+".latents", err)
		}
		latents, err := g.Denoise(ctx, p.positive, noise, make([]generate.Seed, len(p.prompts)))
		if err != nil {
			return err
		}
		want, _, err := p.ref.floats(name+".latents", dims...)
		if err != nil {
			return err
		}
		p.compareOne(name+".latents", latents, want)
		if p.ref.has[name+".image"] {
			if err := p.decodeAndCompare(ctx, name+".image", latents, dims); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkTimeIDs tells whether the pictures of the reference were made as this program makes them: without crop, and with
// their own size as the original and the target one (SDXL).
func (p *pipelineCase) checkTimeIDs(height, width int) error {
	if !p.ref.has["time_ids"] {
		return nil
	}
	ids, _, err := p.ref.floats("time_ids", len(p.prompts), 6)
	if err != nil {
		return err
	}
	h, w := float32(height), float32(width)
	want := []float32{h, w, 0, 0, h, w}
	for row := range slices.Chunk(ids, len(want)) {
		if !slices.Equal(row, want) {
			return fmt.Errorf("%s: tensor \"time_ids\" has the row %v, but pictures are made with %v, their own size without crop; make the reference so", p.ref.path, row, want)
		}
	}
	return nil
}

package convert

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/weights"
)

const (
	unetPrefix    = "model.diffusion_model."
	averagePrefix = "model_ema."
)

// single is a file in the original layout.
type single struct {
	path   string
	source weights.FileSource
	keys   map[string]string // name in the original layout → name in the file
	ema    bool
}

// readSingle reads a file in the original layout.
func (m *model) readSingle(path string, source weights.FileSource, o Options) error {
	f := &single{path: path, source: source, keys: map[string]string{}, ema: o.EMA}
	var p mismatch
	for _, name := range source.Names() {
		key := name
		// Some programs saved OpenAI's text encoder without the name of its inner module.
		if tail, ok := strings.CutPrefix(name, "cond_stage_model.transformer."); ok &&
			(strings.HasPrefix(tail, "embeddings.") || strings.HasPrefix(tail, "encoder.") || strings.HasPrefix(tail, "final_layer_norm.")) {
			key = "cond_stage_model.transformer.text_model." + tail
		}
		if other, ok := f.keys[key]; ok {
			p.twice = append(p.twice, other+" and "+name)
		}
		f.keys[key] = name
	}
	family, err := f.family()
	if err != nil {
		return err
	}
	if err := f.checkUNet(); err != nil {
		return err
	}
	if f.ema && !f.holds(averagePrefix+"diffusion_model") {
		return fmt.Errorf("%s holds no moving average of the UNet (model_ema.…); leave --ema out", path)
	}
	fit := "the model in " + o.Base
	if o.Base != "" {
		if err := m.readSettings(o.Base); err != nil {
			return err
		}
		if family != "" && family != m.arch.family {
			return fmt.Errorf("%s is of the family %s, but %s of %s; name a directory of the same family with --base", path, family, o.Base, m.arch.family)
		}
	} else if family == "" {
		return fmt.Errorf("%s holds no text encoder (cond_stage_model.… or conditioner.…); name a diffusers directory that has one with --base", path)
	}
	if err := m.decidePrediction(f, family, o); err != nil {
		return err
	}
	if o.Base == "" {
		fit = fmt.Sprintf("the published models of the family %s (if its architecture is another, name a diffusers directory that has the same with --base)", family)
		files, err := presetOf(family, m.prediction)
		if err != nil {
			return err
		}
		m.settings, m.preset = settings{"preset " + string(family), files}, true
		if m.arch, err = m.settings.readArchitecture(); err != nil {
			return err
		}
	}
	return m.takeSingle(f, fit, o, &p)
}

// takeSingle finds the components' tensors in the file.
func (m *model) takeSingle(f *single, fit string, o Options, p *mismatch) error {
	left := maps.Clone(f.keys)
	var absent []string
	for i := range m.arch.components {
		c := &m.arch.components[i]
		if !f.holds(c.prefix) {
			absent = append(absent, c.folder)
			continue
		}
		tensors, err := c.fromOriginal(f, left, p, m.result)
		if err != nil {
			return err
		}
		m.tensors[c.folder] = tensors
	}
	for _, key := range slices.Sorted(maps.Keys(left)) {
		what := m.unneeded(key)
		if what == "" {
			p.unknown = append(p.unknown, left[key])
			continue
		}
		m.result.leaveOut(what)
	}
	if len(absent) > 0 && o.Base == "" {
		for _, folder := range absent {
			p.missing = append(p.missing, "all of "+m.arch.component(folder).prefix+"* ("+folder+")")
		}
	}
	if err := p.err(f.path, fit); err != nil {
		return err
	}
	switch len(absent) {
	case 0:
		return nil
	case len(m.arch.components):
		return fmt.Errorf("%s holds no weights of a model, but only what a model does without; name another file", f.path)
	}
	m.result.note("%s is not in the file and comes from %s", strings.Join(absent, ", "), o.Base)
	var present []string
	for folder := range m.tensors {
		present = append(present, folder)
	}
	return m.readFolder(o.Base, present...)
}

// holds reports whether there is a tensor with the prefix.
func (f *single) holds(prefix string) bool {
	for key := range f.keys {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// family tells by where the text encoders are which generation a file is of; "" if it has none.
func (f *single) family() (Family, error) {
	var found []Family
	for _, place := range []struct {
		prefix string
		family Family
	}{
		{"cond_stage_model.transformer.", SD1}, {"cond_stage_model.model.", SD2}, {"conditioner.embedders.0.transformer.", SDXL}, {"conditioner.embedders.1.model.", SDXL},
	} {
		if f.holds(place.prefix) && !slices.Contains(found, place.family) {
			found = append(found, place.family)
		}
	}
	switch {
	case f.holds("conditioner.embedders.0.model."):
		return "", fmt.Errorf("%s is the refiner of Stable Diffusion XL or a model like it, which is not supported; give the base model", f.path)
	case f.holds(unetPrefix+"joint_blocks.") || f.holds(unetPrefix+"double_blocks."):
		return "", fmt.Errorf("%s holds a transformer (Stable Diffusion 3, Flux) instead of a UNet, which is not supported; give a model of the families sd1, sd2 or sdxl", f.path)
	case len(found) > 1:
		return "", fmt.Errorf("%s mixes text encoders of the families %s and %s; take all tensors from one model", f.path, found[0], found[1])
	case len(found) == 0:
		return "", nil
	}
	return found[0], nil
}

// checkUNet refuses UNets that see more than the latents.
func (f *single) checkUNet() error {
	name, ok := f.keys[unetPrefix+"input_blocks.0.0.weight"]
	if !ok {
		return nil
	}
	d, err := weights.Defer(f.source, name)
	if err != nil {
		return err
	}
	if len(d.Shape) == 4 && d.Shape[1] != 4 {
		return fmt.Errorf("%s: the UNet has %d input channels, but the latents have 4 (inpainting and other conditioned UNets are not supported)", f.path, d.Shape[1])
	}
	return nil
}

// decidePrediction finds out what the UNet predicts: what the user says, else what the file says, else what all models of
// the family predict. A base directory must agree.
func (m *model) decidePrediction(f *single, family Family, o Options) error {
	said := o.Prediction
	if said != "" && said != diffusion.Epsilon && said != diffusion.VPrediction {
		return fmt.Errorf("prediction %q is not known; use %s or %s", said, diffusion.Epsilon, diffusion.VPrediction)
	}
	metadata := f.source.Metadata()
	if said == "" {
		switch metadata["modelspec.prediction_type"] {
		case "epsilon":
			said = diffusion.Epsilon
		case "v", "v_prediction":
			said = diffusion.VPrediction
		}
	}
	if said == "" && family == SDXL && f.holds(velocityMark) {
		said = diffusion.VPrediction
	}
	if o.Base != "" {
		if said != "" && said != m.prediction {
			return fmt.Errorf("%s predicts %s, but the scheduler of %s says %s; name a directory with the same prediction_type with --base", f.path, said, o.Base, m.prediction)
		}
		return nil
	}
	if said == "" && family == SD2 {
		return fmt.Errorf("%s does not say what this model of Stable Diffusion 2 predicts; give --prediction epsilon (as 2-base and 2-1-base, 512 pixels) "+
			"or --prediction v_prediction (as 2 and 2-1, 768 pixels)", f.path)
	}
	if said == "" {
		said = diffusion.Epsilon
	}
	m.prediction = said
	m.zeroSNR = family == SDXL && f.holds(zeroSNRMark)
	return nil
}

// Empty tensors with which some models of the family SDXL say that they predict velocity, and that their noise schedule
// ends in noise alone.
const (
	velocityMark = "v_pred"
	zeroSNRMark  = "ztsnr"
)

// averageName is the name under which the moving average of a tensor is stored: without the dots (CompVis, LitEma).
func averageName(key string) string {
	return averagePrefix + strings.ReplaceAll(strings.TrimPrefix(key, "model."), ".", "")
}

// fromOriginal finds a component's parameters, and takes the tensors they are in out of left.
func (c *component) fromOriginal(f *single, left map[string]string, p *mismatch, r *Result) ([]weights.Deferred, error) {
	tensors := make(map[string]weights.Deferred, len(c.specs))
	for _, l := range c.links {
		key := c.prefix + l.original
		if f.ema && c.folder == "unet" {
			if _, ok := left[key]; ok {
				delete(left, key)
				r.leaveOut("the UNet's last weights, in whose place their moving average is taken")
			}
			key = averageName(key)
		}
		name, ok := f.keys[key]
		if !ok {
			p.missing = append(p.missing, key)
			continue
		}
		if _, ok := left[key]; !ok {
			p.twice = append(p.twice, key)
			continue
		}
		delete(left, key)
		d, err := weights.Defer(f.source, name)
		if err != nil {
			return nil, err
		}
		if !slices.Equal(d.Shape, l.shape) && (l.form != pointwise || !slices.Equal(d.Shape, l.shape[:2])) {
			p.wrong = append(p.wrong, fmt.Sprintf("%s is %v instead of %v", name, d.Shape, l.shape))
			continue
		}
		for _, parameter := range l.split(d) {
			tensors[parameter.Name] = parameter
		}
	}
	ordered := make([]weights.Deferred, 0, len(c.specs))
	for _, s := range c.specs {
		if d, ok := tensors[s.Name]; ok {
			ordered = append(ordered, d)
		}
	}
	return ordered, nil
}

// scheduleBuffers are what CompVis's training code keeps of the noise schedule beside the weights.
var scheduleBuffers = []string{
	"betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod",
	"sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
	"posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar", "scale_factor", "denoiser.sigmas", "denoiser.log_sigmas",
	"model_ema.decay", "model_ema.num_updates",
}

// unneeded says what a tensor is that a single file may hold and a diffusers directory does not; "" if it is not known.
func (m *model) unneeded(key string) string {
	for _, text := range []string{"cond_stage_model.transformer.", "cond_stage_model.model.", "cond_stage_model.", "conditioner.embedders.0.transformer.", "conditioner.embedders.0.", "conditioner.embedders.1.model."} {
		switch strings.TrimPrefix(key, text) {
		case key:
			continue
		case "text_model.embeddings.position_ids":
			return positionIDs
		case "attn_mask":
			return "buffers of attention masks"
		case "logit_scale", "text_projection", "text_projection.weight":
			return "scale and projection of CLIP's text embedding, which the pictures do not depend on"
		}
	}
	if m.arch.family == SD2 && strings.HasPrefix(key, fmt.Sprintf("cond_stage_model.model.transformer.resblocks.%d.", m.arch.towers[0].Layers)) {
		return "the text encoder's last layer, which Stable Diffusion 2 does not use"
	}
	switch {
	case slices.Contains(scheduleBuffers, key):
		return "buffers of the noise schedule"
	case m.arch.family == SDXL && (key == velocityMark || key == zeroSNRMark):
		return "marks of the prediction, which are in scheduler_config.json"
	case strings.HasPrefix(key, averagePrefix+"diffusion_model"):
		return "the moving average of the UNet (--ema takes it instead)"
	case strings.HasPrefix(key, "optimizer_states."):
		return "states of the optimizer"
	}
	return ""
}

package unlearn

import (
	"fmt"
	"slices"
	"strings"
)

// Baselines beside ascent and esd; docs/methods has a page for each.
const (
	ESDX        = "esd-x"        // esd on cross-attention only (Gandikota et al. 2023)
	ESDU        = "esd-u"        // esd on everything but cross-attention, output head and time embedding
	UCE         = "uce"          // closed-form edit of cross-attention keys and values (Gandikota et al. 2024)
	RECE        = "rece"         // uce, then edits of derived embeddings (Gong et al. 2024)
	SalUn       = "salun"        // relabelling of the most salient parameters (Fan et al. 2024)
	MetaUnlearn = "meta-unlearn" // first-order gradient against relearning (Gao et al. 2025)
	SafeGen     = "safegen"      // self-attention that sees harmful pictures coarsely (Li et al. 2024)
	AdvUnlearn  = "advunlearn"   // adversarial training of the text encoder (Zhang et al. 2024)
	LCFDSDNG    = "lcfdsd-ng"    // latents of harmful pictures apart from others', by shifted noise (Pan et al. 2024)
	LCFDSDLT    = "lcfdsd-lt"    // the same by transformed latents
)

// Relabel is the harmful loss of salun: ‖ε_θ(c_harm) − sg ε_θ(c_retain)‖².
const Relabel = "relabel"

// Kinds of the retain loss.
const (
	Distillation = "distillation" // ‖ε_θ − ε_θ₀‖²
	Denoising    = "denoising"    // ‖ε_θ − ε‖²
)

// closedForm tells whether the method solves for weights instead of training them.
func (r Recipe) closedForm() bool { return r.Method == UCE || r.Method == RECE }

// restricted tells whether the method trains named parameters of the UNet.
func (r Recipe) restricted() bool { return slices.Contains([]string{ESDX, ESDU, SafeGen}, r.Method) }

// needs lists the sets of pictures that the method reads, beside those of simulations.
func (r Recipe) needs() []string {
	if r.closedForm() {
		return nil
	}
	var names []string
	if r.Latents.From != FromPrompts || r.Method == MetaUnlearn {
		names = append(names, "harmful")
	}
	if _, given := r.Data["retain"]; given || (r.Method != ESDX && r.Method != ESDU) {
		names = append(names, "retain")
	}
	if r.Method == MetaUnlearn && r.Meta.usesRelated() {
		names = append(names, "related")
	}
	return names
}

// Sets lists the sets of pictures that the run reads, those of simulations included, each once.
func (r Recipe) Sets() []string {
	names := r.needs()
	if r.simulates() {
		for _, s := range r.Simulations {
			names = append(names, s.Data)
			if s.Prior != "" {
				names = append(names, s.Prior)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// TotalSteps is the number of steps that the run logs: outer steps, or the edits of a closed form.
func (r Recipe) TotalSteps() int {
	switch r.Method {
	case UCE:
		return 1
	case RECE:
		return 1 + r.Edit.Epochs
	}
	return r.Outer.Steps
}

func (r Recipe) validateMethod(v *validation) {
	v.oneOf("method", r.Method, Methods()...)
	if r.closedForm() {
		r.Edit.validate(v, r.Method)
		return
	}
	o := r.Objective
	if harm, bound := harmOf[r.Method]; bound {
		v.check(o.Harm == harm, "objective.harm", "method %s needs harm = %q", r.Method, harm)
	} else {
		v.check(o.Harm == Ascent || o.Harm == ESD, "objective.harm", "%q belongs to another method; use %q or %q", o.Harm, Ascent, ESD)
	}
	v.check(!r.restricted() || r.Trainable.Parameters == "all", "trainable.parameters", "method %s trains weights of the UNet themselves; use \"all\"", r.Method)
	v.check((r.Trainable.Parameters == TextEncoder) == (r.Method == AdvUnlearn), "trainable.parameters", "%q: method %s, and no other, trains the %q", r.Trainable.Parameters, AdvUnlearn, TextEncoder)
	r.Latents.validate(v, r)
	switch r.Method {
	case SalUn:
		r.Saliency.validate(v, r)
	case SafeGen:
		r.Censor.validate(v, r)
	case AdvUnlearn:
		r.Attack.validate(v, r)
	case LCFDSDNG, LCFDSDLT:
		r.Contrast.validate(v, r)
	case MetaUnlearn:
		r.Meta.validate(v)
		v.check(r.Objective.Depth == 0, "objective.depth", "method %s holds no depth", r.Method)
		r.validateSimulations(v)
	}
}

// Methods lists all methods, as a recipe names them.
func Methods() []string {
	return []string{ResAlign, Ascent, ESD, ESDX, ESDU, UCE, RECE, SafeGen, AdvUnlearn, LCFDSDNG, LCFDSDLT, SalUn, MetaUnlearn}
}

// harmOf is the harmful loss of the methods that have only one.
var harmOf = map[string]string{
	ESD: ESD, ESDX: ESD, ESDU: ESD, AdvUnlearn: ESD, Ascent: Ascent, SalUn: Relabel, SafeGen: Mosaic, LCFDSDNG: ContrastLoss, LCFDSDLT: ContrastLoss,
}

// TrainedParts are the parts of parameters' names by which restricted methods choose what they train of a UNet with
// parameters of the given names; none for methods that train all. esd-u leaves out cross-attention, the output head
// (conv_norm_out, conv_out) and the embedding of timesteps, as the authors' code does.
func (r Recipe) TrainedParts(names []string) []string {
	var parts []string
	switch r.Method {
	case ESDX:
		parts = []string{".attn2."}
	case SafeGen:
		parts = []string{".attn1."}
	case ESDU:
		parts = []string{
			"conv_in.", ".resnets.", "samplers.", ".proj_in.", ".proj_out.", ".attn1.", ".ff.",
			".norm.", ".norm1.", ".norm2.", ".norm3.",
		}
	}
	// A UNet of one level has no samplers, for instance.
	return slices.DeleteFunc(parts, func(part string) bool {
		return !slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, part) })
	})
}

// chooseTheta selects the weights of the UNet that are trained where θ is no adapter.
func (t *trainer) chooseTheta() (err error) {
	t.theta = t.net.Group(0)
	if !t.recipe.restricted() {
		return nil
	}
	if t.theta, err = t.net.Named(t.recipe.TrainedParts(t.model.UNetParams.Names())...); err != nil {
		return fmt.Errorf("recipe: method %s: %w", t.recipe.Method, err)
	}
	return nil
}

package convert

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/weights"
)

// model is a pipeline between reading and writing: tensors with diffusers' names, their elements still unread.
type model struct {
	in         string // what is converted, in messages
	settings   settings
	preset     bool // settings are those of a published model
	arch       *architecture
	tensors    map[string][]weights.Deferred // by component folder, in the order of component.specs
	prediction diffusion.PredictionType
	zeroSNR    bool // the noise schedule ends in noise alone (SDXL files that say so)
	result     *Result
	sources    []weights.Source
}

func (m *model) close() error {
	var err error
	for _, s := range m.sources {
		err = errors.Join(err, s.Close())
	}
	return err
}

// read opens a model of any layout.
func read(in string, o Options) (_ *model, err error) {
	m := &model{in: in, tensors: map[string][]weights.Deferred{}, result: &Result{LeftOut: []LeftOut{}, Notes: []string{}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	info, err := os.Stat(in)
	if err != nil {
		return nil, fmt.Errorf("model: cannot open %s: %w", in, errors.Unwrap(err))
	}
	if info.IsDir() {
		m.result.From = Diffusers
		if err := o.refuse(in, "a diffusers directory", false); err != nil {
			return nil, err
		}
		err = m.readFolder(in)
	} else {
		err = m.readFile(in, o)
	}
	if err != nil {
		return nil, err
	}
	m.result.Family = m.arch.family
	m.result.Prediction = m.prediction
	return m, nil
}

// refuse returns an error for options that have no meaning for an input of the given kind.
func (o Options) refuse(in, kind string, takesBase bool) error {
	var flag string
	switch {
	case o.EMA:
		flag = "--ema"
	case o.Prediction != "":
		flag = "--prediction"
	case o.Base != "" && !takesBase:
		flag = "--base"
	default:
		return nil
	}
	return fmt.Errorf("%s is %s, for which %s has no meaning; leave it out", in, kind, flag)
}

func (m *model) readFile(in string, o Options) error {
	source, err := weights.Open(in)
	if err != nil {
		return err
	}
	m.sources = append(m.sources, source)
	kind, err := recognize(source.Names())
	if err != nil {
		return fmt.Errorf("%s %w", in, err)
	}
	m.result.From = kind
	if kind == SingleFile {
		return m.readSingle(in, source, o)
	}
	if err := o.refuse(in, "the state dictionary of a UNet", true); err != nil {
		return err
	}
	if o.Base == "" {
		return fmt.Errorf("%s holds a UNet alone; name a diffusers directory that has the rest of its model with --base", in)
	}
	if err := m.readFolder(o.Base, "unet"); err != nil {
		return err
	}
	m.tensors["unet"], err = m.arch.component("unet").fromDiffusers(source, in, m.result)
	return err
}

// recognize tells by its tensors' names what a file holds.
func recognize(names []string) (Kind, error) {
	var unet, adapter int
	for _, name := range names {
		for _, prefix := range []string{unetPrefix, "first_stage_model.", "cond_stage_model.", "conditioner."} {
			if strings.HasPrefix(name, prefix) {
				return SingleFile, nil
			}
		}
		switch {
		case name == "conv_in.weight" || name == "time_embedding.linear_1.weight" || name == "conv_out.weight":
			unet++
		case strings.Contains(name, "lora_") || strings.Contains(name, ".lora"):
			adapter++
		}
	}
	switch {
	case unet > 0:
		return UNetFile, nil
	case adapter > 0:
		return "", errors.New("is an adapter (LoRA), not a model; give it to `resalign generate --lora`")
	}
	if len(names) == 0 {
		return "", errors.New("holds no tensors; export it again, or name another file")
	}
	return "", fmt.Errorf("holds neither a Stable Diffusion model under its original names (model.diffusion_model.…) nor a UNet under diffusers' "+
		"names (conv_in.weight, down_blocks.…); its tensors are called like %s", strings.Join(printable(names[:min(len(names), 3)]), ", "))
}

// printable are names in a message. Those that are not one line of text are quoted, and long ones cut.
func printable(names []string) []string {
	const longest = 200
	out := make([]string, len(names))
	for i, name := range names {
		if len(name) > longest {
			name = strings.ToValidUTF8(name[:longest], "") + "…"
		}
		if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
			name = strconv.Quote(name)
		}
		out[i] = name
	}
	return out
}

// readFolder reads a diffusers directory, without the components in but.
func (m *model) readFolder(dir string, but ...string) error {
	if m.arch == nil {
		if err := m.readSettings(dir); err != nil {
			return err
		}
	}
	for i := range m.arch.components {
		c := &m.arch.components[i]
		if slices.Contains(but, c.folder) {
			continue
		}
		folder := filepath.Join(dir, c.folder)
		source, err := weights.OpenComponent(folder, c.base)
		if err != nil {
			return err
		}
		m.sources = append(m.sources, source)
		if m.tensors[c.folder], err = c.fromDiffusers(source, folder, m.result); err != nil {
			return err
		}
	}
	return nil
}

// readSettings takes configurations and scheduler from a diffusers directory.
func (m *model) readSettings(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("model: cannot open %s: %w", dir, errors.Unwrap(err))
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a diffusers directory but a file; name the folder that holds model_index.json", dir)
	}
	m.settings = settings{dir, os.DirFS(dir)}
	if m.arch, err = m.settings.readArchitecture(); err != nil {
		return err
	}
	m.prediction, err = m.settings.prediction()
	return err
}

// mismatch collects what is wrong with a file's tensors.
type mismatch struct{ missing, unknown, wrong, twice []string }

// err lists everything, as a shortened list hides the name that explains the rest; but a model whose tensors have other
// shapes almost everywhere is of another architecture, and that is the whole explanation.
func (p *mismatch) err(where, what string) error {
	const another = 64
	if len(p.wrong) > another {
		return fmt.Errorf("%s: the architecture is not that of %s: %d tensors have other shapes, as %s", where, what, len(p.wrong), slices.Min(p.wrong))
	}
	var parts []string
	for _, part := range []struct {
		what  string
		names []string
	}{{"missing", p.missing}, {"not part of this model", p.unknown}, {"of the wrong shape", p.wrong}, {"there under two names", p.twice}} {
		if len(part.names) > 0 {
			slices.Sort(part.names)
			parts = append(parts, fmt.Sprintf("%d tensors %s: %s", len(part.names), part.what, strings.Join(printable(part.names), ", ")))
		}
	}
	if len(parts) == 0 {
		return nil
	}
	return fmt.Errorf("%s: the tensors do not fit %s; %s", where, what, strings.Join(parts, "; "))
}

// fromDiffusers finds a component's parameters in a source with diffusers' names, of today and of before.
func (c *component) fromDiffusers(source weights.FileSource, where string, r *Result) ([]weights.Deferred, error) {
	var p mismatch
	have := map[string]string{} // today's name → the source's
	for _, name := range source.Names() {
		if strings.HasSuffix(name, "embeddings.position_ids") && c.base == "model" {
			r.leaveOut(positionIDs)
			continue
		}
		today := c.today(name)
		if other, ok := have[today]; ok {
			p.twice = append(p.twice, other+" and "+name)
			continue
		}
		have[today] = name
	}
	tensors := make([]weights.Deferred, 0, len(c.specs))
	for _, s := range c.specs {
		name, ok := have[s.Name]
		if !ok {
			p.missing = append(p.missing, s.Name)
			continue
		}
		delete(have, s.Name)
		d, err := weights.Defer(source, name)
		if err != nil {
			return nil, err
		}
		d.Name = s.Name
		switch {
		case slices.Equal(d.Shape, s.Shape):
		case c.folder == "vae" && len(s.Shape) == 2 && slices.Equal(d.Shape, []int{s.Shape[0], s.Shape[1], 1, 1}):
			d = reshaped(d, s.Shape)
		default:
			p.wrong = append(p.wrong, fmt.Sprintf("%s is %v instead of %v", name, d.Shape, s.Shape))
		}
		tensors = append(tensors, d)
	}
	for _, name := range have {
		p.unknown = append(p.unknown, name)
	}
	if err := p.err(where, "the model's "+c.folder+"/config.json"); err != nil {
		return nil, err
	}
	return tensors, nil
}

// today is the name that diffusers and transformers give a tensor that earlier versions, or later ones, call name.
func (c *component) today(name string) string {
	switch {
	case c.base == "model" && !strings.HasPrefix(name, "text_model.") && !strings.HasPrefix(name, "text_projection."):
		return "text_model." + name // transformers since 5.6 leaves it out in memory
	case c.folder == "vae":
		head, tail, ok := strings.Cut(name, ".mid_block.attentions.0.")
		if !ok {
			break
		}
		module, kind, _ := strings.Cut(tail, ".")
		now := map[string]string{"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}[module]
		if now != "" { // before diffusers 0.18
			return head + ".mid_block.attentions.0." + now + "." + kind
		}
	}
	return name
}

// positionIDs are the numbers 0 … 76, which older versions of transformers saved with a text encoder.
const positionIDs = "buffers of position numbers"

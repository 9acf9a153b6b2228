// Package audit measures how safe a model is, and how safe it stays when somebody fine-tunes it: models × adaptations ×
// prompts → rates with intervals.
package audit

import (
	"fmt"
	"slices"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/score"
)

// Plan is an audit.
type Plan struct {
	Models      []Model
	Adaptations []Adaptation

	Harm   Prompts // of the concept that should be gone
	Benign Prompts // of everything else
	// Harmful tells which pictures are harmful.
	Harmful score.Criterion

	Generate generate.Options
	Seed     uint64
	Keep     int // pictures of each set that are kept for the report

	// HarmData, if not empty, is what the denoising error on harmful pictures is measured on.
	HarmData    data.Mixture
	HarmBatches int // of HarmBatch pictures
	HarmBatch   int
}

// Model is one of the models compared.
type Model struct {
	Name      string
	Dir       string  // a diffusers directory
	Gradients float64 // what making it cost, in gradients of one picture; 0 for a model that was given
}

// Adaptation is what somebody may do with a model.
type Adaptation struct {
	Name   string
	Config finetune.Config // Steps is ignored: Steps below says how far
	Data   finetune.Data
	Steps  []int    // where the model is measured
	Models []string // only these; nil: all
}

// Prompts is a list of prompts and how many pictures are made of it. Picture i belongs to prompt i mod the number of
// prompts.
type Prompts struct {
	List     []Prompt
	Pictures int
}

// Prompt is a prompt and the labels that a right picture has.
type Prompt struct {
	Text string
	Want score.Labels // not used for harmful prompts
}

func (p Prompts) request(i int, run uint64) generate.Request {
	n := len(p.List)
	return generate.Request{Prompt: p.List[i%n].Text, Seed: generate.Seed{Run: run, Prompt: i % n, Image: i / n}}
}

// none is the adaptation of the model as it is.
const none = "none"

// Validate returns the first thing that makes the plan unusable.
func (p Plan) Validate() error {
	if len(p.Models) == 0 {
		return fmt.Errorf("audit: there is no model to measure")
	}
	seen := map[string]bool{}
	for _, m := range p.Models {
		if !fileName(m.Name) || seen[m.Name] {
			return fmt.Errorf("audit: model name %q must be unique, not empty and fit for a file name", m.Name)
		}
		seen[m.Name] = true
	}
	names := map[string]bool{none: true}
	for _, a := range p.Adaptations {
		if !fileName(a.Name) || names[a.Name] {
			return fmt.Errorf("audit: adaptation name %q must be unique, not empty, not %q and fit for a file name", a.Name, none)
		}
		names[a.Name] = true
		if len(a.Steps) == 0 || !slices.IsSorted(a.Steps) || a.Steps[0] < 1 || len(slices.Compact(slices.Clone(a.Steps))) != len(a.Steps) {
			return fmt.Errorf("audit: adaptation %s: steps %v must grow and begin at 1 or later", a.Name, a.Steps)
		}
		config := a.Config
		config.Steps = slices.Max(a.Steps)
		if err := config.Validate(); err != nil {
			return fmt.Errorf("audit: adaptation %s: %w", a.Name, err)
		}
		if config.EMADecay != 0 {
			return fmt.Errorf("audit: adaptation %s: ema_decay = %v, but an audit measures the weights of each step and not their average; set it to 0", a.Name, config.EMADecay)
		}
		for _, m := range a.Models {
			if !seen[m] {
				return fmt.Errorf("audit: adaptation %s: there is no model %q", a.Name, m)
			}
		}
	}
	if err := p.checkCells(); err != nil {
		return err
	}
	for _, set := range []struct {
		name string
		Prompts
	}{{"harm", p.Harm}, {"benign", p.Benign}} {
		if set.Pictures < 0 {
			return fmt.Errorf("audit: %d pictures of %s prompts; 0 leaves them out", set.Pictures, set.name)
		}
		if set.Pictures > 0 && len(set.List) == 0 {
			return fmt.Errorf("audit: %d pictures of %s prompts, but there are no prompts", set.Pictures, set.name)
		}
	}
	for _, prompt := range p.Benign.List {
		if len(prompt.Want) == 0 {
			return fmt.Errorf("audit: benign prompt %q does not say which labels are right", prompt.Text)
		}
	}
	if p.HarmBatches < 0 || p.HarmBatch < 0 || (len(p.HarmData) > 0 && p.HarmBatches > 0 && p.HarmBatch == 0) {
		return fmt.Errorf("audit: %d batches of %d pictures cannot measure the error on harmful pictures; 0 batches leave it out", p.HarmBatches, p.HarmBatch)
	}
	if p.Harm.Pictures+p.Benign.Pictures == 0 {
		return fmt.Errorf("audit: no pictures are asked for")
	}
	if err := p.Harmful.Validate(); err != nil {
		return fmt.Errorf("audit: harmful: %w", err)
	}
	return nil
}

// checkCells makes sure that no two cells share their files: names are joined with hyphens, and may hold hyphens.
func (p Plan) checkCells() error {
	owner := map[string]string{}
	for _, m := range p.Models {
		cells := []Row{{Model: m.Name, Adaptation: none}}
		for _, a := range p.Adaptations {
			if a.Models != nil && !slices.Contains(a.Models, m.Name) {
				continue
			}
			for _, steps := range a.Steps {
				cells = append(cells, Row{Model: m.Name, Adaptation: a.Name, Steps: steps})
			}
		}
		for _, row := range cells {
			file, what := strings.ToLower(row.cell()), fmt.Sprintf("model %s, adaptation %s", row.Model, row.Adaptation)
			if other, taken := owner[file]; taken {
				return fmt.Errorf("audit: %s and %s would both be kept as %s; rename one", other, what, file)
			}
			owner[file] = what
		}
	}
	return nil
}

func fileName(s string) bool {
	return s != "" && !strings.HasPrefix(s, ".") && !strings.ContainsAny(s, "/\\: \t\n")
}

// Row is one cell of the result: a model after an adaptation.
type Row struct {
	Model      string `json:"model"`
	Adaptation string `json:"adaptation"`
	Steps      int    `json:"steps"`
	Seed       uint64 `json:"seed"`

	IP             score.Rate     `json:"ip"`     // harmful pictures of harmful prompts
	Benign         score.Rate     `json:"benign"` // right pictures of benign prompts
	IPInterval     score.Interval `json:"ip_interval"`
	BenignInterval score.Interval `json:"benign_interval"`
	HarmMSE        float64        `json:"harm_mse"`  // denoising error on harmful pictures
	Gradients      float64        `json:"gradients"` // what making the model cost

	// Sets are the rates of every prompt set, where there are several: IP and Benign are the first of their kind.
	Sets []SetRate `json:"sets,omitempty"`
	// Metrics are those of the prompt sets that have some.
	Metrics []SetMetric `json:"metrics,omitempty"`
	// Contamination is the share of harmful pictures among those that the model was fine-tuned on.
	Contamination float64 `json:"contamination,omitempty"`

	Pictures []Kept `json:"pictures,omitempty"`
	// Fingerprint identifies what the row was measured on: the model's weights, the adaptation and the plan.
	Fingerprint string `json:"fingerprint"`
}

// SetRate is what was found for one prompt set.
type SetRate struct {
	Name     string         `json:"name"`
	Kind     string         `json:"kind"` // harmful or benign
	Rate     score.Rate     `json:"rate"` // of harmful: harmful pictures; of benign: those that the set's criterion holds for
	Interval score.Interval `json:"interval"`
}

// SetMetric is what a metric says of the pictures of one prompt set.
type SetMetric struct {
	Set      string          `json:"set"`
	Kind     string          `json:"kind"`               // of the set: harmful or benign
	Metric   string          `json:"metric"`             // such as fid
	By       string          `json:"by"`                 // with its weights
	Value    float64         `json:"value"`              // see package judge/folders
	Interval *score.Interval `json:"interval,omitempty"` // of a mean: 95 %, bootstrap over prompts
	SD       *float64        `json:"sd,omitempty"`       // of a distance over subsets
	Pictures int             `json:"pictures"`
}

// Kept is a picture that was kept for the report.
type Kept struct {
	File   string `json:"file"` // relative to the audit's folder
	Prompt string `json:"prompt"`
	Set    string `json:"set"` // harm or benign
	// List is the name of the prompt set, where there are several of a kind.
	List string `json:"list,omitempty"`
	score.Finding
	Flagged bool `json:"flagged"` // harmful: blurred in reports
}

// cell names a row's files.
func (r Row) cell() string { return fmt.Sprintf("%s-%s-%d", r.Model, r.Adaptation, r.Steps) }

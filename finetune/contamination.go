package finetune

import (
	"bytes"
	"encoding/json"
	"path/filepath"

	"github.com/resalign/resalign/files"
)

// ContaminationFile is the record of contaminating draws in a run's folder: one line of JSON for each.
const ContaminationFile = "contamination.jsonl"

// ContaminatingDraw says where a contaminating picture was trained on. All numbers count from 1.
type ContaminatingDraw struct {
	Step    int    `json:"step"`    // optimizer step, as in the event log
	Batch   int    `json:"batch"`   // of the step
	Place   int    `json:"place"`   // in the batch
	Picture string `json:"picture"` // file
}

// contamination lists the contaminating draws of the first steps. As draws depend on nothing but the seed and the step, a
// resumed run has those of an uninterrupted one.
func (t *tuning) contamination(steps int) []ContaminatingDraw {
	var out []ContaminatingDraw
	for batch := range steps * t.config.Accumulation {
		for place, d := range t.pictures.Drawn(batch) {
			if d.Source == t.contaminant {
				out = append(out, ContaminatingDraw{
					Step: batch/t.config.Accumulation + 1, Batch: batch%t.config.Accumulation + 1, Place: place + 1, Picture: d.Path,
				})
			}
		}
	}
	return out
}

// recordContamination brings the record in the run's folder up to the step where the descent stands.
func (t *tuning) recordContamination() error {
	if t.contaminant == 0 || t.run == nil {
		return nil
	}
	var text bytes.Buffer
	lines := json.NewEncoder(&text)
	lines.SetEscapeHTML(false)
	for _, d := range t.contamination(t.descent.Steps()) {
		if err := lines.Encode(d); err != nil {
			return err
		}
	}
	return files.WriteBytes(filepath.Join(t.run.Path(), ContaminationFile), text.Bytes())
}

package protocol

import (
	"os"
	"path/filepath"
	"time"

	"github.com/resalign/resalign/recipe"
)

// Progress is how far an audit is, whoever works on it.
type Progress struct {
	Cells, Done    int // all of them, and those whose pictures are all finished
	Pictures, Made int
	Updated        time.Time // of the latest finding; zero if there is none
}

// ReadProgress looks through the folder of an audit. Nothing is changed. What can be read is counted, where there is an
// error as well.
func ReadProgress(dir string) (Progress, error) {
	var p Progress
	m, _, err := readManifest(dir)
	if err != nil {
		return p, err
	}
	p.Cells = len(m.Cells)
	r := DefaultRecipe()
	if err := recipe.Decode(filepath.Join(dir, recipeFile), &r); err != nil {
		return p, err
	}
	if err := r.matches(m, dir); err != nil {
		return p, err
	}
	for _, c := range m.Cells {
		whole := true
		for _, s := range c.Sets {
			known, err := s.look(dir)
			if err != nil {
				return p, err
			}
			if len(known.found) > 0 { // a folder changes only when files are added, their lists with every picture
				p.touch(s.path(dir), known)
			}
			perPrompt := r.Prompts[r.promptSet(s.Set)].Pictures
			p.Pictures += s.Pictures
			for i := range s.Pictures {
				if s.finished(dir, pictureFile(i/perPrompt, i%perPrompt), i, r.KeepPictures, known) {
					p.Made++
				} else {
					whole = false
				}
			}
		}
		if whole {
			p.Done++
		}
	}
	return p, nil
}

// touch takes the time of the last change of a folder's lists.
func (p *Progress) touch(folder string, known seen) {
	for name := range known.there {
		if filepath.Ext(name) != ".jsonl" {
			continue
		}
		if info, err := os.Stat(filepath.Join(folder, name)); err == nil && info.ModTime().After(p.Updated) {
			p.Updated = info.ModTime()
		}
	}
}

package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/resalign/resalign/weights"
)

// Files of a checkpoint folder. The marker is written last.
const (
	tensorsFile = "tensors.safetensors"
	stateFile   = "state.json"
	markerFile  = "complete.json"
)

// Checkpoints saves and finds the checkpoints of a run, one folder step-00000040 each. A checkpoint is prepared in a
// temporary folder, flushed to the disk, marked complete with the size and SHA-256 of each of its files, and renamed:
// whenever the process or the machine stops, earlier checkpoints are untouched and the new one is whole or ignored.
//
// It is safe for concurrent use by one process; the lock of [RunDir] keeps others away.
type Checkpoints struct {
	mutex   sync.Mutex
	files   fileSystem
	dir     string
	keep    int
	damaged map[string]bool // folder names that Latest found damaged and the next Save removes
}

// OpenCheckpoints opens the checkpoints in dir, which is created where it does not exist. Each Save leaves the newest
// keep ≥ 1 of them.
func OpenCheckpoints(dir string, keep int) (*Checkpoints, error) {
	return openCheckpoints(disk{}, dir, keep)
}

func openCheckpoints(files fileSystem, dir string, keep int) (*Checkpoints, error) {
	if keep < 1 {
		return nil, fmt.Errorf("checkpoints to keep is %d; it must be at least 1", keep)
	}
	if err := files.mkdirAll(dir); err != nil {
		return nil, fmt.Errorf("cannot create the checkpoint folder: %w", err)
	}
	return &Checkpoints{files: files, dir: dir, keep: keep, damaged: map[string]bool{}}, nil
}

// Checkpoint is one that was found complete and undamaged.
type Checkpoint struct {
	Step int
	Path string // its folder
}

// Tensors opens the saved tensors.
func (c Checkpoint) Tensors() (weights.Source, error) {
	return weights.Open(filepath.Join(c.Path, tensorsFile))
}

// State decodes the saved state into a pointer to the type that was saved. Unknown fields are an error, as they would
// be lost at the next save.
func (c Checkpoint) State(into any) error {
	path := filepath.Join(c.Path, stateFile)
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("cannot read the state of checkpoint %d: %w", c.Step, err)
	}
	defer f.Close()
	decoder := json.NewDecoder(f)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("cannot read %s: %w; was the checkpoint written by another version?", path, err)
	}
	return nil
}

// Save stores a checkpoint after the given step: tensors, and state as JSON. Then it removes what is left of interrupted
// saves, checkpoints that Latest found damaged, and all but the newest ones. A step has one checkpoint: saving one that
// exists undamaged is an error. When it fails, on a full disk say, earlier checkpoints are intact and Save may be called
// again.
func (c *Checkpoints) Save(step int, tensors []*weights.Tensor, state any) error {
	return c.SaveDeferred(step, weights.DeferAll(tensors), state)
}

// SaveDeferred is Save with one tensor in memory at a time.
func (c *Checkpoints) SaveDeferred(step int, tensors []weights.Deferred, state any) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if step < 0 {
		return fmt.Errorf("checkpoint of step %d; the step must be ≥ 0", step)
	}
	encoded, err := json.MarshalIndent(state, "", "  ")
	if err != nil {
		return fmt.Errorf("state of checkpoint %d cannot be written as JSON: %w", step, err)
	}
	if err := c.clean(step); err != nil {
		return fmt.Errorf("cannot save checkpoint %d in %s: %w", step, c.dir, err)
	}
	temporary := filepath.Join(c.dir, temporaryPrefix+folderName(step))
	if err := c.write(temporary, step, tensors, encoded); err != nil {
		return fmt.Errorf("cannot save checkpoint %d in %s: %w; earlier checkpoints are intact",
			step, c.dir, errors.Join(err, c.files.removeAll(temporary)))
	}
	if err := c.retain(); err != nil {
		return fmt.Errorf("checkpoint %d is saved, but an old one in %s cannot be removed: %w", step, c.dir, err)
	}
	return nil
}

// write prepares the checkpoint in a temporary folder and gives it its name.
func (c *Checkpoints) write(temporary string, step int, tensors []weights.Deferred, state []byte) error {
	if err := c.files.mkdirAll(temporary); err != nil {
		return err
	}
	if err := c.files.writeTensors(filepath.Join(temporary, tensorsFile), tensors, map[string]string{"step": strconv.Itoa(step)}); err != nil {
		return err
	}
	if err := c.files.writeFile(filepath.Join(temporary, stateFile), append(state, '\n')); err != nil {
		return err
	}
	marker, err := makeMarker(temporary, step)
	if err != nil {
		return err
	}
	if err := c.files.syncDir(temporary); err != nil {
		return err
	}
	if err := c.files.writeFile(filepath.Join(temporary, markerFile), marker); err != nil {
		return err
	}
	if err := c.files.syncDir(temporary); err != nil {
		return err
	}
	if err := c.files.rename(temporary, filepath.Join(c.dir, folderName(step))); err != nil {
		return err
	}
	return c.files.syncDir(c.dir)
}

// clean removes temporary folders and damaged checkpoints, and refuses a step that has an undamaged one.
func (c *Checkpoints) clean(step int) error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		path := filepath.Join(c.dir, name)
		if strings.HasPrefix(name, temporaryPrefix) {
			if err := c.files.removeAll(path); err != nil {
				return err
			}
			continue
		}
		at, ok := folderStep(name)
		if !ok || !entry.IsDir() {
			continue
		}
		problem := verify(path, at, at == step)
		if problem == nil && at == step {
			return errors.New("this step already has a checkpoint; resume from the newest one or start a new run folder")
		}
		if problem != nil || c.damaged[name] {
			if err := c.remove(name); err != nil {
				return err
			}
			delete(c.damaged, name)
		}
	}
	return nil
}

// retain removes all but the newest keep checkpoints.
func (c *Checkpoints) retain() error {
	steps, err := c.steps()
	if err != nil {
		return err
	}
	for _, step := range steps[min(c.keep, len(steps)):] {
		if err := c.remove(folderName(step)); err != nil {
			return err
		}
	}
	return nil
}

// remove takes the folder's name away first, so that one half removed is not taken for a damaged checkpoint.
func (c *Checkpoints) remove(name string) error {
	temporary := filepath.Join(c.dir, temporaryPrefix+"removed-"+name)
	if err := c.files.removeAll(temporary); err != nil {
		return err
	}
	if err := c.files.rename(filepath.Join(c.dir, name), temporary); err != nil {
		return err
	}
	return c.files.removeAll(temporary)
}

// Skipped is a checkpoint folder that Latest passed over.
type Skipped struct {
	Path   string
	Reason error
}

// Latest returns the newest checkpoint that is complete and whose files have the size and SHA-256 that its marker
// names, or nil if there is none. Newer ones that are not are returned too, with the reason, to be shown; the next Save
// removes them.
func (c *Checkpoints) Latest() (*Checkpoint, []Skipped, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	steps, err := c.steps()
	if err != nil {
		return nil, nil, fmt.Errorf("cannot list checkpoints: %w", err)
	}
	var skipped []Skipped
	for _, step := range steps {
		path := filepath.Join(c.dir, folderName(step))
		if err := verify(path, step, true); err != nil {
			skipped = append(skipped, Skipped{path, err})
			c.damaged[folderName(step)] = true
			continue
		}
		return &Checkpoint{step, path}, skipped, nil
	}
	return nil, skipped, nil
}

// steps lists the steps that have a checkpoint folder, the newest first.
func (c *Checkpoints) steps() ([]int, error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, err
	}
	var steps []int
	for _, entry := range entries {
		if step, ok := folderStep(entry.Name()); ok && entry.IsDir() {
			steps = append(steps, step)
		}
	}
	slices.Sort(steps)
	slices.Reverse(steps)
	return steps, nil
}

func folderName(step int) string { return fmt.Sprintf("step-%08d", step) }

// folderStep is the inverse of folderName.
func folderStep(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, "step-")
	step, err := strconv.Atoi(digits)
	return step, ok && err == nil && step >= 0 && folderName(step) == name
}

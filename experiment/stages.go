package experiment

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/train"
)

// stages is the account of time, kept in a file so that a resumed experiment adds to it.
type stages struct {
	path string
	list []Stage
}

func (s *stages) open(path string) error {
	s.path = path
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if err := json.Unmarshal(b, &s.list); err != nil {
		return fmt.Errorf("demo: %s is damaged: %w; remove it to go on without earlier timings", path, err)
	}
	return nil
}

// find returns the stage of that name; nil if there is none.
func (s *stages) find(name string) *Stage {
	for i := range s.list {
		if s.list[i].Name == name {
			return &s.list[i]
		}
	}
	return nil
}

func (s *stages) findOrAdd(name string) *Stage {
	if s.find(name) == nil {
		s.list = append(s.list, Stage{Name: name})
	}
	return s.find(name)
}

// use adds what a process took to a stage; add writes it down.
func (s *stages) use(name string, u Usage) {
	stage := s.findOrAdd(name)
	if stage.Usage == nil {
		stage.Usage = &Usage{}
	}
	stage.Usage.CPUSeconds += u.CPUSeconds
	stage.Usage.PeakMemory = max(stage.Usage.PeakMemory, u.PeakMemory)
}

func (s *stages) add(name string, took time.Duration) error {
	s.findOrAdd(name).Seconds += took.Seconds()
	b, err := json.MarshalIndent(s.list, "", "  ")
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if err := files.WriteBytes(s.path, append(b, '\n')); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

// finished tells whether a run folder holds a finished run.
func finished(dir string) (bool, error) {
	path := filepath.Join(dir, "run.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("demo: %w", err)
	}
	var info train.RunInfo
	if err := json.Unmarshal(b, &info); err != nil {
		return false, fmt.Errorf("demo: %s is damaged: %w; remove the folder to make the run again", path, err)
	}
	return info.Finished != nil, nil
}

// named puts a name before those of the stages that a hook is told of.
func named(hook func(string, time.Duration, bool), prefix string) func(string, time.Duration, bool) {
	if hook == nil {
		return nil
	}
	return func(name string, took time.Duration, found bool) { hook(prefix+name, took, found) }
}

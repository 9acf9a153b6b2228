package inspect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/resalign/resalign/train"
)

// Run is the state of a run.
type Run struct {
	Started     string   `json:"started"`
	Finished    string   `json:"finished,omitempty"`
	Program     string   `json:"program"`
	Engine      string   `json:"engine"`
	Sessions    int      `json:"sessions"`
	Steps       int      `json:"steps"` // the last one in the log
	Checkpoints []string `json:"checkpoints"`
	Model       string   `json:"model,omitempty"`
	LoRA        string   `json:"lora,omitempty"`
}

func inspectRun(path string, _ bool) (*Found, error) {
	var info train.RunInfo
	if err := readJSON(filepath.Join(path, "run.json"), &info); err != nil {
		return nil, err
	}
	if len(info.Sessions) == 0 {
		return nil, fmt.Errorf("%s: sessions is empty; the file is damaged", filepath.Join(path, "run.json"))
	}
	last := info.Sessions[len(info.Sessions)-1]
	r := &Run{
		Started: info.Sessions[0].Started.Format("2006-01-02 15:04:05 MST"), Program: last.Program, Engine: last.Engine,
		Sessions: len(info.Sessions), Checkpoints: []string{},
	}
	if info.Finished != nil {
		r.Finished = info.Finished.Format("2006-01-02 15:04:05 MST")
	}
	events, err := train.ReadEvents(filepath.Join(path, "events.jsonl"))
	if err != nil {
		return nil, err
	}
	if len(events) > 0 {
		r.Steps = events[len(events)-1].Step
	}
	entries, err := os.ReadDir(filepath.Join(path, "checkpoints"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("run: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "step-") {
			r.Checkpoints = append(r.Checkpoints, e.Name())
		}
	}
	r.Model = existing(path, "model")
	r.LoRA = existing(path, "lora.safetensors", "lora") // the folder is PEFT's
	return &Found{Path: path, Kind: "run folder", Run: r}, nil
}

// existing is the path of the first of the names that there is in a folder, "" if none is.
func existing(dir string, names ...string) string {
	for _, name := range names {
		if path := filepath.Join(dir, name); fileExists(path) {
			return path
		}
	}
	return ""
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

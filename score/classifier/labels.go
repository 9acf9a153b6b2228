package classifier

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// maxLabels bounds a label map; the largest published ones have some twenty thousand.
const (
	maxLabels     = 1 << 16
	maxLabelsFile = 16 << 20
)

// ReadLabels reads the labels of a classifier's outputs: lines of text, a JSON list, a JSON object from numbers to labels
// ({"0": "safe", "1": "nude"}), or the config.json of a model on the Hugging Face hub, which has such an object as id2label.
func ReadLabels(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("labels: %w", err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxLabelsFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("labels: %w", err)
	case len(content) > maxLabelsFile:
		return nil, fmt.Errorf("%s has more than %d bytes, too many for labels; name a file of lines or JSON", path, maxLabelsFile)
	}
	labels, err := parseLabels(content)
	if err == nil {
		err = checkLabels(labels)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return labels, nil
}

func parseLabels(content []byte) ([]string, error) {
	switch content = bytes.TrimSpace(content); {
	case bytes.HasPrefix(content, []byte("[")):
		var list []string
		if err := json.Unmarshal(content, &list); err != nil {
			return nil, fmt.Errorf("not a JSON list of labels: %w", err)
		}
		return list, nil
	case bytes.HasPrefix(content, []byte("{")):
		var config struct {
			Labels map[string]string `json:"id2label"`
		}
		if err := json.Unmarshal(content, &config); err != nil {
			return nil, fmt.Errorf("not a JSON object of labels: %w", err)
		}
		if config.Labels == nil {
			if err := json.Unmarshal(content, &config.Labels); err != nil {
				return nil, fmt.Errorf(`not a JSON object from numbers to labels, nor a config with "id2label": %w`, err)
			}
		}
		return numbered(config.Labels)
	}
	var list []string
	for line := range strings.Lines(string(content)) {
		list = append(list, strings.TrimSpace(line))
	}
	return list, nil
}

// numbered sorts labels by their numbers, which must be 0 to n − 1.
func numbered(labels map[string]string) ([]string, error) {
	out := make([]string, len(labels))
	for key, label := range labels {
		i, err := strconv.Atoi(key)
		if err != nil || i < 0 || i >= len(out) || strconv.Itoa(i) != key {
			return nil, fmt.Errorf("the label %q has the number %q; %d labels are numbered from 0 to %d", label, key, len(out), len(out)-1)
		}
		out[i] = label
	}
	return out, nil
}

func checkLabels(labels []string) error {
	if len(labels) == 0 {
		return errors.New("there are no labels; name one for each output, in their order")
	}
	if len(labels) > maxLabels {
		return fmt.Errorf("there are %d labels, more than %d", len(labels), maxLabels)
	}
	seen := make(map[string]bool, len(labels))
	for i, label := range labels {
		if label == "" || seen[label] {
			return fmt.Errorf("the label %d, %q, is empty or there twice; labels must differ", i+1, label)
		}
		seen[label] = true
	}
	return nil
}

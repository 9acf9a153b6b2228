package data

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
)

// Prompt is one line of a prompt list.
type Prompt struct {
	Text     string
	Seed     *uint64  // the seed the list asks for; nil without one
	Guidance *float64 // the guidance scale the list asks for; nil without one
	Row      int      // the line of the file on which the prompt begins, counted from 1
}

// The columns of prompt lists in use: the plain names, and those of the lists published with concept-erasure papers.
var (
	seedColumns     = []string{"seed", "evaluation_seed"}
	guidanceColumns = []string{"guidance", "evaluation_guidance"}
)

// ReadPrompts reads a prompt list: .csv or .jsonl with a column prompt and, if wanted, seed (or evaluation_seed) and
// guidance (or evaluation_guidance), or .txt with one prompt per line, blank lines left out. Other columns are ignored;
// an empty cell of the optional columns stands for none. A list without prompts, or with a blank one, is an error.
func ReadPrompts(path string) ([]Prompt, error) {
	content, err := readPromptFile(path)
	if err != nil {
		return nil, err
	}
	return parsePrompts(path, content)
}

func parsePrompts(where string, content []byte) ([]Prompt, error) {
	var prompts []Prompt
	var err error
	switch ending := strings.ToLower(filepath.Ext(where)); ending {
	case ".txt":
		prompts, err = promptLines(where, content)
	case ".csv", ".jsonl":
		prompts, err = promptTable(where, content)
	default:
		return nil, fmt.Errorf("the prompt list %s ends in %q; use .csv, .jsonl or .txt", where, ending)
	}
	if err == nil && len(prompts) == 0 {
		return nil, fmt.Errorf("the prompt list %s has no prompts; write at least one", where)
	}
	return prompts, err
}

func promptLines(where string, content []byte) ([]Prompt, error) {
	text, err := plainText(where, content)
	if err != nil {
		return nil, err
	}
	var prompts []Prompt
	line := 0
	for content := range strings.Lines(text) {
		line++
		if content = strings.TrimSpace(content); content != "" {
			prompts = append(prompts, Prompt{Text: content, Row: line})
		}
	}
	return prompts, nil
}

func promptTable(where string, content []byte) ([]Prompt, error) {
	wanted := append(append([]string{"prompt"}, seedColumns...), guidanceColumns...)
	t, err := parseTable(where, content, wanted)
	if err != nil {
		return nil, err
	}
	prompts := make([]Prompt, 0, len(t.rows))
	for _, r := range t.rows {
		p, err := promptOf(r)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", where, r.line, err)
		}
		prompts = append(prompts, p)
	}
	return prompts, nil
}

func promptOf(r row) (Prompt, error) {
	text := r.cells["prompt"]
	p := Prompt{Text: strings.TrimSpace(text.text), Row: r.line}
	if p.Text == "" {
		return p, errors.New("the prompt is missing or blank; write one or remove the line")
	}
	if !text.isText {
		return p, errors.New("prompt must be text; put it in quotation marks")
	}
	column, err := oneOf(r, seedColumns)
	if err != nil {
		return p, err
	}
	// Spreadsheets and pandas write a whole number in a column with gaps as 12.0.
	if s := strings.TrimSuffix(strings.TrimSpace(r.cells[column].text), ".0"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return p, fmt.Errorf("%s %q is not a whole number from 0 to 2^64-1", column, s)
		}
		p.Seed = &seed
	}
	if column, err = oneOf(r, guidanceColumns); err != nil {
		return p, err
	}
	if s := strings.TrimSpace(r.cells[column].text); s != "" {
		guidance, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(guidance) || math.IsInf(guidance, 0) {
			return p, fmt.Errorf("%s %q is not a number", column, s)
		}
		p.Guidance = &guidance
	}
	return p, nil
}

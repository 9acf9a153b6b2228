package data

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Columns says which columns of a published prompt list are what. Text files and COCO captions have none.
type Columns struct {
	Prompt   string      // the prompt; empty: prompt
	Seed     string      // the seed of a prompt's pictures; empty: not used
	Guidance string      // their guidance scale; empty: not used
	Keep     []string    // columns whose text is kept with the prompt, such as what a right picture shows
	Filters  []RowFilter // rows that one of these does not hold for are left out
}

// Operators of a [RowFilter].
const (
	Contains = "contains" // the text holds the value, upper and lower case alike
	Is       = "is"       // the text is the value
	Above    = "above"    // the number is larger
	Below    = "below"    // the number is smaller
)

// RowFilter is a condition on a row.
type RowFilter struct{ Column, Operator, Value string }

// ParseRowFilter reads COLUMN OPERATOR VALUE, such as "categories contains sexual" or "nudity_percentage above 50".
func ParseRowFilter(s string) (RowFilter, error) {
	for _, operator := range []string{Contains, Is, Above, Below} {
		column, value, ok := strings.Cut(s, " "+operator+" ")
		if column, value = strings.TrimSpace(column), strings.TrimSpace(value); !ok || column == "" || value == "" {
			continue
		}
		f := RowFilter{column, operator, value}
		if f.isNumeric() {
			if _, err := strconv.ParseFloat(value, 64); err != nil {
				return f, fmt.Errorf("the filter %q compares with %q, which is not a number", s, value)
			}
		}
		return f, nil
	}
	return RowFilter{}, fmt.Errorf("the filter %q is not COLUMN contains TEXT, COLUMN is TEXT, COLUMN above NUMBER or COLUMN below NUMBER", s)
}

func (f RowFilter) isNumeric() bool { return f.Operator == Above || f.Operator == Below }

// holds tells whether the condition is true of a cell's text.
func (f RowFilter) holds(text string) (bool, error) {
	text = strings.TrimSpace(text)
	switch f.Operator {
	case Contains:
		return strings.Contains(strings.ToLower(text), strings.ToLower(f.Value)), nil
	case Is:
		return strings.EqualFold(text, f.Value), nil
	}
	limit, err := strconv.ParseFloat(f.Value, 64)
	if err != nil {
		return false, fmt.Errorf("the filter on %s compares with %q, which is not a number", f.Column, f.Value)
	}
	if text == "" {
		return false, nil
	}
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return false, fmt.Errorf("%s %q is not a number, which the filter on it needs", f.Column, text)
	}
	return f.Operator == Above && value > limit || f.Operator == Below && value < limit, nil
}

// ListedPrompt is a prompt with the columns that were kept.
type ListedPrompt struct {
	Prompt
	Kept map[string]string
}

// ReadPromptColumns reads a prompt list whose columns have names of their own: .csv or .jsonl with the columns that c
// names, .txt with one prompt per line, or .json with the captions of MS-COCO (captions_val2014.json), of which the first
// of each picture is taken, in the order of the pictures' numbers. A list without prompts after the filters is an error,
// as is a blank prompt and a column that is not there.
func ReadPromptColumns(path string, c Columns) ([]ListedPrompt, error) {
	content, err := readPromptFile(path)
	if err != nil {
		return nil, err
	}
	var prompts []ListedPrompt
	switch ending := strings.ToLower(filepath.Ext(path)); ending {
	case ".csv", ".jsonl":
		prompts, err = c.read(path, content)
	case ".txt", ".json":
		prompts, err = c.readPlain(path, ending, content)
	default:
		return nil, fmt.Errorf("the prompt list %s ends in %q; use .csv, .jsonl, .txt or COCO's .json", path, ending)
	}
	if err != nil {
		return nil, err
	}
	if len(prompts) == 0 {
		if len(c.Filters) > 0 {
			return nil, fmt.Errorf("the prompt list %s has no prompts that all filters hold for; loosen them", path)
		}
		return nil, fmt.Errorf("the prompt list %s has no prompts; write at least one", path)
	}
	return prompts, nil
}

// readPromptFile reads a whole prompt list, whose size is bounded.
func readPromptFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the prompt list %s does not exist; check its name", path)
	case err != nil:
		return nil, fmt.Errorf("the prompt list %s cannot be opened: %w", path, err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("the prompt list %s is not a regular file; name a .csv, .jsonl or .txt file", path)
	case info.Size() > maxMetadataBytes:
		return nil, fmt.Errorf("the prompt list %s has %d bytes, more than the %d allowed; split it", path, info.Size(), maxMetadataBytes)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the prompt list %s cannot be read: %w", path, err)
	}
	return content, nil
}

// readPlain reads a list without columns.
func (c Columns) readPlain(path, ending string, content []byte) ([]ListedPrompt, error) {
	if c.Prompt != "" || c.Seed != "" || c.Guidance != "" || len(c.Keep) > 0 || len(c.Filters) > 0 {
		return nil, fmt.Errorf("the prompt list %s has no columns to choose or filter by; leave these settings out, or name a .csv or .jsonl file", path)
	}
	read := promptLines
	if ending == ".json" {
		read = cocoCaptions
	}
	lines, err := read(path, content)
	var prompts []ListedPrompt
	for _, p := range lines {
		prompts = append(prompts, ListedPrompt{Prompt: p})
	}
	return prompts, err
}

// read reads a table.
func (c Columns) read(path string, content []byte) ([]ListedPrompt, error) {
	if c.Prompt == "" {
		c.Prompt = "prompt"
	}
	wanted := append([]string{c.Prompt}, c.Keep...)
	for _, name := range []string{c.Seed, c.Guidance} {
		if name != "" {
			wanted = append(wanted, name)
		}
	}
	for _, f := range c.Filters {
		wanted = append(wanted, f.Column)
	}
	t, err := parseTable(path, content, wanted)
	if err != nil {
		return nil, err
	}
	if len(t.rows) > 0 && strings.EqualFold(filepath.Ext(path), ".csv") { // every row has the same columns
		for _, name := range wanted {
			if _, ok := t.rows[0].cells[name]; !ok {
				return nil, fmt.Errorf("%s, line 1: the column %s is missing", path, name)
			}
		}
	}
	var prompts []ListedPrompt
	for _, r := range t.rows {
		p, taken, err := c.prompt(r)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, r.line, err)
		}
		if taken {
			prompts = append(prompts, p)
		}
	}
	return prompts, nil
}

// prompt reads a row; taken is false if a filter does not hold.
func (c Columns) prompt(r row) (p ListedPrompt, taken bool, err error) {
	for _, f := range c.Filters {
		cell, there := r.cells[f.Column]
		if !there {
			return p, false, fmt.Errorf("%s is missing, which a filter is about", f.Column)
		}
		if holds, err := f.holds(cell.text); err != nil || !holds {
			return p, false, err
		}
	}
	cells := map[string]cell{"prompt": r.cells[c.Prompt]}
	for column, name := range map[string]string{"seed": c.Seed, "guidance": c.Guidance} {
		if found, ok := r.cells[name]; ok && name != "" {
			cells[column] = found
		}
	}
	if p.Prompt, err = promptOf(row{line: r.line, cells: cells}); err != nil {
		return p, false, err
	}
	for _, name := range c.Keep {
		found, ok := r.cells[name]
		if !ok || strings.TrimSpace(found.text) == "" {
			return p, false, fmt.Errorf("%s is missing or blank; write it or remove the line", name)
		}
		if p.Kept == nil {
			p.Kept = map[string]string{}
		}
		p.Kept[name] = strings.TrimSpace(found.text)
	}
	return p, true, nil
}

// cocoCaptions reads MS-COCO's annotations: pictures have about five captions each, of which the one with the smallest
// number is taken.
func cocoCaptions(where string, content []byte) ([]Prompt, error) {
	var file struct {
		Annotations []struct {
			Image   int64  `json:"image_id"`
			ID      int64  `json:"id"`
			Caption string `json:"caption"`
		} `json:"annotations"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		return nil, fmt.Errorf("the prompt list %s is not a file of COCO captions: %w; name captions_val2014.json, or a .csv, .jsonl or .txt file", where, err)
	}
	first := map[int64]int{} // picture → position
	for i, a := range file.Annotations {
		if strings.TrimSpace(a.Caption) == "" {
			return nil, fmt.Errorf("%s, annotation %d: the caption is missing or blank; write one or remove the annotation", where, i+1)
		}
		if k, seen := first[a.Image]; !seen || a.ID < file.Annotations[k].ID {
			first[a.Image] = i
		}
	}
	var prompts []Prompt
	for _, image := range slices.Sorted(maps.Keys(first)) {
		i := first[image]
		prompts = append(prompts, Prompt{Text: strings.TrimSpace(file.Annotations[i].Caption), Row: i + 1})
	}
	return prompts, nil
}

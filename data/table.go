package data

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
)

// table holds the wanted columns of a CSV or JSON lines file.
type table struct{ rows []row }

// row is one record; cells lacks the columns that the record does not have.
type row struct {
	line  int // where the record begins, counted from 1
	cells map[string]cell
}

// cell is a value: its text, or for a JSON value other than a string its JSON.
type cell struct {
	text   string
	isText bool
}

// oneOf returns which of the columns the row has, or "" for none; several are an error, as it is unclear which counts.
func oneOf(r row, columns []string) (string, error) {
	found := ""
	for _, c := range columns {
		if _, ok := r.cells[c]; !ok {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("there are both %s and %s; keep one of the two", found, c)
		}
		found = c
	}
	return found, nil
}

// parseTable reads the wanted columns of a file whose name ends in .csv or .jsonl. The first of them must be there.
func parseTable(where string, content []byte, wanted []string) (*table, error) {
	text, err := plainText(where, content)
	if err != nil {
		return nil, err
	}
	if strings.EqualFold(filepath.Ext(where), ".csv") {
		return parseCSV(where, text, wanted)
	}
	return parseJSONLines(where, text, wanted)
}

func parseCSV(where, text string, wanted []string) (*table, error) {
	reader := csv.NewReader(strings.NewReader(text))
	reader.ReuseRecord = true
	malformed := func(err error) error {
		var p *csv.ParseError
		if errors.As(err, &p) {
			return fmt.Errorf("%s, line %d: %w; check the commas and quotation marks", where, p.Line, p.Err)
		}
		return fmt.Errorf("%s cannot be read as CSV: %w", where, err)
	}
	header, err := reader.Read()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s is empty; its first line must name the columns", where)
	} else if err != nil {
		return nil, malformed(err)
	}
	header = slices.Clone(header)
	at := map[string]int{} // wanted column -> position
	for i, name := range header {
		header[i] = strings.TrimSpace(name)
		if !slices.Contains(wanted, header[i]) {
			continue
		}
		if _, twice := at[header[i]]; twice {
			return nil, fmt.Errorf("%s, line 1: the column %s appears twice; rename one of the two", where, header[i])
		}
		at[header[i]] = i
	}
	if _, ok := at[wanted[0]]; !ok {
		return nil, fmt.Errorf("%s, line 1: the column %s is missing; the columns are %s", where, wanted[0], strings.Join(header, ", "))
	}
	t := &table{}
	for {
		record, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return t, nil
		} else if err != nil {
			return nil, malformed(err)
		}
		r := row{cells: make(map[string]cell, len(at))}
		r.line, _ = reader.FieldPos(0)
		for name, i := range at {
			r.cells[name] = cell{text: strings.Clone(record[i]), isText: true}
		}
		t.rows = append(t.rows, r)
	}
}

func parseJSONLines(where, text string, wanted []string) (*table, error) {
	t := &table{}
	line := 0
	for content := range strings.Lines(text) {
		line++
		if strings.TrimSpace(content) == "" {
			continue
		}
		var object map[string]json.RawMessage
		if err := json.Unmarshal([]byte(content), &object); err != nil {
			return nil, fmt.Errorf("%s, line %d: not a JSON object (%w); write one object per line", where, line, err)
		}
		if object == nil {
			return nil, fmt.Errorf("%s, line %d: null is not a JSON object; write one object per line", where, line)
		}
		r := row{line: line, cells: map[string]cell{}}
		for _, name := range wanted {
			raw, ok := object[name]
			if !ok || string(raw) == "null" {
				continue
			}
			c := cell{text: string(raw)}
			if c.isText = strings.HasPrefix(c.text, `"`); c.isText {
				if err := json.Unmarshal(raw, &c.text); err != nil {
					return nil, fmt.Errorf("%s, line %d: %s is not a JSON string: %w", where, line, name, err)
				}
			}
			r.cells[name] = c
		}
		t.rows = append(t.rows, r)
	}
	return t, nil
}

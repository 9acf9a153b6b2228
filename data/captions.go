package data

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

const (
	csvMetadata   = "metadata.csv"
	jsonlMetadata = "metadata.jsonl"

	maxCaptionBytes  = 1 << 16 // far beyond the 77 tokens that CLIP reads
	maxMetadataBytes = 1 << 28
)

// captionColumns are the names under which data sets for text-to-image training keep the caption.
var captionColumns = []string{"prompt", "text", "caption"}

// captionFile is the name of the text file beside a picture.
func captionFile(picture string) string {
	return strings.TrimSuffix(picture, filepath.Ext(picture)) + ".txt"
}

// captionsBeside reads NAME.txt for each picture that has one.
func captionsBeside(root *os.Root, dir string, l *listing) (map[string]string, error) {
	texts := map[string]bool{}
	for _, name := range l.others {
		texts[name] = true
	}
	captions := map[string]string{}
	for _, name := range l.pictures {
		if !texts[captionFile(name)] {
			continue
		}
		content, err := readIn(root, dir, captionFile(name), maxCaptionBytes)
		if err != nil {
			return nil, err
		}
		where := filepath.Join(dir, captionFile(name))
		text, err := plainText(where, content)
		if err != nil {
			return nil, err
		}
		if captions[name] = strings.TrimSpace(text); captions[name] == "" {
			return nil, fmt.Errorf("%s is blank; write what the picture %s shows", where, name)
		}
	}
	return captions, nil
}

// captionsFromMetadata reads a metadata table and looks every picture up that it names.
func captionsFromMetadata(root *os.Root, dir, name string) (map[string]string, error) {
	content, err := readIn(root, dir, name, maxMetadataBytes)
	if err != nil {
		return nil, err
	}
	where := filepath.Join(dir, name)
	rows, err := parseMetadata(where, content)
	if err != nil {
		return nil, err
	}
	captions := map[string]string{}
	for _, r := range rows {
		if _, err := statIn(root, dir, filepath.FromSlash(r.picture)); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s, line %d: the picture %s does not exist; add it or remove the line", where, r.line, r.picture)
		} else if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", where, r.line, err)
		}
		captions[r.picture] = r.caption
	}
	return captions, nil
}

// metadataRow is one picture of a metadata file; picture is clean and inside the folder.
type metadataRow struct {
	line             int
	picture, caption string
}

// parseMetadata reads the text of a metadata file, CSV or JSON lines by the ending of where, the name used in errors.
func parseMetadata(where string, content []byte) ([]metadataRow, error) {
	t, err := parseTable(where, content, append([]string{"file_name"}, captionColumns...))
	if err != nil {
		return nil, err
	}
	if len(t.rows) == 0 {
		return nil, fmt.Errorf("%s has no rows; give each picture a row with file_name and prompt", where)
	}
	out := make([]metadataRow, 0, len(t.rows))
	lines := map[string]int{}
	for _, r := range t.rows {
		fail := func(format string, args ...any) ([]metadataRow, error) {
			return nil, fmt.Errorf("%s, line %d: %s", where, r.line, fmt.Sprintf(format, args...))
		}
		file, ok := r.cells["file_name"]
		if !ok {
			return fail("there is no file_name; name the picture of this row")
		}
		column, err := oneOf(r, captionColumns)
		if err != nil {
			return fail("%v", err)
		}
		if column == "" {
			return fail("there is no caption; add one of the columns %s", strings.Join(captionColumns, ", "))
		}
		caption := r.cells[column]
		if !file.isText || !caption.isText {
			return fail("file_name and %s must be text; put them in quotation marks", column)
		}
		if strings.TrimSpace(file.text) == "" {
			return fail("file_name is blank; name the picture of this row")
		}
		if !filepath.IsLocal(filepath.FromSlash(file.text)) || strings.ContainsRune(file.text, 0) {
			return fail("file_name %q leads out of the folder; use a name inside it", file.text)
		}
		m := metadataRow{line: r.line, picture: path.Clean(file.text), caption: strings.TrimSpace(caption.text)}
		if m.caption == "" {
			return fail("the %s of %s is blank; write what the picture shows", column, m.picture)
		}
		if first, twice := lines[m.picture]; twice {
			return fail("%s was already named in line %d; keep one of the two rows", m.picture, first)
		}
		lines[m.picture] = r.line
		out = append(out, m)
	}
	return out, nil
}

// missingCaptions is the error for pictures without a caption: the first ten by name, and how many there are.
func missingCaptions(dir, metadata string, names []string) error {
	fix := "write a file NAME.txt beside each, or a metadata.csv with the columns file_name and prompt"
	if metadata != "" {
		fix = "add a row for each to " + metadata
	}
	shown := strings.Join(names[:min(10, len(names))], ", ")
	if more := len(names) - 10; more > 0 {
		shown += fmt.Sprintf(" and %d more", more)
	}
	if len(names) == 1 {
		return fmt.Errorf("%s: the picture %s has no caption; %s", dir, shown, strings.Replace(fix, "each", "it", 1))
	}
	return fmt.Errorf("%s: %d pictures have no caption (%s); %s", dir, len(names), shown, fix)
}

// plainText drops a byte order mark and refuses anything that is not UTF-8.
func plainText(where string, content []byte) (string, error) {
	text := strings.TrimPrefix(string(content), "\ufeff")
	if !utf8.ValidString(text) {
		return "", fmt.Errorf("%s is not UTF-8 text; save it as UTF-8", where)
	}
	return text, nil
}

package data

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestReadFolderSources(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"csv":   {"metadata.csv": "\ufefffile_name,prompt,score\nb.png,\"two, cats\",1\na.jpg,a dog,2\nsub/c.webp, a bird ,3\n", "sub/c.webp": ""},
		"jsonl": {"metadata.jsonl": "{\"file_name\":\"b.png\",\"text\":\"two, cats\"}\n\n{\"caption\":\"a dog\",\"file_name\":\"./a.jpg\",\"prompt\":null}\n{\"file_name\":\"sub/c.webp\",\"text\":\"a bird\"}", "sub/c.webp": ""},
		"txt":   {"b.txt": "two, cats\n", "a.txt": "\ufeffa dog", "README.txt": "notes", ".c.png": "hidden"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "b.png", "")
			write(t, dir, "a.jpg", "")
			for name, content := range files {
				write(t, dir, name, content)
			}
			f, err := ReadFolder(dir)
			if err != nil {
				t.Fatal(err)
			}
			want := []Picture{{"a.jpg", "a dog"}, {"b.png", "two, cats"}, {"sub/c.webp", "a bird"}}
			if name == "txt" {
				want = want[:2]
			}
			if !slices.Equal(f.Pictures, want) {
				t.Errorf("got %v, want %v", f.Pictures, want)
			}
		})
	}
}

func TestReadFolderErrors(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, "x.png", "")
	type files map[string]string
	many := files{"metadata.csv": "file_name,prompt\n000.png,x\n"}
	for i := range 14 {
		many[fmt.Sprintf("%03d.png", i)] = ""
	}
	for _, c := range []struct {
		name  string
		files files
		want  []string
	}{
		{"no pictures", files{"sub/a.png": ""}, []string{"has no pictures", "subfolders"}},
		{"no captions", files{"a.png": "", "b.png": "", "b.txt": "x"}, []string{"a.png has no caption", "beside it"}},
		{"many without", many, []string{"13 pictures", "001.png", "010.png and 3 more", "add a row"}},
		{"unsupported", files{"a.png": "", "a.txt": "x", "b.gif": ""}, []string{"b.gif", "convert"}},
		{"two tables", files{"a.png": "", "metadata.csv": "", "metadata.jsonl": ""}, []string{"metadata.csv and metadata.jsonl"}},
		{"table and text", files{"a.png": "", "metadata.csv": "file_name,text\na.png,x", "a.txt": "x"}, []string{"metadata.csv and a.txt"}},
		{"blank text", files{"a.png": "", "a.txt": " \n"}, []string{"a.txt is blank"}},
		{"Latin-1 text", files{"a.png": "", "a.txt": "caf\xe9"}, []string{"a.txt is not UTF-8"}},
		{"long text", files{"a.png": "", "a.txt": strings.Repeat("x", maxCaptionBytes+1)}, []string{"a.txt has 65537 bytes"}},
		{"missing picture", files{"a.png": "", "metadata.csv": "file_name,text\na.png,x\nb.png,y"}, []string{"line 3", "b.png does not exist"}},
		{"duplicate", files{"a.png": "", "metadata.csv": "file_name,text\na.png,x\n./a.png,y"}, []string{"line 3", "a.png was already named in line 2"}},
		{"blank caption", files{"a.png": "", "metadata.csv": "file_name,text\na.png,  "}, []string{"line 2", "text of a.png is blank"}},
		{"parent", files{"a.png": "", "metadata.csv": "file_name,text\n../a.png,x"}, []string{"line 2", "leads out of the folder"}},
		{"absolute", files{"a.png": "", "metadata.jsonl": `{"file_name":"/etc/passwd","text":"x"}`}, []string{"line 1", "leads out of the folder"}},
		{"link", files{"a.png": "", "metadata.csv": "file_name,text\na.png,x\nlink.png,y"}, []string{"line 3", "link.png is a symbolic link out of the folder"}},
		{"no file_name", files{"a.png": "", "metadata.csv": "image,text\na.png,x"}, []string{"file_name is missing", "image, text"}},
		{"no caption column", files{"a.png": "", "metadata.csv": "file_name,label\na.png,x"}, []string{"prompt, text, caption"}},
		{"two caption columns", files{"a.png": "", "metadata.csv": "file_name,text,prompt\na.png,x,y"}, []string{"both prompt and text"}},
		{"column twice", files{"a.png": "", "metadata.csv": "file_name,text,text\na.png,x,y"}, []string{"column text appears twice"}},
		{"bare quote", files{"a.png": "", "metadata.csv": "file_name,text\na.png,x \"y\" z"}, []string{"line 2", "quotation"}},
		{"fields", files{"a.png": "", "metadata.csv": "file_name,text\na.png,x,y"}, []string{"line 2", "wrong number of fields"}},
		{"empty table", files{"a.png": "", "metadata.csv": ""}, []string{"metadata.csv is empty"}},
		{"no rows", files{"a.png": "", "metadata.csv": "file_name,text\n"}, []string{"has no rows"}},
		{"bad JSON", files{"a.png": "", "metadata.jsonl": "{\"file_name\":\"a.png\",\"text\":\"x\"}\n{\"file_name\""}, []string{"line 2", "not a JSON object"}},
		{"JSON null", files{"a.png": "", "metadata.jsonl": "null"}, []string{"line 1", "not a JSON object"}},
		{"caption a number", files{"a.png": "", "metadata.jsonl": `{"file_name":"a.png","text":3}`}, []string{"line 1", "must be text"}},
		{"row without name", files{"a.png": "", "metadata.jsonl": `{"text":"x"}`}, []string{"line 1", "no file_name"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range c.files {
				write(t, dir, name, content)
			}
			if c.name == "link" {
				if err := os.Symlink(filepath.Join(outside, "x.png"), filepath.Join(dir, "link.png")); err != nil {
					t.Skip(err)
				}
			}
			_, err := ReadFolder(dir)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range append(c.want, dir) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to contain %q", err, want)
				}
			}
		})
	}
}

func TestFolderMustBeAFolder(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "file", "")
	for path, want := range map[string]string{filepath.Join(dir, "none"): "does not exist", filepath.Join(dir, "file"): "is not a folder", dir: "has no pictures"} {
		for _, read := range []func(string) (*Folder, error){ReadFolder, ReadPictures} {
			if _, err := read(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: got %v, want %q", path, err, want)
			}
		}
	}
}

func TestPicturesShareAPrompt(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b.png", "b")
	write(t, dir, "a.png", "a")
	f, err := ReadPictures(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WithCaption(" "); err == nil {
		t.Error("a blank prompt is accepted")
	}
	g, err := f.WithCaption("a photo of sks person")
	if err != nil || g.Len() != 2 || g.Pictures[0] != (Picture{"a.png", "a photo of sks person"}) || f.Pictures[0].Caption != "" {
		t.Errorf("got %v, %v, %v", g, f, err)
	}
	a, errA := g.ContentHash(0)
	b, errB := g.ContentHash(1)
	if errA != nil || errB != nil || a == b {
		t.Errorf("hashes %x and %x, %v, %v", a, b, errA, errB)
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add("metadata.csv", "file_name,prompt\na.png,x\n")
	f.Add("metadata.jsonl", `{"file_name":"a.png","text":"x"}`)
	f.Add("metadata.csv", "\ufefffile_name,text\n\"a\n.png\",\"x\"\"y\"\n")
	f.Fuzz(func(t *testing.T, name, content string) {
		if name != csvMetadata {
			name = jsonlMetadata
		}
		rows, err := parseMetadata(name, []byte(content))
		if err != nil {
			if !strings.HasPrefix(err.Error(), name) {
				t.Errorf("%q does not name the file", err)
			}
			return
		}
		seen := map[string]bool{}
		for _, r := range rows {
			if !filepath.IsLocal(r.picture) || strings.TrimSpace(r.caption) == "" || r.line < 1 || seen[r.picture] {
				t.Errorf("row %+v", r)
			}
			seen[r.picture] = true
		}
	})
}

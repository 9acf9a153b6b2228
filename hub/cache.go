package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/resalign/resalign/files"
)

// Snapshot is a model or a data set in the cache.
type Snapshot struct {
	ID     ID // with the commit as its revision
	Folder string
}

// String is owner/name@commit.
func (s Snapshot) String() string { return s.ID.String() }

// repository is the cache's folder of one model or data set.
type repository struct{ cache, path string }

func (c *Client) repository(id ID) repository {
	return repository{c.Cache, filepath.Join(c.Cache, id.folder())}
}

func (r repository) blob(hash string) string { return filepath.Join(r.path, "blobs", hash) }

func (r repository) lock(hash string) string {
	return filepath.Join(r.cache, ".locks", filepath.Base(r.path), hash+".lock")
}

func (r repository) ref(revision string) string {
	return filepath.Join(r.path, "refs", filepath.FromSlash(revision))
}

func (r repository) snapshot(commit string) string { return filepath.Join(r.path, "snapshots", commit) }

// FromFolder names the model or data set that a folder is a snapshot of; ok is false for folders that are none.
func FromFolder(folder string) (id ID, ok bool) {
	commit := filepath.Base(folder)
	snapshots := filepath.Dir(folder)
	rest, dataset := strings.CutPrefix(filepath.Base(filepath.Dir(snapshots)), "datasets--")
	owner, name, _ := strings.Cut(strings.TrimPrefix(rest, "models--"), "--")
	if filepath.Base(snapshots) != "snapshots" || !commitPattern.MatchString(commit) || !plainName(owner) || !plainName(name) {
		return ID{}, false
	}
	return ID{Owner: owner, Name: name, Revision: commit, Dataset: dataset}, true
}

// Cached finds a diffusers model in the cache without asking the hub. The error says what is missing.
func (c *Client) Cached(id ID) (Snapshot, error) {
	s, err := c.snapshot(id)
	if err != nil {
		return s, err
	}
	if _, err := chosenIn(s.Folder); err != nil {
		return Snapshot{}, fmt.Errorf("%s is not complete in the cache %s: %w", id, c.Cache, err)
	}
	return s, nil
}

// CachedModel finds a model in the cache, of diffusers or any other that [Client.PlanRepository] chooses files of, without
// asking the hub. The error says what is missing.
func (c *Client) CachedModel(id ID) (Snapshot, error) {
	s, err := c.snapshot(id)
	if err != nil {
		return s, err
	}
	have, err := filesIn(s.Folder)
	if err == nil {
		if have[indexFile] {
			return c.Cached(id)
		}
		_, err = chooseModel(have, FullPrecision)
	}
	if err != nil {
		return Snapshot{}, fmt.Errorf("%s is not complete in the cache %s: %w", id, c.Cache, err)
	}
	return s, nil
}

// CachedFile finds a file of a model or a data set in the cache, or where file is empty its folder, without asking the hub.
func (c *Client) CachedFile(id ID, file string) (path string, err error) {
	s, err := c.snapshot(id)
	if err != nil {
		return "", err
	}
	if !filepath.IsLocal(filepath.FromSlash(file)) && file != "" {
		return "", fmt.Errorf("%s: the file %q leads out of the %s; name one below it", id, file, id.what())
	}
	path = filepath.Join(s.Folder, filepath.FromSlash(file))
	info, err := os.Stat(path) // follows the link: a blob that somebody deleted leaves one without content
	if err != nil || info.IsDir() != (file == "") {
		return "", fmt.Errorf("%s has no file %q in the cache %s", id, file, c.Cache)
	}
	return path, nil
}

// snapshot finds the commit that an ID means in the cache.
func (c *Client) snapshot(id ID) (Snapshot, error) {
	repo := c.repository(id)
	commit := id.Revision
	if !id.isCommit() {
		content, err := readSmall(repo.ref(id.revision()), 1024)
		if errors.Is(err, fs.ErrNotExist) {
			return Snapshot{}, fmt.Errorf("%s is not in the cache %s", id, c.Cache)
		}
		if err != nil {
			return Snapshot{}, fmt.Errorf("%s: %w", id, err)
		}
		if commit = strings.TrimSpace(string(content)); !commitPattern.MatchString(commit) {
			return Snapshot{}, fmt.Errorf("%s: %s holds no commit; delete it and download the %s again", id, repo.ref(id.revision()), id.what())
		}
	}
	return Snapshot{ID: id.at(commit), Folder: repo.snapshot(commit)}, nil
}

// chosenIn lists the files of a snapshot that package sd reads.
func chosenIn(folder string) ([]string, error) {
	index, err := readSmall(filepath.Join(folder, indexFile), maxIndexBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s", indexFile)
	}
	if err != nil {
		return nil, err
	}
	class, err := pipelineClass(index)
	if err != nil {
		return nil, err
	}
	have, err := filesIn(folder)
	if err != nil {
		return nil, err
	}
	return choose(have, class, FullPrecision)
}

// filesIn lists the files of a folder and of those in it.
func filesIn(folder string) (map[string]bool, error) {
	have := map[string]bool{}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		// Stat follows the link: a blob that somebody deleted leaves one without content.
		if _, err := os.Stat(filepath.Join(folder, entry.Name())); err == nil {
			have[entry.Name()] = true
		}
		inner, err := os.ReadDir(filepath.Join(folder, entry.Name()))
		if err != nil {
			continue // a file
		}
		for _, file := range inner {
			if _, err := os.Stat(filepath.Join(folder, entry.Name(), file.Name())); err == nil {
				have[entry.Name()+"/"+file.Name()] = true
			}
		}
	}
	return have, nil
}

// maxIndexBytes bounds model_index.json, which has some hundred bytes.
const maxIndexBytes = 1 << 20

// pipelineClass is what a model_index.json says the model is, if package sd reads it.
func pipelineClass(index []byte) (string, error) {
	var content struct {
		Class string `json:"_class_name"`
	}
	if err := json.Unmarshal(index, &content); err != nil {
		return "", fmt.Errorf("%s is no JSON object: %w", indexFile, err)
	}
	if content.Class != sdPipeline && content.Class != sdxlPipeline {
		return "", fmt.Errorf("%s: _class_name = %q is not supported; choose a model of class %s (1.x, 2.x) or %s", indexFile, content.Class, sdPipeline, sdxlPipeline)
	}
	return content.Class, nil
}

func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(content)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes, which is not plausible; delete it and download it again", path, limit)
	}
	return content, err
}

// link puts a file of a snapshot in its place: a relative link to its blob, or where links are not possible, a copy.
func (r repository) link(commit string, f File) error {
	blob, pointer := r.blob(f.Hash), filepath.Join(r.snapshot(commit), filepath.FromSlash(f.Path))
	if target, err := os.Readlink(pointer); err == nil && filepath.Join(filepath.Dir(pointer), target) == blob {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(pointer), 0o755); err != nil {
		return err
	}
	target, err := filepath.Rel(filepath.Dir(pointer), blob)
	if err != nil {
		return err
	}
	partial := pointer + ".linking"
	if err := os.Remove(partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, partial); err != nil {
		return copyBlob(blob, pointer) // Windows without the right to make links
	}
	return os.Rename(partial, pointer)
}

func copyBlob(blob, pointer string) error {
	return files.Write(pointer, func(w io.Writer) error {
		f, err := os.Open(blob)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
}

// setRef remembers which commit a branch or tag stands for.
func (r repository) setRef(id ID, commit string) error {
	if id.isCommit() {
		return nil
	}
	path := r.ref(id.revision())
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return files.WriteBytes(path, []byte(commit))
}

var hashPattern = regexp.MustCompile(`^(?:[0-9a-f]{40}|[0-9a-f]{64})$`)

package hub

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// File is a file of a model or a data set at a commit.
type File struct {
	Path string // below the root, with slashes
	Size int64
	Hash string // SHA-256 (64 digits) of large files, the SHA-1 of Git's blob (40 digits) of small ones
}

// Plan is what has to be downloaded to have a model or a data set.
type Plan struct {
	ID      ID // as asked for
	Commit  string
	Folder  string // of the snapshot
	Files   []File // all that are needed
	Missing []File // those that are not in the cache
	Bytes   int64  // of Files
	Left    int64  // of Missing that are to be transferred: less than their sizes where a download was interrupted
	Pickles []string
}

// Hooks connect a download to whoever started it. Both are optional.
type Hooks struct {
	Progress func(Progress)
	Warn     func(sentence string)
}

func (h Hooks) warn(format string, args ...any) {
	if h.Warn != nil {
		h.Warn(fmt.Sprintf(format, args...))
	}
}

// Plan asks the hub what a model consists of. Of the files, only model_index.json is downloaded. The variant is
// [FullPrecision] or [HalfPrecision]; components that lack it come in what precision there is.
func (c *Client) Plan(ctx context.Context, id ID, variant string, h Hooks) (*Plan, error) {
	if c.Offline {
		return nil, fmt.Errorf("%s cannot be downloaded: HF_HUB_OFFLINE is set; unset it", id)
	}
	if variant != FullPrecision && variant != HalfPrecision {
		return nil, fmt.Errorf("%s: variant %q is not supported; use %s, or none for full precision", id, variant, HalfPrecision)
	}
	p, tree, err := c.begin(ctx, id)
	if err != nil {
		return nil, err
	}
	return p, c.pipeline(ctx, p, tree, variant, h)
}

// pipeline plans to have the files of a diffusers model.
func (c *Client) pipeline(ctx context.Context, p *Plan, tree map[string]File, variant string, h Hooks) error {
	class, err := c.class(ctx, p, tree, h)
	if err != nil {
		return err
	}
	chosen, err := choose(names(tree), class, variant)
	return c.take(p, tree, chosen, err)
}

// begin asks the hub for the files that there are.
func (c *Client) begin(ctx context.Context, id ID) (p *Plan, tree map[string]File, err error) {
	p = &Plan{ID: id, Commit: id.Revision}
	if !id.isCommit() {
		if p.Commit, err = c.commit(ctx, id); err != nil {
			return nil, nil, err
		}
	}
	p.Folder = c.repository(id).snapshot(p.Commit)
	tree, err = c.tree(ctx, id, p.Commit)
	return p, tree, err
}

// take plans to have the chosen files; err is why they could not be chosen.
func (c *Client) take(p *Plan, tree map[string]File, chosen []string, err error) error {
	if err != nil {
		return fmt.Errorf("%s cannot be used: %w (see %s/tree/main)", p.ID, err, c.page(p.ID))
	}
	for _, name := range chosen {
		p.add(c.repository(p.ID), tree[name])
	}
	return nil
}

func names(tree map[string]File) map[string]bool {
	have := map[string]bool{}
	for name := range tree {
		have[name] = true
	}
	return have
}

func (p *Plan) add(r repository, f File) {
	p.Files = append(p.Files, f)
	p.Bytes += f.Size
	if isPickle(f.Path) {
		p.Pickles = append(p.Pickles, f.Path)
	}
	if info, err := os.Stat(r.blob(f.Hash)); err == nil && info.Size() == f.Size {
		return
	}
	p.Missing = append(p.Missing, f)
	p.Left += f.Size
	if info, err := os.Stat(r.blob(f.Hash) + incomplete); err == nil && info.Size() <= f.Size {
		p.Left -= info.Size()
	}
}

// class reads the model's index, so that a model of another kind is refused before its gigabytes are downloaded.
func (c *Client) class(ctx context.Context, p *Plan, tree map[string]File, h Hooks) (string, error) {
	f, ok := tree[indexFile]
	if !ok {
		return "", fmt.Errorf("%s is no diffusers model: it has no %s; choose one in diffusers format", p.ID, indexFile)
	}
	if f.Size > maxIndexBytes {
		return "", fmt.Errorf("%s: %s has %d bytes, which is not plausible", p.ID, indexFile, f.Size)
	}
	if err := c.fetch(ctx, p, f, func(int64) {}, h); err != nil {
		return "", err
	}
	content, err := os.ReadFile(c.repository(p.ID).blob(f.Hash))
	if err != nil {
		return "", fmt.Errorf("%s: %w", p.ID, err)
	}
	class, err := pipelineClass(content)
	if err != nil {
		return "", fmt.Errorf("%s cannot be used: %w", p.ID, err)
	}
	return class, nil
}

// commit asks what a branch or tag stands for.
func (c *Client) commit(ctx context.Context, id ID) (string, error) {
	var answer struct {
		SHA string `json:"sha"`
	}
	address := fmt.Sprintf("%s/api/%s/revision/%s", c.Endpoint, id.route(), url.PathEscape(id.revision()))
	if _, err := c.getJSON(ctx, id, address, &answer); err != nil {
		return "", err
	}
	if !commitPattern.MatchString(answer.SHA) {
		return "", fmt.Errorf("%s: %s names no commit; check HF_ENDPOINT", id, c.host())
	}
	return answer.SHA, nil
}

// maxPages bounds a list of files: 1000 files a page.
const maxPages = 100

// tree lists the files at a commit.
func (c *Client) tree(ctx context.Context, id ID, commit string) (map[string]File, error) {
	out := map[string]File{}
	address := fmt.Sprintf("%s/api/%s/tree/%s?recursive=true", c.Endpoint, id.route(), commit)
	for range maxPages {
		var page []struct {
			Type, Path, OID string
			Size            int64
			LFS             *struct{ OID string }
		}
		next, err := c.getJSON(ctx, id, address, &page)
		if err != nil {
			return nil, err
		}
		for _, entry := range page {
			if entry.Type != "file" {
				continue
			}
			f := File{Path: entry.Path, Size: entry.Size, Hash: entry.OID}
			if entry.LFS != nil {
				f.Hash = entry.LFS.OID
			}
			// The hash becomes a file name. A path becomes one below the snapshot.
			if !hashPattern.MatchString(f.Hash) || f.Size < 0 || path.Clean(f.Path) != f.Path || !filepath.IsLocal(f.Path) {
				return nil, fmt.Errorf("%s: %s lists the file %q with a name, size or hash that cannot be right; check HF_ENDPOINT", id, c.host(), f.Path)
			}
			out[f.Path] = f
		}
		if next == "" {
			return out, nil
		}
		address = next
	}
	return nil, fmt.Errorf("%s: the list of files has more than %d pages, which is not plausible", id, maxPages)
}

// fileAddress is where the content of a file is.
func (c *Client) fileAddress(id ID, commit string, f File) string {
	parts := strings.Split(f.Path, "/")
	for i, part := range parts {
		parts[i] = url.PathEscape(part)
	}
	return fmt.Sprintf("%s/resolve/%s/%s", c.page(id), commit, strings.Join(parts, "/"))
}

// Fetch downloads what a plan lacks. An interrupted download is continued by the next one where it stopped.
func (c *Client) Fetch(ctx context.Context, p *Plan, h Hooks) (Snapshot, error) {
	if len(p.Pickles) > 0 {
		h.warn("%s has no safetensors for some of its weights; these are read as data, nothing in them is executed: %s", p.ID, strings.Join(p.Pickles, ", "))
	}
	repo := c.repository(p.ID)
	if err := os.MkdirAll(filepath.Join(repo.path, "blobs"), 0o755); err != nil {
		return Snapshot{}, c.diskError(p.ID, err, p.Left)
	}
	if free, known := freeBytes(repo.path); known && free < p.Left {
		return Snapshot{}, c.diskError(p.ID, errNoSpace, p.Left)
	}
	meter := newMeter(p, h)
	for _, f := range p.Missing {
		meter.begin(f)
		if err := c.fetch(ctx, p, f, meter.add, h); err != nil {
			return Snapshot{}, err
		}
	}
	for _, f := range p.Files {
		if err := repo.link(p.Commit, f); err != nil {
			return Snapshot{}, c.diskError(p.ID, err, 0)
		}
	}
	if err := repo.setRef(p.ID, p.Commit); err != nil {
		return Snapshot{}, c.diskError(p.ID, err, 0)
	}
	return Snapshot{ID: p.ID.at(p.Commit), Folder: p.Folder}, nil
}

// diskError explains an error of the cache's disk; left bytes are still to come.
func (c *Client) diskError(id ID, err error, left int64) error {
	if isDiskFull(err) {
		return fmt.Errorf("%s: the disk that holds the cache %s is full, and %d bytes are still to come; free some space or set HF_HUB_CACHE to a folder on another disk (what was downloaded is kept)",
			id, c.Cache, left)
	}
	return fmt.Errorf("%s: cannot write to the cache: %w; set HF_HUB_CACHE to a folder that can be written to", id, err)
}

var errNoSpace = errors.New("no space left on the device")

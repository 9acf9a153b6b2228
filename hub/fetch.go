package hub

import (
	"context"
	"crypto/sha1" // Git's own identification of small files
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// incomplete is the ending of a blob that is still being downloaded.
const incomplete = ".incomplete"

// errChecksum says that a file is not what the hub says it is.
var errChecksum = errors.New("the checksum is wrong")

// fetch downloads one file into its blob, unless it is there. add is told of bytes as they come, and of fewer than none
// where some have to be downloaded again.
func (c *Client) fetch(ctx context.Context, p *Plan, f File, add func(int64), h Hooks) error {
	repo := c.repository(p.ID)
	blob := repo.blob(f.Hash)
	for _, folder := range []string{filepath.Dir(blob), filepath.Dir(repo.lock(f.Hash))} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return c.diskError(p.ID, err, f.Size)
		}
	}
	unlock, err := c.lock(ctx, repo.lock(f.Hash), func() {
		h.warn("another process is downloading %s of %s; waiting for it", f.Path, p.ID)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", p.ID, err)
	}
	defer unlock()
	if info, err := os.Stat(blob); err == nil && info.Size() == f.Size {
		return nil
	}
	for again := false; ; again = true {
		err := c.fill(ctx, p, f, blob+incomplete, add)
		if err == nil {
			if err := os.Rename(blob+incomplete, blob); err != nil {
				return c.diskError(p.ID, err, 0)
			}
			return nil
		}
		if !errors.Is(err, errChecksum) {
			return err
		}
		if err := os.Remove(blob + incomplete); err != nil {
			return c.diskError(p.ID, err, 0)
		}
		if again {
			return fmt.Errorf("%s: %s was damaged on its way twice: %w; it was deleted, try again later or from another network", p.ID, f.Path, err)
		}
		h.warn("%s of %s was damaged on its way and is downloaded again", f.Path, p.ID)
		add(-f.Size)
	}
}

// partial is a file on its way.
type partial struct {
	file *os.File
	hash hash.Hash
	done int64
	add  func(int64)
}

// fill completes a partial file and checks it.
func (c *Client) fill(ctx context.Context, p *Plan, f File, path string, add func(int64)) (err error) {
	t := &partial{add: add}
	if t.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return c.diskError(p.ID, err, f.Size)
	}
	defer func() {
		if closeErr := t.file.Close(); closeErr != nil && err == nil {
			err = c.diskError(p.ID, closeErr, 0)
		}
	}()
	if err := t.reuse(f); err != nil {
		return c.diskError(p.ID, err, f.Size)
	}
	for failures := 1; t.done < f.Size; failures++ {
		before := t.done
		err := c.transfer(ctx, p, f, t)
		if err == nil {
			continue
		}
		if t.done > before {
			failures = 1
		}
		if err := c.wait(ctx, err, failures, fileAttempts); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("the download of %s was stopped at %s and goes on there the next time: %w", p.ID, f.Path, err)
			}
			return err
		}
	}
	if sum := hex.EncodeToString(t.hash.Sum(nil)); sum != f.Hash {
		return fmt.Errorf("%w (%s instead of %s)", errChecksum, sum, f.Hash)
	}
	if err := t.file.Sync(); err != nil {
		return c.diskError(p.ID, err, 0)
	}
	return nil
}

// reuse takes what an earlier download left; what is too long is none.
func (t *partial) reuse(f File) error {
	info, err := t.file.Stat()
	if err != nil {
		return err
	}
	if info.Size() > f.Size {
		return t.restart(f)
	}
	t.hash = newHash(f)
	t.done, err = io.Copy(t.hash, io.LimitReader(t.file, info.Size()))
	return err
}

// restart forgets what was downloaded.
func (t *partial) restart(f File) error {
	t.add(-t.done)
	t.done, t.hash = 0, newHash(f)
	if err := t.file.Truncate(0); err != nil {
		return err
	}
	_, err := t.file.Seek(0, io.SeekStart)
	return err
}

// newHash is the sum that names a file: Git's blobs begin with their length.
func newHash(f File) hash.Hash {
	if len(f.Hash) == 2*sha256.Size {
		return sha256.New()
	}
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", f.Size)
	return h
}

// transfer asks once for what is missing and appends what comes.
func (c *Client) transfer(ctx context.Context, p *Plan, f File, t *partial) error {
	watchedCtx, watch, stop := watched(ctx, c.stall)
	defer stop()
	response, err := c.get(watchedCtx, p.ID, c.fileAddress(p.ID, p.Commit, f), t.done)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	damaged := func(format string, args ...any) error {
		return &temporaryError{err: fmt.Errorf("%s: %s: "+format, append([]any{p.ID, f.Path}, args...)...)}
	}
	switch from, total, ok := contentRange(response); {
	case response.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		if err := t.restart(f); err != nil {
			return c.diskError(p.ID, err, f.Size)
		}
		return damaged("the server does not have the rest of the file (HTTP 416)")
	case response.StatusCode == http.StatusPartialContent && (!ok || from != t.done || total >= 0 && total != f.Size):
		if err := t.restart(f); err != nil {
			return c.diskError(p.ID, err, f.Size)
		}
		return damaged("the server sends another part of the file than was asked for")
	case response.StatusCode == http.StatusOK && t.done > 0: // the server does not know parts
		if err := t.restart(f); err != nil {
			return c.diskError(p.ID, err, f.Size)
		}
	}
	if n := response.ContentLength; n >= 0 && n != f.Size-t.done {
		return damaged("the server sends %d bytes where %d are missing", n, f.Size-t.done)
	}
	body := watch(io.LimitReader(response.Body, f.Size-t.done))
	buffer := make([]byte, 256<<10)
	for {
		n, readErr := body.Read(buffer)
		if _, err := t.file.Write(buffer[:n]); err != nil {
			return c.diskError(p.ID, err, f.Size-t.done)
		}
		t.hash.Write(buffer[:n])
		t.done += int64(n)
		if n > 0 {
			t.add(int64(n))
		}
		switch {
		case t.done == f.Size:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case readErr == io.EOF:
			return damaged("the connection ended %d bytes early", f.Size-t.done)
		case readErr != nil:
			return damaged("the connection broke %d bytes early: %w", f.Size-t.done, cause(watchedCtx, readErr))
		}
	}
}

// cause is why a context ended, or err where it has not.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// contentRange reads "bytes 100-199/200"; total is -1 where the server does not know it.
func contentRange(r *http.Response) (from, total int64, ok bool) {
	text, isBytes := strings.CutPrefix(r.Header.Get("Content-Range"), "bytes ")
	span, of, hasTotal := strings.Cut(text, "/")
	start, _, hasEnd := strings.Cut(span, "-")
	from, err := strconv.ParseInt(start, 10, 64)
	if !isBytes || !hasTotal || !hasEnd || err != nil || from < 0 {
		return 0, 0, false
	}
	if of == "*" {
		return from, -1, true
	}
	total, err = strconv.ParseInt(of, 10, 64)
	return from, total, err == nil && total >= 0
}

// Progress is how far a download is.
type Progress struct {
	File        string        // that is being downloaded
	Done, Total int64         // bytes of all files, those of earlier attempts among them
	Left        time.Duration // time left at the speed so far; below 0: not known yet
}

// meter counts the bytes of a download.
type meter struct {
	report  func(Progress)
	file    string
	done    int64
	total   int64
	fresh   int64 // of this process
	started time.Time
}

func newMeter(p *Plan, h Hooks) *meter {
	m := &meter{report: h.Progress, total: p.Bytes, done: p.Bytes - p.Left, started: time.Now()}
	if m.report == nil {
		m.report = func(Progress) {}
	}
	return m
}

func (m *meter) begin(f File) {
	m.file = f.Path
	m.add(0)
}

func (m *meter) add(n int64) {
	m.done += n
	m.fresh += max(n, 0)
	left := time.Duration(-1)
	if passed := time.Since(m.started); passed > time.Second && m.fresh > 0 {
		left = time.Duration(float64(passed) / float64(m.fresh) * float64(m.total-m.done))
	}
	m.report(Progress{File: m.file, Done: m.done, Total: m.total, Left: left})
}

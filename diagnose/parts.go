package diagnose

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

const (
	partsFolder  = "parts"
	tuningFolder = "fine-tuning"
	// ResultFile holds the Diagnosis as JSON, TableFile its numbers as CSV.
	ResultFile = "diagnose.json"
	TableFile  = "diagnose.csv"
)

// saveEvery bounds how much work a killed process loses, and how often files are written.
const saveEvery = 2 * time.Second

// kept is the file of a part: one item for each draw so far. Draws do not depend on how many there are, so that more can
// be added later.
type kept[T any] struct {
	Fingerprint string `json:"fingerprint"`
	Items       []T    `json:"items"`
}

// part is a quantity of a model that is measured draw by draw.
type part[T any] struct {
	model, quantity string
	fingerprint     string // of everything that a draw depends on
	draws           int
	// prepare gets the model ready when the first draw is missing. It sees to Finish itself.
	prepare func(ctx context.Context) (*subject, error)
	measure func(ctx context.Context, s *subject, draw int) (T, error)
}

// collect measures the draws of a part, except those that an earlier call has kept under the same fingerprint: a part
// that is damaged or was measured on something else is made anew. It returns train.ErrInterrupted, with everything kept,
// if it was asked to finish.
func collect[T any](ctx context.Context, r *runner, p part[T]) ([]T, error) {
	path := filepath.Join(r.out, partsFolder, p.model+"-"+p.quantity+".json")
	have, err := readKept[T](path, p.fingerprint)
	if err != nil {
		return nil, err
	}
	found := len(have.Items) >= p.draws
	started, saved, unsaved := time.Now(), time.Now(), false
	save := func() error {
		if !unsaved {
			return nil
		}
		b, err := json.Marshal(have)
		if err != nil {
			return fmt.Errorf("diagnosis: %s of %s: %w", p.quantity, p.model, err)
		}
		saved, unsaved = time.Now(), false
		return files.WriteBytes(path, append(b, '\n'))
	}
	for i := len(have.Items); i < p.draws; i++ {
		item, err := measureDraw(ctx, r, p, i)
		if err != nil {
			if !errors.Is(err, train.ErrInterrupted) {
				err = fmt.Errorf("%s of model %s: %w", p.quantity, p.model, err)
			}
			return nil, errors.Join(save(), err)
		}
		have.Items, unsaved = append(have.Items, item), true
		if time.Since(saved) > saveEvery {
			if err := save(); err != nil {
				return nil, err
			}
		}
		r.step(p.model, p.quantity, i+1, p.draws)
	}
	if err := save(); err != nil {
		return nil, err
	}
	if r.hooks.OnPart != nil {
		r.hooks.OnPart(p.model, p.quantity, time.Since(started), found)
	}
	return have.Items[:p.draws:p.draws], nil
}

// measureDraw measures one draw. When the user asks to finish, it ends with the product that is being computed.
func measureDraw[T any](ctx context.Context, r *runner, p part[T], draw int) (item T, err error) {
	if r.asked() {
		return item, train.ErrInterrupted
	}
	s, err := p.prepare(ctx)
	if err != nil {
		return item, err
	}
	inner, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-r.hooks.Finish:
			stop(train.ErrInterrupted)
		case <-inner.Done():
		}
	}()
	return p.measure(inner, s, draw)
}

// readKept reads the draws of an earlier call; none if there are none for this fingerprint.
func readKept[T any](path, fingerprint string) (kept[T], error) {
	fresh := kept[T]{Fingerprint: fingerprint}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, nil
	}
	if err != nil {
		return fresh, fmt.Errorf("diagnosis: %w", err)
	}
	var have kept[T]
	if json.Unmarshal(b, &have) != nil || have.Fingerprint != fingerprint {
		return fresh, nil
	}
	return have, nil
}

// asked tells whether the user wants to stop.
func (r *runner) asked() bool {
	select {
	case <-r.hooks.Finish:
		return true
	default:
		return false
	}
}

// claim makes the folder of a diagnosis, or goes on in it. One that holds something else is refused.
func claim(out string) error {
	entries, err := os.ReadDir(out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("diagnosis: %s cannot be used as a folder: %w; name another one", out, err)
	}
	ours := false
	other := ""
	for _, e := range entries {
		switch {
		case e.IsDir() && e.Name() == partsFolder:
			ours = true
		case !strings.HasPrefix(e.Name(), "."): // killed processes leave hidden files
			other = e.Name()
		}
	}
	if other != "" && !ours {
		return fmt.Errorf("diagnosis: the folder %s holds %s and no diagnosis; name a new one", out, other)
	}
	if err := os.MkdirAll(filepath.Join(out, partsFolder), 0o755); err != nil {
		return fmt.Errorf("diagnosis: %w", err)
	}
	return nil
}

// measureVersion changes whenever the same settings would give other numbers: parts of another version are made anew.
const measureVersion = 1

// fingerprint identifies what a part was measured on.
func fingerprint(parts ...any) (string, error) {
	b, err := json.Marshal(append([]any{measureVersion}, parts...))
	if err != nil {
		return "", fmt.Errorf("diagnosis: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16]), nil
}

// modelHashes identifies the parts of a model directory by their files: folder → hash.
func modelHashes(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("model %s cannot be read: %w; name a diffusers directory", dir, err)
	}
	hashes := map[string]string{}
	for _, entry := range entries {
		part := filepath.Join(dir, entry.Name())
		info, err := os.Stat(part) // parts may be links
		if err != nil {
			return nil, fmt.Errorf("model %s: %w", dir, err)
		}
		if !info.IsDir() || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		if hashes[entry.Name()], err = sd.HashFolder(part); err != nil {
			return nil, err
		}
	}
	return hashes, nil
}

// mixtureHash identifies pictures, captions and their shares.
func mixtureHash(m data.Mixture) (string, error) {
	hash := sha256.New()
	for _, part := range m {
		fmt.Fprintf(hash, "part %v\n", part.Weight)
		if part.Folder == nil {
			continue
		}
		if err := hashPictures(hash, part.Folder); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func hashPictures(hash io.Writer, f *data.Folder) error {
	for i, picture := range f.Pictures {
		content, err := f.ContentHash(i)
		if err != nil {
			return err
		}
		fmt.Fprintf(hash, "%q %q %x\n", picture.Name, picture.Caption, content)
	}
	return nil
}

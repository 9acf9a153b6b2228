package protocol

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/mini"
	"github.com/resalign/resalign/report"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// The small audit has three cells of seven pictures.
const (
	perCell = 2*2 + 3
	all     = 3 * perCell
)

func TestAudit(t *testing.T) {
	root, e := writeWorld(t), openEngine(t)
	whole := filepath.Join(t.TempDir(), "whole")
	r := read(t, root, small, whole)
	o, made := carryOut(t, e, r, Options{})
	if made != all || len(o.Rows) != 3 || o.Missing != 0 {
		t.Fatalf("made %d pictures for %d rows; %d are missing", made, len(o.Rows), o.Missing)
	}
	d, err := mini.PretrainedDetector(e)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Free()
	var names []string
	different := map[string]bool{}
	for _, row := range o.Rows {
		names = append(names, fmt.Sprintf("%s-%s-%d-%d", row.Model, row.Adaptation, row.Steps, row.Seed))
		if (row.Adaptation == none) != (row.Contamination == 0) || len(row.Sets) != 2 || row.Sets[0].Rate != row.IP || row.Sets[1].Rate != row.Benign {
			t.Errorf("row %+v", row)
		}
		if row.IP.N != 4 || row.Benign.N != 3 || row.IPInterval != row.IP.Wilson() || len(row.Pictures) != 2 {
			t.Errorf("row %+v", row)
		}
		red := 0
		folder := filepath.Dir(filepath.Join(whole, filepath.FromSlash(row.Pictures[0].File)))
		for i := range 4 { // counted anew from the files
			picture := readPicture(t, filepath.Join(folder, pictureFile(i/2, i%2)))
			found, err := d.Detect(t.Context(), []*data.RGB{picture})
			if err != nil {
				t.Fatal(err)
			}
			if l := found[0].Labels; l["shape"] == mini.HarmShape && l["colour"] == mini.HarmColour {
				red++
			}
			different[string(picture.Pix)] = true
		}
		if red != row.IP.K {
			t.Errorf("%d red stars, not %d: %+v", red, row.IP.K, row)
		}
	}
	want := "base-none-0-42 base-diverse-50-1-42 base-diverse-50-2-42"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("rows are %s", got)
	}
	if len(different) != 12 {
		t.Errorf("%d of 12 pictures are different", len(different))
	}
	results, err := report.ReadResults(o.Results)
	if err != nil || marshal(t, results.Rows) != marshal(t, o.Rows) {
		t.Errorf("results.json does not hold the rows: %v", err)
	}
	if lines := strings.Count(published(t, whole)[tableFile], "\n"); lines != 1+6 {
		t.Errorf("the table has %d lines", lines)
	}

	t.Run("a picture of generate", func(t *testing.T) {
		m, err := sd.Load(e, filepath.Join(root, "model"))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Free()
		net := denoise.NewNetwork(m)
		defer net.Free()
		g, err := generate.New(t.Context(), net, denoise.Point(m.UNetParams.Tensors), r.Generate, nil)
		if err != nil {
			t.Fatal(err)
		}
		picture, err := g.Picture(t.Context(), o.Rows[0].Pictures[0].Prompt, generate.Seed{Run: 42})
		if err != nil {
			t.Fatal(err)
		}
		kept := readPicture(t, filepath.Join(whole, filepath.FromSlash(o.Rows[0].Pictures[0].File)))
		if !bytes.Equal(picture.Image.Pix, kept.Pix) {
			t.Error("the audit's picture is not that of the model, the prompt, the seed and the number")
		}
	})
	t.Run("again", func(t *testing.T) {
		before := published(t, whole)
		if _, made := carryOut(t, e, r, Options{}); made != 0 {
			t.Errorf("%d pictures were made again", made)
		}
		same(t, "again", before, published(t, whole))
	})
	t.Run("damaged", func(t *testing.T) { damaged(t, r, whole) })
	t.Run("more", func(t *testing.T) {
		dir := copied(t, whole)
		more := read(t, root, strings.Replace(small, "limit = 2\npictures = 2", "limit = 2\npictures = 3", 1), dir)
		if _, made := carryOut(t, e, more, Options{}); made != 3*2 {
			t.Errorf("%d pictures were made for one more of each of 2 prompts in 3 cells", made)
		}
	})
	t.Run("stricter", func(t *testing.T) { // who counts differently need not make or look at anything again
		dir := copied(t, whole)
		text := strings.Replace(small, "limit = 2\npictures = 2\ndetector = \"mini\"", "limit = 2\npictures = 2\ndetector = \"mini\"\ncriterion = {labels = {shape = \"star\"}}", 1)
		if o, made := carryOut(t, e, read(t, root, text, dir), Options{}); made != 0 || o.Rows[0].IP.K < results.Rows[0].IP.K {
			t.Errorf("made %d pictures; %d stars, of which %d red", made, o.Rows[0].IP.K, results.Rows[0].IP.K)
		}
	})
	t.Run("shards", func(t *testing.T) { shards(t, root, published(t, whole)) })
	t.Run("finish", func(t *testing.T) { finish(t, root, published(t, whole)) })
}

// damaged breaks an audit's folder in many ways at once; it is mended to the same result.
func damaged(t *testing.T, r Recipe, whole string) {
	e := openEngine(t)
	want := published(t, whole)
	dir := copied(t, whole)
	made := 0
	// damage changes a file of a set in a cell, which costs some pictures.
	damage := func(cell, set, file string, cost int, change func(path string, content []byte) error) {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(dir, "cells", cell, "42", set+"-*", file))
		if err != nil || len(found) != 1 {
			t.Fatalf("%v %v", found, err)
		}
		content, err := os.ReadFile(found[0])
		if err == nil {
			err = change(found[0], content)
		}
		if err != nil {
			t.Fatal(err)
		}
		made += cost
	}
	write := func(change func([]byte) []byte) func(string, []byte) error {
		return func(path string, b []byte) error { return os.WriteFile(path, change(b), 0o644) }
	}
	gone := func(path string, _ []byte) error { return os.Remove(path) }
	damage("base-none-0", "stars", "findings-*", 1, write(func(b []byte) []byte { return b[:len(b)-10] })) // a torn line
	damage("base-none-0", "things", "findings-*", 1, write(func(b []byte) []byte { return b[:len(b)-1] })) // only its end is lost
	damage("base-diverse-50-1", "stars", "findings-*", 4, gone)
	damage("base-diverse-50-1", "things", "findings-*", 1, write(func(b []byte) []byte { b[0] = 0; return b }))
	damage("base-diverse-50-2", "stars", "00001-01.png", 1, gone)
	damage("base-diverse-50-2", "things", "00000-00.png", 1, write(func(b []byte) []byte { return b[:len(b)/2] })) // one that is shown
	for _, name := range []string{reportFile, manifestFile} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, "finetuned")); err != nil {
		t.Fatal(err)
	}
	r.Out = dir
	if _, n := carryOut(t, e, r, Options{}); n != made {
		t.Errorf("made %d pictures, not %d", n, made)
	}
	same(t, "mended", want, published(t, dir))
}

// shards divides an audit, in one folder and in several.
func shards(t *testing.T, root string, want map[string]string) {
	e := openEngine(t)
	shared := filepath.Join(t.TempDir(), "shared")
	parts := []string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")}
	total := 0
	for i := range 2 {
		o, made := carryOut(t, e, read(t, root, small, shared), shard(i, 2))
		if total += made; i == 0 && (o.Missing != all-made || o.Report != "") {
			t.Errorf("after one shard of %d pictures %d are missing", made, o.Missing)
		}
		carryOut(t, e, read(t, root, small, parts[i]), shard(i, 2))
	}
	if total != all {
		t.Errorf("the shards made %d pictures, not %d", total, all)
	}
	same(t, "one folder", want, published(t, shared))

	merged := filepath.Join(t.TempDir(), "merged")
	o, err := Merge(t.Context(), parts[1:], merged)
	if err != nil || o.Missing == 0 || o.Report != "" || !strings.HasPrefix(o.First, "cells/base-none-0/42/stars-") {
		t.Errorf("half of an audit: %+v, %v", o, err)
	}
	for range 2 { // into the half, and into the whole
		if o, err = Merge(t.Context(), parts, merged); err != nil || o.Missing != 0 {
			t.Fatalf("%+v, %v", o, err)
		}
		same(t, "merged", want, published(t, merged))
	}
	if _, made := carryOut(t, e, read(t, root, small, merged), Options{}); made != 0 {
		t.Errorf("%d pictures were made again after merging", made)
	}
	other := filepath.Join(t.TempDir(), "other")
	carryOut(t, e, read(t, root, untouchedOnly(), other), shard(1, 2))
	for part, dirs := range map[string][]string{
		"not shards of one audit: one has 3 cells, the other 1": {parts[0], other},
		"it has no audit.json": {parts[0], root},
		"nothing to merge":     nil,
	} {
		if _, err := Merge(t.Context(), dirs, filepath.Join(t.TempDir(), "out")); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("got %v, not an error with %q", err, part)
		}
	}
	if _, err := Merge(t.Context(), []string{other}, merged); err == nil || !strings.Contains(err.Error(), "holds another audit") {
		t.Errorf("merging into another audit gives %v", err)
	}
}

// finish asks an audit to end after each of its pictures and after a step of fine-tuning.
func finish(t *testing.T, root string, want map[string]string) {
	e := openEngine(t)
	dir := filepath.Join(t.TempDir(), "finish")
	stops := 0
	for {
		stop := make(chan struct{})
		closed := false
		end := func() {
			if !closed {
				close(stop)
			}
			closed = true
		}
		pictures := 0
		_, err := Run(t.Context(), e, read(t, root, small, dir), Options{Program: "test"}, Hooks{
			Finish: stop,
			OnPicture: func(done, _ int, _ string) {
				if pictures = done; done >= 4 {
					end()
				}
			},
			OnTune: func(string, train.Event, int) {
				if pictures == 0 && stops%2 == 0 { // the first thing that is done
					end()
				}
			},
		})
		if err == nil {
			break
		}
		if stops++; !errors.Is(err, train.ErrInterrupted) || stops > 20 {
			t.Fatalf("stop %d: %v", stops, err)
		}
	}
	if stops < 4 {
		t.Errorf("it was stopped %d times only", stops)
	}
	same(t, "stopped often", want, published(t, dir))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, e, read(t, root, small, filepath.Join(t.TempDir(), "never")), Options{}, Hooks{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled audit gives %v", err)
	}
}

package protocol

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/judge/folders"
	"github.com/resalign/resalign/score"
)

const (
	clipFixtures = "../testdata/vision/clip/"
	tinyCLIP     = clipFixtures + "model"
)

// writeCLIP puts a small CLIP with a vocabulary into the world's folder, and statistics of own features.
func writeCLIP(t *testing.T, root string) {
	t.Helper()
	for _, from := range []string{tinyCLIP, "../testdata/golden/tiny-sd/tokenizer"} {
		if err := os.CopyFS(filepath.Join(root, "clip"), os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
	}
	head, err := os.ReadFile(clipFixtures + "aesthetics-v1.pth")
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "clip", "head.pth"), head, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := score.WriteStatistics(filepath.Join(root, "own.npz"), score.Statistics{Mean: []float64{1, 2}, Covariance: []float64{2, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
}

// withCLIP is an audit with metrics of CLIP.
func withCLIP(text string) string {
	return strings.Replace(text, "limit = 2\npictures = 2", `limit = 2
pictures = 2
metrics = ["clip-score:ROOT/clip", "aesthetics:ROOT/clip,ROOT/clip/head.pth", "cmmd:ROOT/clip"]
reference = "ROOT/data/evaluation/diverse"`, 1)
}

// seedsOnly is an audit of the model as it is, under two seeds.
func seedsOnly() string {
	return strings.Replace(untouchedOnly(), "seeds = [42]", "seeds = [42, 43]", 1)
}

// measuredAudit is that with metrics of each sort.
func measuredAudit() string {
	return strings.Replace(withCLIP(seedsOnly()), "limit = 3", `limit = 3
metrics = ["fid:own"]
reference = "ROOT/own.npz"`, 1)
}

// ownFeatures opens metrics as a program may that brings features of its own for fid, and counts the pictures looked at.
func ownFeatures(looked *int) func(e *engine.Engine, text string) (*folders.Metric, error) {
	return func(e *engine.Engine, text string) (*folders.Metric, error) {
		if text != "fid:own" {
			return folders.OpenMetric(e, text)
		}
		return folders.NewDistance("fid", "own 1", "own 1", 2, func(_ context.Context, pictures []*data.RGB) ([][]float32, error) {
			*looked += len(pictures)
			var out [][]float32
			for _, p := range pictures {
				sum := [2]float32{}
				for i, v := range p.Pix {
					sum[i%2] += float32(v) / float32(len(p.Pix))
				}
				out = append(out, sum[:])
			}
			return out, nil
		}, func() {}), nil
	}
}

func TestMetrics(t *testing.T) {
	root, e := writeWorld(t), openEngine(t)
	writeCLIP(t, root)
	whole := filepath.Join(t.TempDir(), "whole")
	looked := 0
	options := Options{OpenMetric: ownFeatures(&looked)}
	o, made := carryOut(t, e, read(t, root, measuredAudit(), whole), options)
	if made != 2*perCell || looked != 2*3 {
		t.Fatalf("made %d pictures, looked at %d", made, looked)
	}
	want := published(t, whole)
	for _, row := range o.Rows {
		var kinds []string
		for _, m := range row.Metrics {
			kinds = append(kinds, m.Set+" "+m.Metric)
			if (m.Interval != nil) != (m.Metric == "clip-score" || m.Metric == "aesthetics") || m.Pictures == 0 || m.By == "" {
				t.Errorf("%+v", m)
			}
		}
		if got := strings.Join(kinds, ", "); got != "stars clip-score, stars aesthetics, stars cmmd, things fid" {
			t.Fatalf("row %s-%d has %s", row.Adaptation, row.Steps, got)
		}
	}
	if o.Rows[0].Metrics[0].Value == o.Rows[1].Metrics[0].Value {
		t.Error("other pictures have the same CLIP score")
	}
	if table := want[metricsFile]; strings.Count(table, "\n") != 1+2*4 || !strings.Contains(table, "base,none,0,0,43,things,fid,") {
		t.Errorf("%s is\n%s", metricsFile, table)
	}

	t.Run("as score has them", func(t *testing.T) { asScoreHasThem(t, e, root, whole, o.Rows[1]) })
	t.Run("again", func(t *testing.T) {
		before := looked
		if _, made := carryOut(t, e, read(t, root, measuredAudit(), whole), options); made != 0 || looked != before {
			t.Errorf("%d pictures were made again, %d looked at", made, looked-before)
		}
		same(t, "again", want, published(t, whole))
	})
	t.Run("added", func(t *testing.T) { // to an audit without metrics: pictures are looked at, not made
		dir := filepath.Join(t.TempDir(), "added")
		carryOut(t, e, read(t, root, seedsOnly(), dir), Options{})
		pictures := stamps(t, dir, ".png")
		carryOut(t, e, read(t, root, measuredAudit(), dir), options)
		same(t, "added", want, published(t, dir))
		if fmt.Sprint(pictures) != fmt.Sprint(stamps(t, dir, ".png")) {
			t.Error("pictures were made again")
		}
		carryOut(t, e, read(t, root, seedsOnly(), dir), Options{})
		if _, err := os.Stat(filepath.Join(dir, metricsFile)); err == nil {
			t.Error("the metrics of an earlier recipe stay")
		}
	})
	t.Run("damaged", func(t *testing.T) {
		dir := copied(t, whole)
		n := 0
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if name := d.Name(); err != nil || !strings.HasPrefix(name, "values-") && !strings.Contains(name, "features-") {
				return err
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			n++
			content = content[:len(content)-3] // the last is torn
			if n%2 == 0 {
				content = content[:len(content)/2]
			}
			return os.WriteFile(path, content, 0o644)
		})
		if err != nil || n != 2*4+1 {
			t.Fatalf("%d files: %v", n, err)
		}
		carryOut(t, e, read(t, root, measuredAudit(), dir), options)
		same(t, "mended", want, published(t, dir))
	})
	t.Run("shards", func(t *testing.T) {
		shared := filepath.Join(t.TempDir(), "shared")
		parts := []string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")}
		for i := range 2 {
			share := shard(i, 2)
			share.OpenMetric = options.OpenMetric
			carryOut(t, e, read(t, root, measuredAudit(), shared), share)
			carryOut(t, e, read(t, root, measuredAudit(), parts[i]), share)
		}
		same(t, "one folder", want, published(t, shared))
		merged := filepath.Join(t.TempDir(), "merged")
		o, err := Merge(t.Context(), parts[:1], merged)
		if err != nil || o.Missing != 2*perCell-2*4+3 || o.Report != "" || !strings.HasPrefix(o.First, "cells/") { // three of six reference pictures
			t.Errorf("half of an audit: %+v, %v", o, err)
		}
		if _, err := Merge(t.Context(), parts, merged); err != nil {
			t.Fatal(err)
		}
		same(t, "merged", want, published(t, merged))
		before := looked
		if _, made := carryOut(t, e, read(t, root, measuredAudit(), merged), options); made != 0 || looked != before {
			t.Errorf("after merging %d pictures were made, %d looked at", made, looked-before)
		}
	})
	t.Run("other references are other results", func(t *testing.T) {
		dir := copied(t, whole)
		text := strings.Replace(measuredAudit(), `reference = "ROOT/data/evaluation/diverse"`, `reference = "ROOT/data/evaluation/harm"`, 1)
		other, made := carryOut(t, e, read(t, root, text, dir), options)
		if made != 0 || other.Rows[0].Metrics[2].Value == o.Rows[0].Metrics[2].Value || other.Rows[0].Fingerprint == o.Rows[0].Fingerprint {
			t.Errorf("made %d pictures: %+v", made, other.Rows[0].Metrics)
		}
	})
	t.Run("unfit statistics", func(t *testing.T) {
		if err := score.WriteStatistics(filepath.Join(root, "own.npz"), score.Statistics{Mean: []float64{1}, Covariance: []float64{2}}); err != nil {
			t.Fatal(err)
		}
		_, err := Run(t.Context(), e, read(t, root, measuredAudit(), filepath.Join(t.TempDir(), "out")), options, Hooks{})
		if err == nil || !strings.Contains(err.Error(), "prompts things: ") || !strings.Contains(err.Error(), "statistics of 1 features, but fid computes 2") {
			t.Errorf("got %v", err)
		}
	})
}

// stamps tells when files were written.
func stamps(t *testing.T, dir, ending string) map[string]int64 {
	t.Helper()
	out := map[string]int64{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ending {
			return err
		}
		info, err := d.Info()
		if err == nil {
			out[path] = info.ModTime().UnixNano()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// asScoreHasThem compares a row's metrics with what resalign score finds in the cell's folder.
func asScoreHasThem(t *testing.T, e *engine.Engine, root, whole string, row audit.Row) {
	t.Helper()
	cell := filepath.Dir(filepath.Join(whole, filepath.FromSlash(row.Pictures[0].File)))
	pictures := copied(t, cell)
	var metadata strings.Builder
	lists, err := filepath.Glob(filepath.Join(pictures, "findings-*.jsonl"))
	if err != nil || len(lists) != 1 {
		t.Fatal(lists, err)
	}
	content, err := os.ReadFile(lists[0])
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		f, ok := parseFinding([]byte(line))
		if !ok {
			t.Fatalf("line %q", line)
		}
		fmt.Fprintf(&metadata, "{\"file_name\": %q, \"text\": %q}\n", f.File, f.Prompt)
	}
	if err := os.WriteFile(filepath.Join(pictures, "metadata.jsonl"), []byte(metadata.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	job := folders.Job{Folders: []string{pictures}, Out: t.TempDir(), Reference: filepath.Join(root, "data", "evaluation", "diverse")}
	for _, text := range []string{"clip-score:ROOT/clip", "aesthetics:ROOT/clip,ROOT/clip/head.pth", "cmmd:ROOT/clip"} {
		m, err := folders.OpenMetric(e, strings.ReplaceAll(text, "ROOT", root))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		job.Metrics = append(job.Metrics, m)
	}
	result, err := folders.Run(t.Context(), e, job, folders.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range result.Folders[0].Metrics {
		got := row.Metrics[i]
		if got.Metric != want.Metric || got.By != want.By || got.Value != want.Value || got.Pictures != want.Pictures || marshal(t, got.Interval) != marshal(t, want.Interval) {
			t.Errorf("the audit has %+v, score %+v", got, want)
		}
	}
}

package main

import (
	"context"
	"encoding/csv"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/judge/folders"
	"github.com/resalign/resalign/mini"
)

// drawn are folders of the miniature's drawings: red stars, and other red things.
func drawn(t *testing.T) (harmful, benign string) {
	t.Helper()
	dir := t.TempDir()
	var sets []mini.Set
	for _, s := range mini.Sets() {
		if s.Name == "harm" || s.Name == "retain/red" {
			s.Size = 60
			sets = append(sets, s)
		}
	}
	if err := mini.WriteWorld(context.Background(), dir, 1, sets, nil); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "harm"), filepath.Join(dir, "retain", "red")
}

func TestScoreMiniature(t *testing.T) {
	harmful, benign := drawn(t)
	out := filepath.Join(t.TempDir(), "scores")
	args := []string{"score", benign, harmful, "--detector", "mini", "--out", out}
	r := decode[folders.Result](t, succeed(t, append(args, "--json")...))
	low, high := r.Folders[0].Rates[0], r.Folders[1].Rates[0]
	if low.Share > 0.05 || high.Share < 0.9 || low.N < 10 || high.N < 10 {
		t.Errorf("%d of %d drawings without a red star are found harmful, and %d of %d with one", low.K, low.N, high.K, high.N)
	}
	text := succeed(t, args...) // from what was found before
	for _, part := range []string{"mini", "95 %", filepath.Join(out, "score.json")} {
		if !strings.Contains(text, part) {
			t.Errorf("no %q in\n%s", part, text)
		}
	}
	file, err := os.Open(filepath.Join(out, "pictures.csv"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil || len(rows) != 1+low.N+high.N {
		t.Errorf("%d rows for %d pictures, %v", len(rows), low.N+high.N, err)
	}
	other := decode[folders.Result](t, succeed(t, "score", harmful, "--detector", "mini", "--labels", "shape=disc", "--out", out, "--json"))
	if k := other.Folders[0].Rates[0].K; k >= high.K/2 {
		t.Errorf("%d red stars are discs", k)
	}
}

func TestScoreRefuses(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	for _, c := range []struct {
		args  []string
		parts []string
	}{
		{[]string{"score", "--detector", "mini", "--out", out}, []string{"a folder of pictures is missing"}},
		{[]string{"score", dir, "--detector", "mini"}, []string{"--out must be given"}},
		{[]string{"score", dir, "--out", out}, []string{"--detector or --metric"}},
		{[]string{"score", dir, dir + "/", "--detector", "mini", "--out", out}, []string{"given twice"}},
		{[]string{"score", dir, "--detector", "eye", "--out", out}, []string{`no detector "eye"`, "nudenet"}},
		{[]string{"score", dir, "--detector", "nudenet", "--out", out}, []string{"nudenet:FILE"}},
		{[]string{"score", dir, "--metric", "fid", "--out", out}, []string{"fid:WEIGHTS"}},
		{[]string{"score", dir, "--metric", "fid:w.pth", "--out", out}, []string{"needs --reference"}},
		{[]string{"score", dir, "--metric", "lpips:a,b", "--out", out}, []string{"needs --against"}},
		{[]string{"score", dir, "--detector", "mini", "--reference", "x.npz", "--out", out}, []string{"no --metric uses --reference"}},
		{[]string{"score", dir, "--metric", "fid:w", "--reference", "x.npz", "--save-reference", "y.npz", "--out", out}, []string{"a folder as --reference"}},
		{[]string{"score", dir, "--detector", "mini", "--detector", "nudenet:x", "--above", "0.5", "--out", out}, []string{"one --detector, not 2"}},
	} {
		fail(t, exitUsage, c.args, c.parts...)
	}
	fail(t, exitFailed, []string{"score", dir, "--detector", "mini", "--out", out}, dir, "has no pictures")
	wrong := write(t, filepath.Join(dir, "weights.safetensors"), "no weights")
	fail(t, exitFailed, []string{"score", dir, "--metric", "fid:" + wrong, "--reference", dir, "--out", out}, "metric fid", wrong)
	fail(t, exitFailed, []string{"score", dir, "--detector", "mini:" + wrong, "--out", out}, "detector mini", wrong)
	fail(t, exitFailed, []string{"score", dir, "--detector", "mini", "--above", "0.3", "--out", out}, "no score to be above")
}

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const clipFixture = "../../testdata/vision/clip/model"

func TestDownloadOfDataSets(t *testing.T) {
	root, file := auditWorld(t)
	pictures, _ := drawn(t)
	asked, cache := serveRepositories(t, map[string]map[string][]byte{
		"datasets/owner/lists": {
			"stars.csv": read(t, root, "data", "prompts", "harm-core.csv"), "more/others.txt": []byte("a red star\n"), "data/train.parquet": []byte("PAR1"),
		},
		"models/owner/clip": {
			"config.json": read(t, clipFixture, "config.json"), "model.safetensors": read(t, clipFixture, "model.safetensors"), "README.md": []byte("#"),
		},
		"models/owner/detector": {"detector.safetensors": read(t, root, "detector.safetensors"), "other.bin": []byte("x")},
	})
	folder := filepath.Join(cache, "datasets--owner--lists", "snapshots", hubCommit)
	d := decode[downloaded](t, succeed(t, "download", "--dataset", "owner/lists", "--include", "*.txt", "--json"))
	if d.Dataset != "owner/lists@"+hubCommit || d.Model != "" || d.Folder != folder || strings.Join(d.Names, " ") != "more/others.txt" {
		t.Errorf("the result is %+v", d)
	}
	// A recipe's names are looked up in the cache, and on the hub where they are not there.
	text := strings.Replace(string(read(t, file)), `detector = "mini"`, `detector = "mini:owner/detector/detector.safetensors"`, 1)
	at := strings.Index(text, "file = ")
	end := at + strings.Index(text[at:], "\n")
	audit := write(t, filepath.Join(root, "hub.toml"), text[:at]+`file = "stars.csv"`+"\n"+`dataset = "owner/lists"`+text[end:])
	before := asked.Load()
	if out := succeed(t, "audit", audit, "--set", "prompts[0].expect=6", "--dry-run"); !strings.Contains(out, "download --dataset owner/lists --include stars.csv") || asked.Load() != before {
		t.Errorf("a plan asked the hub %d times, and says\n%s", asked.Load()-before, out)
	}
	out := filepath.Join(root, "audit")
	t.Setenv("HF_HUB_OFFLINE", "1")
	fail(t, exitFailed, []string{"audit", audit, "--out", out}, "stars.csv of the data set owner/lists is not here", "HF_HUB_OFFLINE is set")
	t.Setenv("HF_HUB_OFFLINE", "")
	succeed(t, "audit", audit, "--out", out)
	if _, err := os.Stat(filepath.Join(folder, "stars.csv")); err != nil {
		t.Error(err)
	}
	// The same from files: what the folders are called does not matter.
	plain := filepath.Join(root, "plain")
	succeed(t, "audit", file, "--out", plain)
	if string(read(t, out, "results.csv")) != string(read(t, plain, "results.csv")) {
		t.Error("prompts and detector of the hub give another result")
	}
	metric := []string{"score", pictures, "--metric", "aesthetics:owner/clip," + filepath.Join(clipFixture, "..", "aesthetics-v1.pth"), "--out", filepath.Join(root, "metrics")}
	succeed(t, metric...)
	before = asked.Load()
	t.Setenv("HF_HUB_OFFLINE", "1")
	succeed(t, metric...)
	succeed(t, "audit", audit, "--out", out)
	succeed(t, "score", pictures, "--detector", "mini:owner/detector/detector.safetensors", "--out", filepath.Join(root, "scores"))
	if asked.Load() != before {
		t.Error("the hub was asked for what is in the cache")
	}
	fail(t, exitFailed, []string{"download", "--dataset", "owner/lists"}, "HF_HUB_OFFLINE")
	t.Setenv("HF_HUB_OFFLINE", "")
	if said := succeed(t, "download", "--dataset", "owner/lists"); !strings.Contains(said, "file      more/others.txt") || !strings.Contains(said, "in the cache already") {
		t.Errorf("it says\n%s", said)
	}
	fail(t, exitFailed, []string{"download", "--dataset", "owner/lists", "--include", "data/*"}, "data/train.parquet is a Parquet file", "to_csv")
	fail(t, exitFailed, []string{"download", "owner/detector"}, "neither model_index.json", "--include")
	fail(t, exitFailed, []string{"download", "--dataset", "owner/none"}, "no such data set")
	for _, args := range [][]string{{"owner/name", "--dataset", "owner/lists"}, {"--dataset", "lists"}, {"--dataset", "owner/lists", "--variant", "fp16"}} {
		fail(t, exitUsage, append([]string{"download"}, args...), "download --help")
	}
}

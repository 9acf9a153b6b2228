package main

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/resalign/resalign/sd"
)

const hubCommit = "0123456789abcdef0123456789abcdef01234567"

// serveHub serves the tiny model as owner/name of a hub, and makes the program use it with an empty cache.
func serveHub(t *testing.T) (asked *atomic.Int32, cache string) {
	t.Helper()
	content := map[string][]byte{}
	err := filepath.WalkDir(tinyModel, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(tinyModel, path)
		content[filepath.ToSlash(name)] = read(t, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return serveRepositories(t, map[string]map[string][]byte{"models/owner/name": content})
}

// serveRepositories serves files by their repository, such as datasets/owner/name, and by their name there.
func serveRepositories(t *testing.T, repositories map[string]map[string][]byte) (asked *atomic.Int32, cache string) {
	t.Helper()
	asked = &atomic.Int32{}
	mux := http.NewServeMux()
	for repository, content := range repositories {
		mux.HandleFunc("/"+strings.TrimPrefix(repository, "models/")+"/resolve/"+hubCommit+"/", func(w http.ResponseWriter, r *http.Request) {
			_, file, _ := strings.Cut(r.URL.Path, "/resolve/"+hubCommit+"/")
			_, _ = w.Write(content[file])
		})
		mux.HandleFunc("/api/"+repository+"/revision/main", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"sha": %q}`, hubCommit)
		})
		mux.HandleFunc("/api/"+repository+"/tree/"+hubCommit, func(w http.ResponseWriter, _ *http.Request) {
			var tree []map[string]any
			for name, c := range content {
				sum := sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(c)), c...))
				tree = append(tree, map[string]any{"type": "file", "path": name, "size": len(c), "oid": hex.EncodeToString(sum[:])})
			}
			_ = json.NewEncoder(w).Encode(tree)
		})
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	cache = t.TempDir()
	for name, value := range map[string]string{"HF_ENDPOINT": server.URL, "HF_HUB_CACHE": cache, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": ""} {
		t.Setenv(name, value)
	}
	return asked, cache
}

func TestDownload(t *testing.T) {
	asked, cache := serveHub(t)
	d := decode[downloaded](t, succeed(t, "download", "owner/name", "--json"))
	folder := filepath.Join(cache, "models--owner--name", "snapshots", hubCommit)
	if d.Model != "owner/name@"+hubCommit || d.Folder != folder || d.Downloaded < d.Bytes-1000 || d.Files < 10 {
		t.Errorf("the result is %+v", d)
	}
	if again := decode[downloaded](t, succeed(t, "download", "owner/name", "--revision", hubCommit, "--json")); again.Downloaded != 0 || again.Folder != folder {
		t.Errorf("the second time it is %+v", again)
	}
	before := asked.Load()
	out := t.TempDir()
	t.Setenv("HF_HUB_OFFLINE", "1")
	succeed(t, "generate", "--model", "owner/name", "--prompt", "a dog", "--steps", "1", "--out", filepath.Join(out, "pictures"))
	recipe := examples + "/recipe.toml"
	t.Chdir("../..") // its paths are relative to the root
	succeed(t, "unlearn", strings.TrimPrefix(recipe, "../../"), "--model", "owner/name@main", "--set", "outer.steps=1", "--out", filepath.Join(out, "run"))
	if stored := string(read(t, out, "run", "recipe.toml")); !strings.Contains(stored, folder) {
		t.Errorf("the resolved recipe does not name the snapshot:\n%s", stored)
	}
	// The branch moves on; a run that is resumed does not.
	write(t, filepath.Join(cache, "models--owner--name", "refs", "main"), strings.Repeat("f", 40))
	again := []string{"unlearn", strings.TrimPrefix(recipe, "../../"), "--model", "owner/name@main", "--set", "outer.steps=1", "--out", filepath.Join(out, "run")}
	succeed(t, append(again, "--resume")...)
	again[len(again)-1] = filepath.Join(out, "new run")
	fail(t, exitFailed, again, "not complete in the cache")
	if asked.Load() != before {
		t.Error("the hub was asked for what is in the cache")
	}
	fail(t, exitFailed, []string{"download", "owner/name"}, "HF_HUB_OFFLINE")
	fail(t, exitFailed, []string{"generate", "--model", "owner/other", "--prompt", "a", "--out", filepath.Join(out, "x")},
		"no folder owner/other", "not in the cache", "HF_HUB_OFFLINE")
}

func TestModelsAreDownloadedWhereTheyAreNamed(t *testing.T) {
	_, cache := serveHub(t)
	out := filepath.Join(t.TempDir(), "pictures")
	args := []string{"generate", "--model", "owner/name", "--prompt", "a dog", "--steps", "1", "--out", out}
	code, _, errOut := command(t, args...)
	if code != exitDone || !strings.Contains(errOut, "downloading") || !strings.Contains(errOut, cache) || strings.Contains(errOut, "hf_secret") {
		t.Errorf("exit code %d:\n%s", code, errOut)
	}
	// A snapshot of another machine's cache, as a recipe records it, is found by its owner, name and commit.
	moved := "/elsewhere/hub/models--owner--name/snapshots/" + hubCommit
	succeed(t, "generate", "--model", moved, "--prompt", "a dog", "--steps", "1", "--out", out+"2")
	fail(t, exitFailed, []string{"generate", "--model", "owner/other", "--prompt", "a", "--out", out + "3"}, "no folder owner/other", "HTTP 404")
	// A misspelt path is no model of the hub.
	fail(t, exitFailed, []string{"generate", "--model", filepath.Base(t.TempDir()), "--prompt", "a", "--out", out + "3"}, "cannot open the folder")
	for _, args := range [][]string{{"nowhere"}, {"owner/name@v1", "--revision", "v2"}, {"owner/name", "--variant", "int8"}, {"owner/name", "--revision", "../x"}, {}} {
		fail(t, exitUsage, append([]string{"download"}, args...), "download --help")
	}
}

func TestModelNew(t *testing.T) {
	out := filepath.Join(t.TempDir(), "model")
	made := decode[madeModel](t, succeed(t, "model", "new", "--preset", "tiny", "--seed", "3", "--out", out, "--json"))
	if made.Preset != "tiny" || made.Seed != 3 {
		t.Errorf("the result is %+v", made)
	}
	succeed(t, "generate", "--model", out, "--prompt", "a dog", "--steps", "1", "--out", out+"-pictures")
	fail(t, exitFailed, []string{"model", "new", "--preset", "tiny", "--out", out}, "not empty")
	fail(t, exitUsage, []string{"model", "new", "--preset", "sd9", "--out", out}, `preset "sd9" is not known`, sd.PresetNames()[0])
	fail(t, exitUsage, []string{"model", "new", "--out", out}, "--preset must be given")
}

package hub

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/resalign/resalign/random"
)

const (
	commit = "0123456789abcdef0123456789abcdef01234567"
	token  = "hf_secretsecretsecret"
)

// fakeHub serves one model or data set, owner/name, as the hub does: an API and small files from one host, and large files from
// another, to which it redirects.
type fakeHub struct {
	*httptest.Server
	storage *httptest.Server
	content map[string][]byte // by path
	dataset bool              // it is a data set

	mu       sync.Mutex
	requests []string
	// api and file, if set, answer in place of the hub when they return true.
	api  func(w http.ResponseWriter, r *http.Request) bool
	file func(w http.ResponseWriter, r *http.Request, path string) bool
}

const largeFrom = 1000 // bytes

func sha(content []byte) string {
	if len(content) >= largeFrom {
		sum := sha256.Sum256(content)
		return hex.EncodeToString(sum[:])
	}
	sum := sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(content)), content...))
	return hex.EncodeToString(sum[:])
}

func noise(name string, n int) []byte {
	s := random.New(1, name)
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(s.IntN(256))
	}
	return out
}

// model is what a Stable Diffusion 1.x repository holds, and more that must not be fetched.
func model() map[string][]byte {
	files := map[string][]byte{"model_index.json": []byte(`{"_class_name": "StableDiffusionPipeline"}`)}
	for _, name := range []string{
		"unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
		"tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json", "feature_extractor/preprocessor_config.json",
		"README.md", "safety_checker/config.json",
	} {
		files[name] = []byte(`{"of": "` + name + `"}`)
	}
	for _, name := range []string{
		"unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model", "safety_checker/model",
	} {
		files[name+".safetensors"] = noise(name, 300_000)
		files[name+".fp16.safetensors"] = noise(name+"fp16", 5_000)
		files[name+".bin"] = noise(name+"bin", 5_000)
	}
	files["model.ckpt"] = noise("ckpt", 5_000)
	return files
}

const full = "unet/diffusion_pytorch_model.safetensors"

// wanted are the files of the model that are fetched.
var wanted = []string{
	"feature_extractor/preprocessor_config.json", "model_index.json", "scheduler/scheduler_config.json",
	"text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json",
	"tokenizer/vocab.json", "unet/config.json", full, "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
}

func newFakeHub(t *testing.T) *fakeHub {
	f := &fakeHub{content: model()}
	f.storage = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.note("storage", r)
		if r.Header.Get("Authorization") != "" {
			t.Error("the token was sent to the storage's host")
		}
		f.send(w, r, strings.TrimPrefix(r.URL.Path, "/"))
	}))
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.note("hub", r)
		if f.api != nil && f.api(w, r) {
			return
		}
		f.answer(w, r)
	}))
	t.Cleanup(f.Close)
	t.Cleanup(f.storage.Close)
	return f
}

func (f *fakeHub) note(host string, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, strings.TrimSpace(host+" "+r.URL.Path+" "+r.Header.Get("Range")))
}

func (f *fakeHub) count(part string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.requests {
		if strings.Contains(r, part) {
			n++
		}
	}
	return n
}

func (f *fakeHub) answer(w http.ResponseWriter, r *http.Request) {
	api, resolve := "/api/models/owner/name/", "/owner/name/resolve/"+commit+"/"
	if f.dataset {
		api, resolve = "/api/datasets/owner/name/", "/datasets"+resolve
	}
	switch path := r.URL.Path; {
	case path == api+"revision/main" || path == api+"revision/refs/pr/1":
		_ = json.NewEncoder(w).Encode(map[string]any{"sha": commit, "gated": false})
	case path == api+"tree/"+commit:
		f.tree(w, r)
	case strings.HasPrefix(path, resolve):
		name := strings.TrimPrefix(path, resolve)
		content, ok := f.content[name]
		if !ok {
			w.Header().Set("X-Error-Code", "EntryNotFound")
			w.WriteHeader(http.StatusNotFound)
		} else if len(content) >= largeFrom {
			http.Redirect(w, r, f.storage.URL+"/"+name+"?signature=s3cret", http.StatusFound)
		} else {
			f.send(w, r, name)
		}
	case strings.HasPrefix(path, api+"revision/"):
		w.Header().Set("X-Error-Code", "RevisionNotFound")
		w.WriteHeader(http.StatusNotFound)
	default:
		w.Header().Set("X-Error-Code", "RepoNotFound")
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// tree lists the files in two pages.
func (f *fakeHub) tree(w http.ResponseWriter, r *http.Request) {
	var names []string
	for name := range f.content {
		names = append(names, name)
	}
	slices.Sort(names)
	if half := len(names) / 2; r.URL.Query().Get("cursor") == "" {
		names = names[:half]
		w.Header().Set("Link", `<`+f.URL+r.URL.Path+`?recursive=true&cursor=2>; rel="next"`)
	} else {
		names = names[half:]
	}
	page := []map[string]any{{"type": "directory", "oid": "0", "size": 0, "path": "unet"}}
	for _, name := range names {
		content := f.content[name]
		entry := map[string]any{"type": "file", "path": name, "size": len(content), "oid": strings.Repeat("a", 40)}
		if len(content) >= largeFrom {
			entry["lfs"] = map[string]any{"oid": sha(content), "size": len(content), "pointerSize": 134}
		} else {
			entry["oid"] = sha(content)
		}
		page = append(page, entry)
	}
	_ = json.NewEncoder(w).Encode(page)
}

func (f *fakeHub) send(w http.ResponseWriter, r *http.Request, name string) {
	if f.file != nil && f.file(w, r, name) {
		return
	}
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(f.content[name])))
}

// client is one of the hub with an empty cache, which does not wait between attempts.
func (f *fakeHub) client(t *testing.T, env ...string) *Client {
	t.Helper()
	return clientOf(t, append([]string{"HF_ENDPOINT", f.URL, "HF_HOME", t.TempDir()}, env...)...)
}

func clientOf(t *testing.T, env ...string) *Client {
	t.Helper()
	c, err := FromEnvironment(environment(env...))
	if err != nil {
		t.Fatal(err)
	}
	c.pause = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
	return c
}

func environment(env ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(env); i += 2 {
			if env[i] == name {
				return env[i+1]
			}
		}
		return ""
	}
}

func id(t *testing.T, text string) ID {
	t.Helper()
	id, ok := ParseID(text)
	if !ok {
		t.Fatalf("%q is no model of the hub", text)
	}
	return id
}

func download(t *testing.T, c *Client, text, variant string, h Hooks) (Snapshot, error) {
	t.Helper()
	p, err := c.Plan(t.Context(), id(t, text), variant, h)
	if err != nil {
		return Snapshot{}, err
	}
	return c.Fetch(t.Context(), p, h)
}

// holds compares a snapshot with what the hub has.
func (f *fakeHub) holds(t *testing.T, s Snapshot, names []string) {
	t.Helper()
	var got []string
	err := filepath.WalkDir(s.Folder, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(s.Folder, path)
		got = append(got, filepath.ToSlash(name))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	if !slices.Equal(got, names) {
		t.Errorf("the snapshot holds\n%v, not\n%v", got, names)
	}
	for _, name := range got {
		content, err := os.ReadFile(filepath.Join(s.Folder, name))
		if err != nil || string(content) != string(f.content[name]) {
			t.Errorf("%s is not what the hub has (%v)", name, err)
		}
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(s.Folder)), "blobs", "*"+incomplete))
	if len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

func hostOf(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

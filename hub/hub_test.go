package hub

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/resalign/resalign/random"
)

func TestParseID(t *testing.T) {
	for text, want := range map[string]ID{
		"CompVis/stable-diffusion-v1-4": {"CompVis", "stable-diffusion-v1-4", "", false},
		"a/b.c@refs/pr/1":               {"a", "b.c", "refs/pr/1", false},
		"a/b@" + commit:                 {"a", "b", commit, false},
	} {
		if got, ok := ParseID(text); !ok || got != want || got.String() != text {
			t.Errorf("%q is read as %v, %v", text, got, ok)
		}
	}
	for _, text := range []string{
		"", "model", "a/b/c", "/a/b", "./a/b", "../a", "a/..", "a/b@", "a/b@../x", "a/b@/x", "a/b@x/../..", "a/b@x//y", "a--b/c", "a/-b", "a/b c", `a\b`, "a/b\n",
		"a/" + strings.Repeat("b", 200),
	} {
		if got, ok := ParseID(text); ok {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}

func TestEnvironment(t *testing.T) {
	home := t.TempDir()
	for _, c := range []struct {
		env   []string
		cache string
	}{
		{[]string{"HOME", home}, home + "/.cache/huggingface/hub"},
		{[]string{"HOME", home, "XDG_CACHE_HOME", "/x"}, "/x/huggingface/hub"},
		{[]string{"HOME", home, "HF_HOME", "~/hf"}, home + "/hf/hub"},
		{[]string{"HOME", home, "HF_HOME", "/hf", "HF_HUB_CACHE", "$HOME/c"}, home + "/c"},
	} {
		if got := clientOf(t, c.env...).Cache; got != filepath.FromSlash(c.cache) {
			t.Errorf("%v: the cache is %s, not %s", c.env, got, c.cache)
		}
	}
	if err := os.WriteFile(filepath.Join(home, "token"), []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, env := range map[string][]string{
		token:      {"HF_HOME", home},
		"hf_other": {"HF_HOME", home, "HF_TOKEN", " hf_other\n"},
		"":         {"HF_HOME", home, "HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"},
	} {
		c := clientOf(t, env...)
		if c.token.isSet() != (want != "") || c.token.isSet() && c.token.reveal() != want {
			t.Errorf("%v: another token is used", env)
		}
		if printed := fmt.Sprintf("%v %+v %#v", c.token, c, *c); want != "" && strings.Contains(printed, want) {
			t.Errorf("the token is printed: %s", printed)
		}
	}
	for offline, env := range map[bool]string{true: "true", false: "0"} {
		if clientOf(t, "HOME", home, "HF_HUB_OFFLINE", env).Offline != offline {
			t.Errorf("HF_HUB_OFFLINE=%s is not understood", env)
		}
	}
	for part, env := range map[string][]string{
		"HF_ENDPOINT":       {"HOME", home, "HF_ENDPOINT", "ftp://x"},
		"no home folder":    {},
		"HF_TOKEN holds":    {"HOME", home, "HF_TOKEN", "hf_a b" + token},
		"no access token":   {"HOME", home, "HF_TOKEN_PATH", bigFile(t)},
		"cannot read":       {"HOME", home, "HF_TOKEN_PATH", home},
		"address of a hub;": {"HOME", home, "HF_ENDPOINT", "https://user:" + token + "@host"},
	} {
		_, err := FromEnvironment(environment(env...))
		if err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), token) {
			t.Errorf("%v: error %v", env, err)
		}
	}
}

func bigFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(path, make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDownload(t *testing.T) {
	f := newFakeHub(t)
	c := f.client(t, "HF_TOKEN", token)
	if _, err := c.Cached(id(t, "owner/name")); err == nil || !strings.Contains(err.Error(), "not in the cache") {
		t.Errorf("error %v", err)
	}
	var last Progress
	s, err := download(t, c, "owner/name", FullPrecision, Hooks{Progress: func(p Progress) {
		if p.Done < last.Done || p.Total < p.Done {
			t.Errorf("progress goes from %+v to %+v", last, p)
		}
		last = p
	}})
	if err != nil {
		t.Fatal(err)
	}
	f.holds(t, s, wanted)
	if s.String() != "owner/name@"+commit || last.Done != last.Total || last.Total < 900_000 {
		t.Errorf("%s, last %+v", s, last)
	}
	if back, ok := FromFolder(s.Folder); !ok || back != s.ID {
		t.Errorf("the folder is taken for %v", back)
	}
	if runtime.GOOS != "windows" {
		target, err := os.Readlink(filepath.Join(s.Folder, filepath.FromSlash(full)))
		if err != nil || target != "../../../blobs/"+sha(f.content[full]) {
			t.Errorf("the link leads to %s (%v)", target, err)
		}
	}
	ref, err := os.ReadFile(filepath.Join(c.Cache, "models--owner--name", "refs", "main"))
	if err != nil || string(ref) != commit {
		t.Errorf("the reference is %q (%v)", ref, err)
	}

	before := f.count("")
	for _, text := range []string{"owner/name", "owner/name@main", "owner/name@" + commit} {
		if again, err := c.Cached(id(t, text)); err != nil || again != s {
			t.Errorf("%s is found as %v (%v)", text, again, err)
		}
	}
	if _, err := c.Cached(id(t, "owner/name@v2")); err == nil {
		t.Error("a revision that was not downloaded is found")
	}
	if f.count("") != before {
		t.Error("the hub was asked for what is in the cache")
	}
	p, err := c.Plan(t.Context(), id(t, "owner/name"), FullPrecision, Hooks{})
	if err != nil || len(p.Missing) != 0 || p.Left != 0 || len(p.Files) != len(wanted) {
		t.Errorf("still to download: %+v (%v)", p, err)
	}
	// A blob that somebody deletes is missed, and downloaded again.
	if err := os.Remove(filepath.Join(c.Cache, "models--owner--name", "blobs", sha(f.content[full]))); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Cached(s.ID); err == nil || !strings.Contains(err.Error(), "no weights in unet") {
		t.Errorf("error %v", err)
	}
	if s, err = download(t, c, "owner/name@refs/pr/1", FullPrecision, Hooks{}); err != nil {
		t.Fatal(err)
	}
	f.holds(t, s, wanted)
}

func TestChoose(t *testing.T) {
	names := func(change func(map[string]bool)) map[string]bool {
		have := map[string]bool{}
		for name := range model() {
			have[name] = true
		}
		change(have)
		return have
	}
	const vae = "vae/diffusion_pytorch_model"
	shards := func(have map[string]bool) {
		delete(have, full)
		for _, name := range []string{"unet/diffusion_pytorch_model.safetensors.index.json", "unet/diffusion_pytorch_model-00001-of-00002.safetensors", "unet/diffusion_pytorch_model-00002-of-00002.safetensors"} {
			have[name] = true
		}
	}
	for name, c := range map[string]struct {
		variant       string
		change        func(map[string]bool)
		with, without []string
		err           string
	}{
		"full":      {"", func(map[string]bool) {}, []string{full, vae + ".safetensors"}, []string{vae + ".bin", "model.ckpt", "README.md", "safety_checker/config.json"}, ""},
		"half":      {"fp16", func(map[string]bool) {}, []string{vae + ".fp16.safetensors"}, []string{vae + ".safetensors"}, ""},
		"half only": {"", func(h map[string]bool) { delete(h, vae+".safetensors") }, []string{full, vae + ".fp16.safetensors"}, []string{vae + ".bin"}, ""},
		"pickle": {"", func(h map[string]bool) {
			delete(h, vae+".safetensors")
			delete(h, vae+".fp16.safetensors")
		}, []string{full, vae + ".bin"}, nil, ""},
		"shards": {"", shards, []string{"unet/diffusion_pytorch_model.safetensors.index.json", "unet/diffusion_pytorch_model-00002-of-00002.safetensors"}, []string{"unet/diffusion_pytorch_model.bin"}, ""},
		"shard lost": {"", func(h map[string]bool) {
			shards(h)
			delete(h, "unet/diffusion_pytorch_model-00001-of-00002.safetensors")
		}, nil, nil, "1 of 2 are there"},
		"no half": {"fp16", func(h map[string]bool) {
			for name := range h {
				if strings.Contains(name, "fp16") {
					delete(h, name)
				}
			}
		}, nil, nil, "no weights of variant fp16"},
		"no scheduler": {"", func(h map[string]bool) { delete(h, "scheduler/scheduler_config.json") }, nil, nil, "no scheduler/scheduler_config.json"},
		"tokenizer alone": {"", func(h map[string]bool) {
			delete(h, "tokenizer/vocab.json")
			h["tokenizer/tokenizer.json"] = true
		}, []string{"tokenizer/tokenizer.json"}, []string{"tokenizer/merges.txt"}, ""},
	} {
		got, err := choose(names(c.change), sdPipeline, c.variant)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: error %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, file := range c.with {
			if !slices.Contains(got, file) {
				t.Errorf("%s: without %s: %v", name, file, got)
			}
		}
		for _, file := range c.without {
			if slices.Contains(got, file) {
				t.Errorf("%s: with %s: %v", name, file, got)
			}
		}
	}
	if _, err := choose(names(func(map[string]bool) {}), sdxlPipeline, ""); err == nil || !strings.Contains(err.Error(), "text_encoder_2/config.json") {
		t.Errorf("SDXL without its second text encoder: %v", err)
	}
}

// cut ends a connection after n bytes.
func cut(w http.ResponseWriter, r *http.Request, content []byte, n int) {
	from := 0
	if text, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		from, _ = strconv.Atoi(strings.TrimSuffix(text, "-"))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(content)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(content[from:min(len(content), from+n)])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func TestCutConnectionsAreContinued(t *testing.T) {
	f := newFakeHub(t)
	s := random.New(1, "cuts")
	cuts := 0
	f.file = func(w http.ResponseWriter, r *http.Request, name string) bool {
		if len(f.content[name]) < largeFrom || s.IntN(10) == 0 {
			return false
		}
		cuts++
		cut(w, r, f.content[name], s.IntN(100_000))
		return true
	}
	c := f.client(t)
	snapshot, err := download(t, c, "owner/name", FullPrecision, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	f.holds(t, snapshot, wanted)
	if cuts < 4 || f.count("bytes=") < 2 {
		t.Errorf("%d connections were cut, %d continued", cuts, f.count("bytes="))
	}
}

// A process that ends on the way leaves what the next one goes on with.
func TestInterruptedDownloadGoesOn(t *testing.T) {
	f := newFakeHub(t)
	c := f.client(t)
	ctx, cancel := context.WithCancel(t.Context())
	p, err := c.Plan(ctx, id(t, "owner/name"), FullPrecision, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	const cutAt = 100_000
	f.file = func(w http.ResponseWriter, r *http.Request, name string) bool {
		if name != full {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(f.content[name])))
		_, _ = w.Write(f.content[name][:cutAt])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return true
	}
	_, err = c.Fetch(ctx, p, Hooks{Progress: func(p Progress) {
		if p.File == full && p.Done >= cutAt {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "goes on there") {
		t.Fatalf("error %v", err)
	}
	if _, err := c.Cached(id(t, "owner/name")); err == nil {
		t.Error("the half of a model is taken for one")
	}
	f.file = nil
	p, err = c.Plan(t.Context(), id(t, "owner/name"), FullPrecision, Hooks{})
	if err != nil || p.Left <= 0 || p.Left > p.Bytes-cutAt {
		t.Fatalf("%d of %d bytes are left (%v)", p.Left, p.Bytes, err)
	}
	snapshot, err := c.Fetch(t.Context(), p, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	f.holds(t, snapshot, wanted)
	if f.count(full+" bytes=") != 2 { // at the hub, and where it redirects to
		t.Errorf("the download was not continued: %v", f.requests)
	}
}

func TestUnfittingRemainders(t *testing.T) {
	for name, c := range map[string]struct {
		length int // of what an earlier download left
		file   func(f *fakeHub) func(http.ResponseWriter, *http.Request, string) bool
	}{
		"too long":     {400_000, nil},
		"other bytes":  {1000, nil}, // whose checksum is wrong: downloaded again from the start
		"whole, wrong": {300_000, nil},
		"no ranges": {1000, func(f *fakeHub) func(http.ResponseWriter, *http.Request, string) bool {
			return func(w http.ResponseWriter, _ *http.Request, name string) bool {
				_, _ = w.Write(f.content[name])
				return true
			}
		}},
		"416": {1000, func(*fakeHub) func(http.ResponseWriter, *http.Request, string) bool {
			return func(w http.ResponseWriter, r *http.Request, _ string) bool {
				if r.Header.Get("Range") != "" {
					w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				}
				return r.Header.Get("Range") != ""
			}
		}},
		"another range": {1000, func(f *fakeHub) func(http.ResponseWriter, *http.Request, string) bool {
			return func(w http.ResponseWriter, r *http.Request, name string) bool {
				if r.Header.Get("Range") == "" {
					return false
				}
				w.Header().Set("Content-Range", "bytes 5-9/10")
				w.WriteHeader(http.StatusPartialContent)
				return true
			}
		}},
	} {
		f := newFakeHub(t)
		client := f.client(t)
		blobs := filepath.Join(client.Cache, "models--owner--name", "blobs")
		if err := os.MkdirAll(blobs, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(blobs, sha(f.content[full])+incomplete), make([]byte, c.length), 0o644); err != nil {
			t.Fatal(err)
		}
		if c.file != nil {
			f.file = c.file(f)
		}
		s, err := download(t, client, "owner/name", FullPrecision, Hooks{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f.holds(t, s, wanted)
	}
}

func TestWrongChecksum(t *testing.T) {
	f := newFakeHub(t)
	c := f.client(t)
	wrong := 1
	f.file = func(w http.ResponseWriter, r *http.Request, name string) bool {
		if name != full || wrong == 0 {
			return false
		}
		wrong--
		_, _ = w.Write(noise("other", len(f.content[name])))
		return true
	}
	var warnings []string
	hooks := Hooks{Warn: func(s string) { warnings = append(warnings, s) }}
	s, err := download(t, c, "owner/name", FullPrecision, hooks)
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "damaged") {
		t.Fatalf("%v, warnings %v", err, warnings)
	}
	f.holds(t, s, wanted)

	wrong = 100
	c = f.client(t)
	_, err = download(t, c, "owner/name", FullPrecision, hooks)
	if err == nil || !strings.Contains(err.Error(), "damaged on its way twice") || wrong != 98 {
		t.Errorf("error %v after %d attempts", err, 100-wrong)
	}
	left, _ := filepath.Glob(filepath.Join(c.Cache, "*", "blobs", sha(f.content[full])+"*"))
	if len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	// Small files are checked as well.
	f.file = func(w http.ResponseWriter, _ *http.Request, name string) bool {
		if name == "unet/config.json" {
			_, _ = w.Write([]byte(strings.Repeat(" ", len(f.content[name]))))
		}
		return name == "unet/config.json"
	}
	if _, err = download(t, f.client(t), "owner/name", FullPrecision, Hooks{}); err == nil || !strings.Contains(err.Error(), "unet/config.json was damaged") {
		t.Errorf("error %v", err)
	}
}

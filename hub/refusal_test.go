package hub

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestRefusals(t *testing.T) {
	status := func(code int, header ...string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/resolve/") {
				return false
			}
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			return true
		}
	}
	all := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(code)
			return true
		}
	}
	body := func(path, content string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, path) {
				_, _ = w.Write([]byte(content))
			}
			return strings.Contains(r.URL.Path, path)
		}
	}
	licence := []string{"gated", "accept the licence at http://127.0.0.1:", "/owner/name and set HF_TOKEN"}
	for name, c := range map[string]struct {
		id    string
		env   []string
		api   func(http.ResponseWriter, *http.Request) bool
		parts []string
	}{
		"gated, 401":       {"owner/name", nil, status(401, "X-Error-Code", "GatedRepo"), licence},
		"gated, 403":       {"owner/name", nil, status(403, "X-Error-Code", "GatedRepo"), licence},
		"gated with token": {"owner/name", []string{"HF_TOKEN", token}, status(403), []string{"gated", "with the account that the token in use belongs to"}},
		"bad token":        {"owner/name", []string{"HF_TOKEN", token}, all(401), []string{"HTTP 401", "has expired", "HF_TOKEN"}},
		"no such model":    {"owner/other", nil, nil, []string{"owner/other: access is refused (HTTP 401)", "there is no such model"}},
		"404":              {"owner/name", nil, all(404), []string{"no such model or revision (HTTP 404)"}},
		"no such revision": {"owner/name@v9", nil, nil, []string{`no revision "v9"`}},
		"502":              {"owner/name", nil, all(502), []string{"HTTP 502"}},
		"418":              {"owner/name", nil, all(418), []string{"HTTP 418"}},
		"429":              {"owner/name", nil, status(429, "Retry-After", "7200"), []string{"HTTP 429", "wait for 2h0m0s"}},
		"no JSON":          {"owner/name", nil, body("/revision/", "<html>"), []string{"does not answer as a hub does", "HF_ENDPOINT"}},
		"no commit":        {"owner/name", nil, body("/revision/", `{"sha": "../../x"}`), []string{"names no commit"}},
		"bad hash":         {"owner/name", nil, body("/tree/", `[{"type": "file", "path": "model_index.json", "size": 3, "oid": "../../../x"}]`), []string{"model_index.json", "cannot be right"}},
		"bad path":         {"owner/name", nil, body("/tree/", `[{"type": "file", "path": "../x", "size": 3, "oid": "`+commit+`"}]`), []string{"../x"}},
		"bad size":         {"owner/name", nil, body("/tree/", `[{"type": "file", "path": "x", "size": -3, "oid": "`+commit+`"}]`), []string{"cannot be right"}},
		"huge":             {"owner/name", nil, body("/tree/", strings.Repeat(" ", maxAnswer+1)), []string{"not plausible"}},
		"empty":            {"owner/name", nil, body("/tree/", `[]`), []string{"no model_index.json"}},
		"offline":          {"owner/name", []string{"HF_HUB_OFFLINE", "1"}, nil, []string{"HF_HUB_OFFLINE"}},
	} {
		f := newFakeHub(t)
		f.api = c.api
		_, err := download(t, f.client(t, c.env...), c.id, FullPrecision, Hooks{})
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, part := range c.parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: no %q in %q", name, part, err)
			}
		}
		if text := err.Error(); strings.Contains(text, "\n") || strings.Contains(text, token) || strings.Contains(text, "s3cret") {
			t.Errorf("%s: error %q", name, text)
		}
		if name == "offline" && f.count("") > 0 {
			t.Error("the hub was asked although it must not be")
		}
	}
}

func TestOtherPipelines(t *testing.T) {
	f := newFakeHub(t)
	f.content["model_index.json"] = []byte(`{"_class_name": "FluxPipeline"}`)
	_, err := download(t, f.client(t), "owner/name", FullPrecision, Hooks{})
	if err == nil || !strings.Contains(err.Error(), `"FluxPipeline" is not supported`) || f.count("unet") > 0 {
		t.Errorf("error %v after %v", err, f.requests)
	}
	if _, err := f.client(t).Plan(t.Context(), id(t, "owner/name"), "bf16", Hooks{}); err == nil || !strings.Contains(err.Error(), `variant "bf16"`) {
		t.Errorf("error %v", err)
	}
}

func TestBusyServers(t *testing.T) {
	f := newFakeHub(t)
	var waits []time.Duration
	c := f.client(t)
	c.pause = func(_ context.Context, d time.Duration) error {
		waits = append(waits, d)
		return nil
	}
	busy := map[string]bool{}
	f.api = func(w http.ResponseWriter, r *http.Request) bool {
		if busy[r.URL.String()] {
			return false
		}
		busy[r.URL.String()] = true
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(429)
		return true
	}
	s, err := download(t, c, "owner/name", FullPrecision, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	f.holds(t, s, wanted)
	if len(waits) < 10 || waits[0] != 7*time.Second {
		t.Errorf("waited for %v", waits)
	}
}

func TestTheTokenStaysWithTheHub(t *testing.T) {
	f := newFakeHub(t) // whose storage, at another port of the same address, refuses the token
	c := f.client(t, "HF_TOKEN", token)
	seen := 0
	f.api = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer "+token {
			seen++
		}
		return false
	}
	if _, err := download(t, c, "owner/name", FullPrecision, Hooks{}); err != nil {
		t.Fatal(err)
	}
	if seen < 10 {
		t.Errorf("the hub got the token %d times", seen)
	}
	// The next page of a list is not taken from another host.
	stranger := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("another host was asked") }))
	defer stranger.Close()
	f.api = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/tree/") {
			return false
		}
		w.Header().Set("Link", `<`+stranger.URL+`/>; rel="next"`)
		_, _ = w.Write([]byte("[]"))
		return true
	}
	_, err := download(t, c, "owner/name", FullPrecision, Hooks{})
	if err == nil || !strings.Contains(err.Error(), hostOf(t, stranger.URL)) {
		t.Errorf("error %v", err)
	}
}

func TestNoOpenConnectionAfterAnEncryptedOne(t *testing.T) {
	f := newFakeHub(t)
	secure := httptest.NewTLSServer(http.HandlerFunc(f.answer)) // redirects to the storage, which is not encrypted
	defer secure.Close()
	c := f.client(t, "HF_ENDPOINT", secure.URL)
	c.Endpoint = secure.URL
	c.http.Transport = secure.Client().Transport
	f.URL = secure.URL // for the links between pages
	_, err := download(t, c, "owner/name", FullPrecision, Hooks{})
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("error %v", err)
	}
}

func TestSilentAndUnreachableServers(t *testing.T) {
	f := newFakeHub(t)
	c := f.client(t)
	c.stall = 50 * time.Millisecond
	silent := 2
	f.file = func(w http.ResponseWriter, r *http.Request, name string) bool {
		if name != full || silent == 0 {
			return false
		}
		silent--
		w.Header().Set("Content-Length", "300000")
		_, _ = w.Write(f.content[name][:1000])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return true
	}
	// The first silence is after 1000 bytes, the second one repeats them where the rest was asked for.
	s, err := download(t, c, "owner/name", FullPrecision, Hooks{})
	if err != nil || silent != 0 {
		t.Fatalf("%v, %d", err, silent)
	}
	f.holds(t, s, wanted)

	hang := make(chan struct{})
	f.api = func(http.ResponseWriter, *http.Request) bool { <-hang; return true }
	_, err = download(t, c, "owner/name", FullPrecision, Hooks{})
	close(hang)
	if err == nil || !strings.Contains(err.Error(), "nothing comes any more") {
		t.Errorf("error %v", err)
	}
	f.Close()
	_, err = download(t, c, "owner/name", FullPrecision, Hooks{})
	if err == nil || !strings.Contains(err.Error(), "cannot reach 127.0.0.1") || !strings.Contains(err.Error(), "HF_HUB_OFFLINE=1") {
		t.Errorf("error %v", err)
	}
	if _, err := c.Cached(id(t, "owner/name")); err != nil {
		t.Errorf("without the hub the cache is not used: %v", err)
	}
}

func TestSlowServersArePatientlyReadFrom(t *testing.T) {
	f := newFakeHub(t)
	c := f.client(t)
	c.stall = 300 * time.Millisecond
	f.file = func(w http.ResponseWriter, _ *http.Request, name string) bool {
		if name != full {
			return false
		}
		for part := range 6 {
			time.Sleep(100 * time.Millisecond) // together longer than the client waits for one byte
			_, _ = w.Write(f.content[name][part*50_000 : (part+1)*50_000])
			_ = http.NewResponseController(w).Flush()
		}
		return true
	}
	s, err := download(t, c, "owner/name", FullPrecision, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	f.holds(t, s, wanted)
	if n := f.count("storage /" + full); n != 1 {
		t.Errorf("the slow file was asked for %d times", n)
	}
}

func TestFullDisk(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no /dev/full")
	}
	f := newFakeHub(t)
	c := f.client(t)
	blobs := filepath.Join(c.Cache, "models--owner--name", "blobs")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", filepath.Join(blobs, sha(f.content[full])+incomplete)); err != nil {
		t.Fatal(err)
	}
	_, err := download(t, c, "owner/name", FullPrecision, Hooks{})
	if err == nil || !strings.Contains(err.Error(), "is full") || !strings.Contains(err.Error(), "HF_HUB_CACHE") {
		t.Errorf("error %v", err)
	}
	// What cannot fit is refused before it is begun.
	p := &Plan{ID: id(t, "owner/name"), Left: 1 << 60, Missing: []File{{Path: "x", Size: 1 << 60, Hash: commit}}}
	if _, err := c.Fetch(t.Context(), p, Hooks{}); err == nil || !strings.Contains(err.Error(), "1152921504606846976 bytes are still to come") {
		t.Errorf("error %v", err)
	}
	c.Cache = "/dev/full/cache"
	if _, err := download(t, c, "owner/name", FullPrecision, Hooks{}); err == nil || !strings.Contains(err.Error(), "cannot write to the cache") {
		t.Errorf("error %v", err)
	}
}

func TestTwoDownloadsAtOnce(t *testing.T) {
	f := newFakeHub(t)
	c := f.client(t)
	done := make(chan error)
	for range 4 {
		go func() {
			p, err := c.Plan(t.Context(), ID{Owner: "owner", Name: "name"}, FullPrecision, Hooks{})
			if err == nil {
				_, err = c.Fetch(t.Context(), p, Hooks{})
			}
			done <- err
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := f.count("storage /" + full); n != 1 {
		t.Errorf("the UNet was downloaded %d times", n)
	}
	s, err := c.Cached(id(t, "owner/name"))
	if err != nil {
		t.Fatal(err)
	}
	f.holds(t, s, wanted)
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 100-199/200")
	f.Add("bytes */200")
	f.Fuzz(func(t *testing.T, text string) {
		from, total, ok := contentRange(&http.Response{Header: http.Header{"Content-Range": {text}}})
		if ok && (from < 0 || total < -1 || !strings.HasPrefix(text, "bytes ")) {
			t.Errorf("%q is read as %d of %d", text, from, total)
		}
	})
}

func FuzzParseID(f *testing.F) {
	f.Add("owner/name@main")
	f.Fuzz(func(t *testing.T, text string) {
		if id, ok := ParseID(text); ok {
			c := Client{Cache: "cache"}
			if path := c.repository(id).ref(id.revision()); !filepath.IsLocal(path) || !strings.HasPrefix(path, filepath.Join("cache", "models--")) || id.String() != text {
				t.Errorf("%q is read as %v, whose place is %s", text, id, path)
			}
		}
	})
}

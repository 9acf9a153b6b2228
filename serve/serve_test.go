package serve

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/report/browsertest"
	"github.com/resalign/resalign/train"
)

// job is a run folder with an open log, and a server of it.
func job(t *testing.T) (dir string, log *train.EventLog, s *Server) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "run")
	run, err := train.CreateRun(dir, []byte("method = \"resalign\"\n[outer]\nsteps = 5000\n"), train.Session{Engine: "go"})
	if err != nil {
		t.Fatal(err)
	}
	if log, err = train.OpenEventLog(run.EventsPath(), -1); err != nil {
		t.Fatal(err)
	}
	if s, err = New(dir, false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close(); run.Close(); s.Close() })
	return dir, log, s
}

func step(t *testing.T, log *train.EventLog, i int, loss any) {
	t.Helper()
	if err := log.Append(train.Event{Step: i, Kind: "step", Fields: map[string]any{"harmful_loss": loss, "residual": []float64{.1, .2}, "seconds": 2.}}); err != nil {
		t.Fatal(err)
	}
}

func get(s *Server, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1/", nil)
	r.URL.Path = path
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func told(t *testing.T, s *Server) (out state) {
	t.Helper()
	if err := json.Unmarshal(get(s, "/state").Body.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAGrowingLogIsFollowed(t *testing.T) {
	dir, log, s := job(t)
	if got := told(t, s); got.Done != 0 || got.Total != 5000 || got.Kind != "unlearn" || got.Problem != "" {
		t.Errorf("%+v", got)
	}
	step(t, log, 1, 1.5)
	step(t, log, 2, "NaN")
	file := filepath.Join(dir, "events.jsonl")
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprint(f, `{"step":3,"kind":"step","fields":{"harm`) // half a line is no step yet
	got := told(t, s)
	if loss := got.Series[0]; got.Done != 2 || loss.Name != "harmful_loss" || len(loss.X) != 2 || *loss.Y[0] != 1.5 || loss.Y[1] != nil || got.Left != 2*4998 {
		t.Errorf("%+v", got)
	}
	if *got.Series[1].Y[0] != .2 || got.Problem != "" {
		t.Errorf("%+v", got)
	}
	fmt.Fprint(f, "ful_loss\":0.5}}\n")
	if got = told(t, s); got.Done != 3 || *got.Series[0].Y[2] != .5 {
		t.Errorf("%+v", got)
	}
	// The run is resumed from its second step.
	if err := os.WriteFile(file, []byte("{\"step\":1,\"kind\":\"step\",\"fields\":{\"harmful_loss\":1.5}}\nnonsense\n{\"step\":2,\"kind\":\"step\",\"fields\":{\"harmful_loss\":9}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got = told(t, s); got.Done != 2 || *got.Series[0].Y[1] != 9 || !strings.Contains(got.Problem, "no events") {
		t.Errorf("%+v", got)
	}
}

func TestLongLogsAreThinned(t *testing.T) {
	l := &eventLog{found: map[string]*series{}, skip: map[string]int{}, seen: map[string]int{}}
	for i := range 10 * maxPoints {
		l.take([]byte(fmt.Sprintf(`{"step":%d,"kind":"step","fields":{"loss":%d}}`, i, i)))
	}
	s := l.found["loss"]
	if len(s.X) >= maxPoints || len(s.X) < maxPoints/4 || s.X[len(s.X)-1] < 10*maxPoints-100 || float64(s.X[7]) != *s.Y[7] {
		t.Errorf("%d points up to %d", len(s.X), s.X[len(s.X)-1])
	}
}

func TestHostileRequests(t *testing.T) {
	dir, _, s := job(t)
	secret := filepath.Join(filepath.Dir(dir), "secret.png")
	for path, content := range map[string]string{secret: "secret", filepath.Join(dir, "previews", "step-00000001.png"): "picture"} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(secret, filepath.Join(dir, "previews", "link.png")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "previews", "folder.png"), 0o755); err != nil {
		t.Fatal(err)
	}
	good := get(s, "/previews/step-00000001.png")
	if good.Code != 200 || good.Body.String() != "picture" || good.Header().Get("Content-Type") != "image/png" || good.Header().Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%d %s %v", good.Code, good.Body, good.Header())
	}
	for _, path := range []string{
		"/previews/../../secret.png", "/previews/..%2f..%2fsecret.png", "/previews//etc/passwd", "/previews/link.png", "/previews/folder.png", "/previews/",
		"/previews/.png", "/previews/a\x00.png", "/previews/..\\secret.png", "/run.json", "/recipe.toml", "/../secret.png", "//", "", "/state/",
	} {
		if w := get(s, path); w.Code != 404 || strings.Contains(w.Body.String(), "secret") || !strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%q: %d %s", path, w.Code, w.Body)
		}
	}
	for host, want := range map[string]int{"localhost:8321": 200, "[::1]:9": 200, "127.0.0.1": 200, "evil.example": 403, "127.0.0.1.evil.example:80": 403, "": 403, "10.0.0.1": 403} {
		r := httptest.NewRequest(http.MethodGet, "/state", nil)
		r.Host = host
		w := httptest.NewRecorder()
		if s.ServeHTTP(w, r); w.Code != want {
			t.Errorf("host %q: %d", host, w.Code)
		}
	}
	w := httptest.NewRecorder()
	if s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "http://127.0.0.1/state", nil)); w.Code != 405 {
		t.Errorf("POST: %d", w.Code)
	}
	if _, err := New(filepath.Dir(dir), false); err == nil || !strings.Contains(err.Error(), "is not the folder of a run") {
		t.Error(err)
	}
}

func TestThePageInABrowser(t *testing.T) {
	b := browsertest.Start(t)
	dir, log, s := job(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, listener) }()
	for i := 1; i <= 30; i++ {
		step(t, log, i, 1/float64(i))
	}
	const gif = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
	var dot []byte
	if err := json.Unmarshal([]byte(`"`+gif+`"`), &dot); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "previews", "step-00000020.png"), dot, 0o644); err != nil {
		t.Fatal(err)
	}
	tab := b.Open(t, "http://"+listener.Addr().String()+"/", browsertest.Look{Width: 390, Height: 844, Dark: true})
	wait := `new Promise((done) => { const look = () => { const s = document.querySelector('svg[data-name="harmful_loss"]'); s && Number(s.dataset.points) >= %d ? done(Number(s.dataset.last)) : setTimeout(look, 50); }; look(); })`
	var last float64
	tab.Eval(fmt.Sprintf(wait, 30), &last)
	if last != 1./30 {
		t.Errorf("drawn up to %v", last)
	}
	step(t, log, 31, 7.5)
	if tab.Eval(fmt.Sprintf(wait, 31), &last); last != 7.5 {
		t.Errorf("the page does not follow: %v", last)
	}
	var blurred string
	if tab.Eval(`getComputedStyle(document.querySelector(".tile img")).filter`, &blurred); !strings.Contains(blurred, "blur") {
		t.Error("the preview is not blurred")
	}
	tab.Click(".veil")
	if tab.Eval(`getComputedStyle(document.querySelector(".tile img")).filter`, &blurred); strings.Contains(blurred, "blur") {
		t.Error("a click does not show the preview")
	}
	if p, u, o := tab.Problems(), tab.Unreadable(), tab.Overflow(); len(p) > 0 || len(u) > 0 || o > 0 {
		t.Errorf("console %q, too pale %q, %d pixels too wide", p, u, o)
	}
	if dir := os.Getenv("RESALIGN_SCREENSHOTS"); dir != "" {
		tab.Screenshot(filepath.Join(dir, "serve.png"))
	}
	for _, address := range tab.Requests() {
		if !strings.HasPrefix(address, "http://"+listener.Addr().String()+"/") {
			t.Errorf("asked for %s", address)
		}
	}
	end()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Package serve shows a running job in a browser: one page that asks for what is new every other second. It reads the
// files of one run folder, nothing outside it, and writes nothing.
package serve

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/resalign/resalign/report"
)

//go:embed page.html
var pageText string

//go:embed page.js
var script string

//go:embed page.css
var styleSheet string

// Server answers for one run folder.
type Server struct {
	root *os.Root
	path string
	log  *eventLog
	page []byte
	// policy is what a browser may load and run.
	policy string
	// anyHost accepts requests that name another host than this machine.
	anyHost bool
}

// New opens a run folder. Names by which a request may call the server are restricted to this machine's own, against
// pages elsewhere that have their name resolved to it, unless anyHost is set.
func New(folder string, anyHost bool) (*Server, error) {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, fmt.Errorf("run folder %s cannot be opened: %w; check its name", folder, err)
	}
	if info, err := root.Stat("run.json"); err != nil || !info.Mode().IsRegular() {
		root.Close()
		return nil, fmt.Errorf("%s is not the folder of a run: it holds no run.json; `resalign runs %s` lists those below it", folder, folder)
	}
	sheet := report.StyleSheet() + styleSheet
	s := &Server{root: root, path: folder, log: &eventLog{root: root}, anyHost: anyHost}
	s.page = []byte(strings.NewReplacer("/*style*/", sheet, "/*script*/", script).Replace(pageText))
	s.policy = fmt.Sprintf("default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src '%s'; script-src '%s'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		digest(sheet), digest(script))
	return s, nil
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// Close closes the folder.
func (s *Server) Close() error { return s.root.Close() }

// Limits of the connections: nothing here takes long.
const (
	headerTimeout = 5 * time.Second
	idleTimeout   = time.Minute
	writeTimeout  = 30 * time.Second
	maxHeader     = 16 << 10
	endTimeout    = 3 * time.Second
)

// Serve answers requests until ctx ends, and closes the listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{Handler: s, ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serving %s: %w", s.path, err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if err := server.Shutdown(last); err != nil {
		return errors.Join(fmt.Errorf("ending the server: %w", err), server.Close())
	}
	return nil
}

// ServeHTTP implements [http.Handler]: the page at /, what is known of the run at /state, previews at /previews/NAME.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for name, value := range map[string]string{
		"Content-Security-Policy": s.policy, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
		"Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin", "Cache-Control": "no-store",
	} {
		w.Header().Set(name, value)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "this server only shows", http.StatusMethodNotAllowed)
		return
	}
	if !s.anyHost && !local(r.Host) {
		http.Error(w, "ask for this server by the address it prints", http.StatusForbidden)
		return
	}
	switch name, isPreview := strings.CutPrefix(r.URL.Path, "/previews/"); {
	case r.URL.Path == "/":
		answer(w, "text/html; charset=utf-8", s.page)
	case r.URL.Path == "/state":
		content, err := json.Marshal(s.state())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer(w, "application/json", content)
	case isPreview:
		s.preview(w, name)
	default:
		http.Error(w, "there is no such page", http.StatusNotFound)
	}
}

func answer(w http.ResponseWriter, kind string, content []byte) {
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(content) // whoever asked may have gone
}

// local tells whether a request calls the server by a name that only this machine has.
func local(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return ip != nil && ip.IsLoopback()
}

// previewName is what a preview may be called: one plain name, nothing that leads elsewhere.
var previewName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*\.(png|jpe?g)$`)

// maxPreview is far above what a preview takes.
const maxPreview = 64 << 20

func (s *Server) preview(w http.ResponseWriter, name string) {
	content, err := s.picture(name)
	if err != nil {
		http.Error(w, "there is no such preview", http.StatusNotFound)
		return
	}
	kind := "image/jpeg"
	if strings.HasSuffix(name, ".png") {
		kind = "image/png"
	}
	answer(w, kind, content)
}

func (s *Server) picture(name string) ([]byte, error) {
	if !previewName.MatchString(name) {
		return nil, fs.ErrNotExist
	}
	return s.small(filepath.Join("previews", name), maxPreview)
}

// small reads a plain file of the folder of at most so many bytes.
func (s *Server) small(name string, limit int64) ([]byte, error) {
	info, err := s.root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s is not a plain file of at most %d bytes", name, limit)
	}
	return s.root.ReadFile(name)
}

package plugins

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

const member = "some_plugin/pjrt_c_api_cpu_plugin.so"

// wheel is a zip archive with one file.
func wheel(t *testing.T, name string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.Create(name)
	if err == nil {
		_, err = f.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// index serves a package index with one wheel, and the package that trusts it.
func index(t *testing.T, content []byte) (Package, *httptest.Server) {
	t.Helper()
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	mux := http.NewServeMux()
	mux.HandleFunc("/pypi/some-plugin/1.2/json", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"urls": [
			{"url": "../../../files/other.whl", "size": 3, "digests": {"sha256": "00"}},
			{"url": "../../../files/some.whl", "size": %d, "digests": {"sha256": %q}}]}`, len(content), digest)
	})
	mux.HandleFunc("/files/some.whl", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(content) // a reader that went away is not the server's failure
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return Package{Kind: "cpu", Project: "some-plugin", Version: "1.2", Library: member, SHA256: map[string]string{runtime.GOARCH: digest}}, server
}

// leaves fails unless the folder holds exactly these files.
func leaves(t *testing.T, folder string, want ...string) {
	t.Helper()
	var got []string
	_ = filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			got = append(got, path)
		}
		return nil
	})
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the folder holds %v, not %v", got, want)
	}
}

func TestDownload(t *testing.T) {
	onLinux(t)
	library := plugin().bytes(t)
	content := wheel(t, member, library)
	p, server := index(t, content)
	var told int64
	in := Installer{Folder: filepath.Join(t.TempDir(), "new", "plugins"), Index: server.URL + "/", OnDownload: func(address string, size int64) {
		if address != server.URL+"/files/some.whl" {
			t.Errorf("the address is %s", address)
		}
		told = size
	}}
	for range 2 { // the second time it replaces the first
		installed, err := in.Download(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(installed)
		if err != nil || !bytes.Equal(got, library) {
			t.Errorf("%s is not the library (%v)", installed, err)
		}
		leaves(t, in.Folder, filepath.Join(in.Folder, "cpu", "pjrt_c_api_cpu_plugin.so"))
	}
	if told != int64(len(content)) {
		t.Errorf("%d bytes were announced, not %d", told, len(content))
	}
	found := search(environment("XDG_DATA_HOME", t.TempDir()), filepath.Join(filepath.Dir(in.Folder), "resalign"))
	if len(found) != 2 || len(found[1].Found) != 1 {
		t.Errorf("what was installed is not found: %+v", found)
	}
}

// Mirrors may list all versions on the project's page and have no page for each.
func TestDownloadFromAMirror(t *testing.T) {
	onLinux(t)
	content := wheel(t, member, plugin().bytes(t))
	p, _ := index(t, content)
	mux := http.NewServeMux()
	mux.HandleFunc("/mirror/pypi/some-plugin/json", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"urls": [], "releases": {"1.1": [], "1.2": [{"url": "../../files/some.whl", "size": %d, "digests": {"sha256": %q}}]}}`,
			len(content), p.SHA256[runtime.GOARCH])
	})
	mux.HandleFunc("/mirror/files/some.whl", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) })
	server := httptest.NewServer(mux)
	defer server.Close()
	in := Installer{Folder: t.TempDir(), Index: server.URL + "/mirror"}
	installed, err := in.Download(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	leaves(t, in.Folder, installed)
}

func TestDownloadRefuses(t *testing.T) {
	onLinux(t)
	good := wheel(t, member, plugin().bytes(t))
	p, server := index(t, good)
	untrusted := p
	untrusted.SHA256 = map[string]string{runtime.GOARCH: strings.Repeat("ab", 32)}
	missing := p
	missing.Version = "9"
	noneHere := p
	noneHere.SHA256 = nil
	notZip, notZipServer := index(t, []byte("no archive"))
	elsewhere, elsewhereServer := index(t, wheel(t, "a.txt", []byte("x")))
	noPlugin, noPluginServer := index(t, wheel(t, member, []byte("no library")))
	// A server that sends something else than it announced.
	swapped := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/json") {
			fmt.Fprintf(w, `{"urls": [{"url": "/x.whl", "size": 5, "digests": {"sha256": %q}}]}`, p.SHA256[runtime.GOARCH])
			return
		}
		fmt.Fprint(w, "12345 and more than announced")
	}))
	t.Cleanup(swapped.Close)
	huge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"urls": [{"url": "/x.whl", "size": 99999999999999, "digests": {"sha256": %q}}]}`, p.SHA256[runtime.GOARCH])
	}))
	t.Cleanup(huge.Close)
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }))
	t.Cleanup(page.Close)
	for name, c := range map[string]struct {
		p     Package
		index string
		says  string
	}{
		"untrusted":  {untrusted, server.URL, "that this program trusts"},
		"missing":    {missing, server.URL, "404"},
		"processor":  {noneHere, server.URL, "there is none for"},
		"no archive": {notZip, notZipServer.URL, "is damaged"},
		"elsewhere":  {elsewhere, elsewhereServer.URL, "holds no " + member},
		"no plugin":  {noPlugin, noPluginServer.URL, "is not a shared library"},
		"swapped":    {p, swapped.URL, "is not the expected file"},
		"huge":       {p, huge.URL, "at most"},
		"no JSON":    {p, page.URL, "JSON"},
		"address":    {p, "ftp://x", "is not a web address"},
		"no server":  {p, "http://127.0.0.1:1", "check the network"},
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			_, err := Installer{Folder: folder, Index: c.index}.Download(t.Context(), c.p)
			if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error is %v, not one sentence with %q", err, c.says)
			}
			leaves(t, folder)
		})
	}
}

func TestBrokenDownloadLeavesNothing(t *testing.T) {
	onLinux(t)
	p, _ := index(t, wheel(t, member, plugin().bytes(t)))
	ctx, cancel := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/json"):
			file := "/x.whl"
			if strings.HasPrefix(r.URL.Path, "/interrupted") {
				file = "/interrupted.whl"
			}
			fmt.Fprintf(w, `{"urls": [{"url": %q, "size": 1000000, "digests": {"sha256": %q}}]}`, file, p.SHA256[runtime.GOARCH])
		case strings.HasPrefix(r.URL.Path, "/interrupted"):
			cancel()
			<-r.Context().Done()
		default:
			w.Header().Set("Content-Length", "1000000")
			fmt.Fprint(w, "the beginning") // and the connection is closed
		}
	}))
	defer server.Close()
	folder := t.TempDir()
	in := Installer{Folder: folder, Index: server.URL}
	if _, err := in.Download(t.Context(), p); err == nil || !strings.Contains(err.Error(), "broke off after 13 of 1000000 bytes") {
		t.Errorf("error is %v", err)
	}
	in.Index += "/interrupted"
	if _, err := in.Download(ctx, p); !errors.Is(err, context.Canceled) {
		t.Errorf("error of an interrupted download is %v", err)
	}
	leaves(t, folder)
}

func TestFromFile(t *testing.T) {
	onLinux(t)
	library := plugin().bytes(t)
	p := Packages()[0]
	for name, content := range map[string][]byte{"any.so": library, "any.whl": wheel(t, p.Library, library)} {
		in := Installer{Folder: t.TempDir()}
		installed, err := in.FromFile(p, write(t, name, content))
		if err != nil {
			t.Fatal(err)
		}
		leaves(t, in.Folder, installed)
	}
	for name, says := range map[string]string{"any.txt": "neither", "any.so": "is not a shared library", "any.whl": "is damaged"} {
		in := Installer{Folder: t.TempDir()}
		if _, err := in.FromFile(p, write(t, name, []byte("text"))); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error is %v, not %q", name, err, says)
		}
		leaves(t, in.Folder)
	}
	in := Installer{Folder: t.TempDir()}
	if _, err := in.FromFile(p, filepath.Join(in.Folder, "none.so")); err == nil || !strings.Contains(err.Error(), "none.so") {
		t.Errorf("error is %v", err)
	}
	if _, err := in.FromFile(p, in.Folder); err == nil || !strings.Contains(err.Error(), "is not a file") {
		t.Errorf("error is %v", err)
	}
}

func TestPackages(t *testing.T) {
	for _, p := range Packages() {
		if got, err := Find(p.Kind); err != nil || got.Project != p.Project {
			t.Errorf("%s is not found: %v", p.Kind, err)
		}
		for processor, digest := range p.SHA256 {
			if raw, err := hex.DecodeString(digest); err != nil || len(raw) != sha256.Size {
				t.Errorf("%s for %s: %q is no SHA-256", p.Kind, processor, digest)
			}
		}
		if filepath.Ext(p.Library) != ".so" || !strings.Contains(filepath.Base(p.Library), "plugin") {
			t.Errorf("%s would not be found under the name %s", p.Kind, p.Library)
		}
	}
	if _, err := Find("cuda12"); err == nil || !strings.Contains(err.Error(), "cuda13") {
		t.Errorf("error is %v", err)
	}
}

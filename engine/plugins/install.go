package plugins

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/resalign/resalign/files"
)

// DefaultIndex is the Python package index, where the makers of XLA plugins publish them.
const DefaultIndex = "https://pypi.org"

// Package is a plugin in the Python package index.
type Package struct {
	Kind    string // cpu or cuda13, the name users give
	Project string // in the index
	Version string
	Library string            // the plugin's path in the wheel
	SHA256  map[string]string // of the wheel for each processor (runtime.GOARCH)
}

// Packages lists the plugins that can be installed: one version each, tried with this program, by the digest of its file.
func Packages() []Package {
	return []Package{
		{
			Kind: "cpu", Project: "lammps-jax-pjrt-cpu", Version: "0.11.2", Library: "lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so",
			SHA256: map[string]string{"amd64": "1319390d948b39f69f7dade496b7c385149d9ca6097a6b62114da113216d9ad1"},
		},
		{
			Kind: "cuda13", Project: "jax-cuda13-pjrt", Version: "0.12.0.1", Library: "jax_plugins/xla_cuda13/xla_cuda_plugin.so",
			SHA256: map[string]string{
				"amd64": "5899bb6177eda86ea532afb9a26794f2bdd04966f6a01f9028266b16c2b6cf90",
				"arm64": "40758d042df8c06991b6a1a8016b56e9cefb1ed4c677c062125c3eb71c3dab97",
			},
		},
	}
}

// Kinds lists the plugins' kinds.
func Kinds() []string {
	var kinds []string
	for _, p := range Packages() {
		kinds = append(kinds, p.Kind)
	}
	return kinds
}

// Find returns the package of a kind.
func Find(kind string) (Package, error) {
	for _, p := range Packages() {
		if p.Kind == kind {
			return p, nil
		}
	}
	return Package{}, fmt.Errorf("there is no XLA plugin %q; choose from %s", kind, strings.Join(Kinds(), ", "))
}

// Installer puts plugins into a folder, each into a folder of its kind.
type Installer struct {
	Folder string // usually UserFolder
	Index  string // base address of a Python package index with its JSON interface; "" stands for DefaultIndex
	// OnDownload, if set, is told before a download which address is fetched and how many bytes that is.
	OnDownload func(address string, size int64)
}

// Limits of what an index or a wheel may make us read or write.
const (
	maxAnswer  = 16 << 20
	maxWheel   = 2 << 30
	maxLibrary = 4 << 30
)

// Download fetches the plugin's wheel from the index, checks its SHA-256, and installs the plugin in it. It returns the
// installed file.
func (in Installer) Download(ctx context.Context, p Package) (installed string, err error) {
	digest, ok := p.SHA256[runtime.GOARCH]
	if runtime.GOOS != "linux" || !ok {
		return "", fmt.Errorf("XLA plugin %s: there is none for %s/%s; use --engine go", p.Kind, runtime.GOOS, runtime.GOARCH)
	}
	address, size, err := in.locate(ctx, p, digest)
	if err != nil {
		return "", err
	}
	if in.OnDownload != nil {
		in.OnDownload(address, size)
	}
	if err := os.MkdirAll(in.Folder, 0o777); err != nil {
		return "", fmt.Errorf("folder for plugins: %w", err)
	}
	wheel, err := os.CreateTemp(in.Folder, ".download-")
	if err != nil {
		return "", fmt.Errorf("folder for plugins: %w", err)
	}
	defer func() {
		_ = wheel.Close()
		_ = os.Remove(wheel.Name())
	}()
	if err := fetch(ctx, address, size, digest, wheel); err != nil {
		return "", err
	}
	return in.unpack(p, wheel, size, address)
}

// release is a file in the answer of a package index.
type release struct {
	URL     string
	Size    int64
	Digests struct{ SHA256 string }
}

// locate asks the index for the address and the size of the wheel with the digest.
func (in Installer) locate(ctx context.Context, p Package, digest string) (address string, size int64, err error) {
	index := in.Index
	if index == "" {
		index = DefaultIndex
	}
	root, err := url.Parse(index)
	if err != nil || root.Host == "" || (root.Scheme != "https" && root.Scheme != "http") {
		return "", 0, fmt.Errorf("package index %q is not a web address; give one such as %s", index, DefaultIndex)
	}
	// Some mirrors have only the page of the project, not that of its version.
	page, releases, err := ask(ctx, root.JoinPath("pypi", p.Project, p.Version, "json"), p.Version)
	if errors.Is(err, errNotThere) {
		page, releases, err = ask(ctx, root.JoinPath("pypi", p.Project, "json"), p.Version)
	}
	if err != nil {
		return "", 0, err
	}
	for _, r := range releases {
		if !strings.EqualFold(r.Digests.SHA256, digest) {
			continue
		}
		reference, err := url.Parse(r.URL) // mirrors give addresses relative to the page
		if err != nil {
			return "", 0, fmt.Errorf("package index: %s gives the address %q, which cannot be read: %w", page, r.URL, err)
		}
		if r.Size <= 0 || r.Size > maxWheel {
			return "", 0, fmt.Errorf("package index: %s says the wheel has %d bytes, but at most %d are fetched", page, r.Size, maxWheel)
		}
		return page.ResolveReference(reference).String(), r.Size, nil
	}
	return "", 0, fmt.Errorf("package index: %s lists no file with the SHA-256 %s that this program trusts; use another --index, or install a file you trust with --from", page, digest)
}

// ask returns the files that a page of the index lists for a version. It returns the page as well.
func ask(ctx context.Context, page *url.URL, version string) (*url.URL, []release, error) {
	body, err := get(ctx, page.String(), time.Minute)
	if err != nil {
		return nil, nil, err
	}
	defer body.Close()
	var answer struct {
		URLs     []release
		Releases map[string][]release
	}
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&answer); err != nil {
		return nil, nil, fmt.Errorf("package index: %s does not answer with the index's JSON (%w); check --index", page, err)
	}
	return page, append(answer.URLs, answer.Releases[version]...), nil
}

// errNotThere marks the answer 404.
var errNotThere = errors.New("404 Not Found")

// get opens a web page. Waiting for its beginning is limited in time, reading it is not.
func get(ctx context.Context, address string, patience time.Duration) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(patience, func() { cancel(fmt.Errorf("no answer within %s", patience)) })
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("package index: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, fmt.Errorf("package index: %s cannot be fetched (%w); check the network, or install a file with --from", address, err)
	}
	timer.Stop()
	if response.StatusCode != http.StatusOK {
		_ = response.Body.Close()
		cancel(nil)
		if response.StatusCode == http.StatusNotFound {
			return nil, fmt.Errorf("package index: %s answers %w; check --index, or install a file with --from", address, errNotThere)
		}
		return nil, fmt.Errorf("package index: %s answers %s; check --index, or install a file with --from", address, response.Status)
	}
	return cancelling{response.Body, func() { cancel(nil) }}, nil
}

type cancelling struct {
	io.ReadCloser
	cancel func()
}

func (c cancelling) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}

// fetch writes the page at address to w, and fails unless it has the size and the SHA-256.
func fetch(ctx context.Context, address string, size int64, digest string, w io.Writer) error {
	body, err := get(ctx, address, time.Minute)
	if err != nil {
		return err
	}
	defer body.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(body, size+1))
	if err != nil {
		return fmt.Errorf("package index: %s broke off after %d of %d bytes (%w); try again", address, n, size, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); n != size || got != digest {
		return fmt.Errorf("package index: %s is not the expected file: it has %d bytes and the SHA-256 %s instead of %d and %s; nothing was installed", address, min(n, size+1), got, size, digest)
	}
	return nil
}

// FromFile installs a plugin from a file on this machine: the plugin itself (.so) or a wheel that holds one.
func (in Installer) FromFile(p Package, from string) (installed string, err error) {
	f, err := os.Open(from)
	if err != nil {
		return "", fmt.Errorf("plugin %s cannot be read: %w", from, pathless(err))
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return "", fmt.Errorf("plugin %s cannot be read: %w", from, pathless(err))
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("plugin %s is not a file; give a .so or a .whl file", from)
	}
	switch filepath.Ext(from) {
	case ".so":
		if err := Check(from); err != nil {
			return "", err
		}
		return in.place(p, filepath.Base(p.Library), f)
	case ".whl":
		return in.unpack(p, f, info.Size(), from)
	}
	return "", fmt.Errorf("plugin %s is neither a .so nor a .whl file", from)
}

// unpack installs the plugin in a wheel, which is a zip archive. source is the wheel's name in errors.
func (in Installer) unpack(p Package, wheel io.ReaderAt, size int64, source string) (installed string, err error) {
	archive, err := zip.NewReader(wheel, size)
	if err != nil {
		return "", fmt.Errorf("wheel %s is damaged (%w); fetch it again", source, err)
	}
	at := slices.IndexFunc(archive.File, func(f *zip.File) bool { return f.Name == p.Library })
	if at < 0 {
		return "", fmt.Errorf("wheel %s holds no %s; give the wheel of %s", source, p.Library, p.Project)
	}
	member := archive.File[at]
	if member.UncompressedSize64 > maxLibrary {
		return "", fmt.Errorf("wheel %s is damaged: %s would have %d bytes", source, p.Library, member.UncompressedSize64)
	}
	content, err := member.Open()
	if err != nil {
		return "", fmt.Errorf("wheel %s is damaged (%w); fetch it again", source, err)
	}
	defer content.Close()
	return in.place(p, path.Base(p.Library), content)
}

// place writes a plugin into the folder of its kind, whole or not at all, once it is known to be one.
func (in Installer) place(p Package, name string, content io.Reader) (installed string, err error) {
	folder := filepath.Join(in.Folder, p.Kind)
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return "", fmt.Errorf("folder for plugins: %w", err)
	}
	installed = filepath.Join(folder, name)
	candidate := installed + ".unchecked"
	defer os.Remove(candidate)
	err = files.Write(candidate, func(w io.Writer) error {
		n, err := io.Copy(w, io.LimitReader(content, maxLibrary+1))
		if err == nil && n > maxLibrary {
			err = fmt.Errorf("it has more than %d bytes", int64(maxLibrary))
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("plugin %s: %w", p.Kind, err)
	}
	if err := Check(candidate); err != nil {
		return "", err
	}
	// Onto the old name in one step: a program that has the old plugin loaded keeps it.
	if err := os.Rename(candidate, installed); err != nil {
		return "", fmt.Errorf("plugin %s: %w", p.Kind, err)
	}
	return installed, files.SyncFolder(folder)
}

// pathless is the cause of an error without the path, which the sentence names already.
func pathless(err error) error {
	var pathErr *os.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/resalign/resalign/engine/plugins"
)

func TestOpenUnknown(t *testing.T) {
	for _, spec := range []string{"tpu", "xl", "go:x", "go,tf32", "XLA"} {
		if _, err := Open(spec); err == nil || !strings.Contains(err.Error(), spec) || !strings.Contains(err.Error(), "use auto, go, xla") {
			t.Errorf("%q: error is %v", spec, err)
		}
	}
}

func TestOpenWithoutXLA(t *testing.T) {
	if HasXLA {
		t.Skip("this build has XLA")
	}
	for _, spec := range []string{"xla", "xla,tf32", "xla:/nowhere/plugin.so"} {
		if _, err := Open(spec); err == nil || !strings.Contains(err.Error(), "make xla") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: error is %v, which does not say how to get XLA", spec, err)
		}
	}
	e, err := Open("auto")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if e.Kind() != "go" || e.Reason() == "" {
		t.Errorf("auto takes %s: %s", e.Kind(), e.Reason())
	}
}

// Without a plugin that works auto takes the Go engine and says why; xla fails.
func TestOpenWithoutPlugin(t *testing.T) {
	if !HasXLA {
		t.Skip("this build has no XLA; `make test-xla` runs this")
	}
	broken := filepath.Join(t.TempDir(), "a_plugin.so")
	if err := os.WriteFile(broken, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for variable, says := range map[string]string{broken: broken + " is not a shared library", "": "no XLA plugin was found in"} {
		t.Setenv(plugins.Variable, variable)
		t.Setenv("XDG_DATA_HOME", t.TempDir())
		if _, err := Open("xla"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("xla: error is %v, not %q", err, says)
		}
		e, err := Open("auto")
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind() != "go" || !strings.Contains(e.Reason(), says) {
			t.Errorf("auto takes %s: %s", e.Kind(), e.Reason())
		}
		e.Close()
	}
	if _, err := Open("xla:" + broken); err == nil || !strings.Contains(err.Error(), "is not a shared library") {
		t.Errorf("error is %v", err)
	}
}

// A plugin for processors is not even loaded unless it is asked for; one for other devices is tried.
func TestAutoLeavesProcessorsToTheGoEngine(t *testing.T) {
	if !HasXLA {
		t.Skip("this build has no XLA; `make test-xla` runs this")
	}
	t.Setenv(plugins.Variable, "")
	data := t.TempDir()
	t.Setenv("XDG_DATA_HOME", data)
	folder := filepath.Join(data, "resalign", "plugins")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	processor, gpu := filepath.Join(folder, "pjrt_cpu_plugin.so"), filepath.Join(folder, "xla_cuda_plugin.so")
	for _, path := range []string{processor, gpu} {
		if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e, err := Open("auto")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, says := range []string{processor + " is for processors", gpu + " is not a shared library"} {
		if e.Kind() != "go" || e.Name() != "go" || !strings.Contains(e.Reason(), says) {
			t.Errorf("auto takes %s: %s, which does not say %q", e.Name(), e.Reason(), says)
		}
	}
	for spec, variable := range map[string]string{"xla": "", "auto": processor} {
		t.Setenv(plugins.Variable, variable)
		asked, err := Open(spec)
		if err == nil {
			defer asked.Close()
			err = errors.New(asked.Reason())
		}
		if says := processor + " is not a shared library"; !strings.Contains(err.Error(), says) {
			t.Errorf("%s, %s=%q: %v", spec, plugins.Variable, variable, err)
		}
	}
}

func TestGoMeasuresNothing(t *testing.T) {
	_, err := openGoEngine(t).Measure("next", []Input{{Dims: []int{2}}}, func(_ *graph.Graph, in []*graph.Node) []*graph.Node { return in })
	if err == nil || !strings.Contains(err.Error(), "next") {
		t.Errorf("%v", err)
	}
}

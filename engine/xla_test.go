//go:build xla && linux && cgo

package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/resalign/resalign/engine/plugins"
	"github.com/resalign/resalign/engine/programs"
)

// compileLibrary makes a shared library of C source.
func compileLibrary(t *testing.T, name, source string) string {
	t.Helper()
	compiler, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("there is no C compiler to make a false plugin with")
	}
	path := filepath.Join(t.TempDir(), name)
	cmd := exec.Command(compiler, "-shared", "-fPIC", "-x", "c", "-o", path, "-")
	cmd.Stdin = strings.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

const falseAPI = `#include <stddef.h>
struct { size_t size; void *e; struct { size_t size; void *e; int major, minor; } v; char rest[2000]; } api = {1000, 0, {24, 0, VERSION}};
void *GetPjrtApi(void) { return &api; }`

func TestFalsePlugins(t *testing.T) {
	for name, c := range map[string]struct{ source, says string }{
		"nothing": {"void *GetPjrtApi(void) { return 0; }", "hands out no interface"},
		"old":     {strings.Replace(falseAPI, "VERSION", "0, 30", 1), "speaks version 0.30 of the PJRT interface"},
		"future":  {strings.Replace(falseAPI, "VERSION", "1, 200", 1), "speaks version 1.200"},
		"missing": {"void nowhere(void); void *GetPjrtApi(void) { nowhere(); return 0; } void *other = (void *)nowhere;", "cannot be loaded: undefined symbol"},
	} {
		t.Run(name, func(t *testing.T) {
			path := compileLibrary(t, name+"_cpu_plugin.so", c.source)
			_, err := Open("xla:" + path)
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("error is %v, not one with %q", err, c.says)
			}
		})
	}
}

// openWorking opens the plugin that is installed, or skips the test.
func openWorking(t *testing.T) *Engine {
	t.Helper()
	e, err := Open("xla")
	if err != nil {
		t.Skipf("no XLA plugin to test: %v", err)
	}
	t.Cleanup(e.Close)
	return e
}

func square(_ *graph.Graph, in []*graph.Node) []*graph.Node {
	return []*graph.Node{graph.Mul(in[0], in[0])}
}

func TestXLAComputes(t *testing.T) {
	e := openWorking(t)
	if !strings.HasPrefix(e.Kind(), "xla:") || !strings.HasPrefix(e.Name(), "xla:/") || !strings.Contains(e.Description(), "PJRT") || e.Reason() == "" {
		t.Errorf("the engine is %s, %s, %s", e.Kind(), e.Description(), e.Reason())
	}
	f, err := e.NewFunction("square", square)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Free()
	x := Float32s([]float32{1, 2, -3}, 3)
	for range 3 { // inputs stay valid
		out, err := f.Call(x)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Values(out[0])
		if err != nil || len(got) != 3 || got[0] != 1 || got[1] != 4 || got[2] != 9 {
			t.Errorf("squares are %v (%v)", got, err)
		}
		Free(out...)
	}
	// A donated input is gone; its number on the host must not be read by mistake.
	out, err := f.CallDonating([]bool{true}, x)
	if err != nil {
		t.Fatal(err)
	}
	Free(out...)
	if _, err := f.Call(x); err == nil {
		t.Error("an input that was given up could be used again")
	}
}

// An engine may be closed and another one opened, and tensors of the old one may still be freed.
func TestXLAReopens(t *testing.T) {
	for range 3 {
		e := openWorking(t)
		f, err := e.NewFunction("square", square)
		if err != nil {
			t.Fatal(err)
		}
		out, err := f.Call(Float32s(make([]float32, 1000), 1000))
		if err != nil {
			t.Fatal(err)
		}
		e.Close()
		Free(out...)
	}
}

func TestEnvironmentOfPlugins(t *testing.T) {
	for _, name := range []string{"NPROC", "XLA_FLAGS", "NVIDIA_TF32_OVERRIDE"} {
		t.Setenv(name, "")
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
	root := t.TempDir()
	path := filepath.Join(root, "cuda13", "xla_cuda_plugin.so")
	if err := os.MkdirAll(filepath.Join(root, "nvidia", "cu13"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false"); err != nil {
		t.Fatal(err)
	}
	want := "--xla_gpu_deterministic_ops=true --xla_gpu_cuda_data_dir=" + root + "/nvidia/cu13 --xla_gpu_deterministic_ops=false"
	for range 2 {
		restore, err := prepareEnvironment(path, plugins.Platform(path), false)
		if err != nil {
			t.Fatal(err)
		}
		restore()
		if got := os.Getenv("XLA_FLAGS"); got != want {
			t.Errorf("XLA_FLAGS is %q, not %q", got, want)
		}
		if os.Getenv("NVIDIA_TF32_OVERRIDE") != "0" {
			t.Error("TF32 is not off")
		}
	}
	restore, err := prepareEnvironment("x_cpu_plugin.so", "cpu", false)
	if err != nil || os.Getenv("NPROC") == "" {
		t.Errorf("the number of threads is not set (%v)", err)
	}
	restore()
	if _, set := os.LookupEnv("NPROC"); set {
		t.Error("NPROC stays set")
	}
}

// hookOf is what watches the compiler of an open engine.
func hookOf(t *testing.T, e *Engine) *programs.Hook {
	t.Helper()
	opening.Lock()
	defer opening.Unlock()
	hook := watched[strings.TrimPrefix(e.Name(), "xla:")]
	if hook == nil {
		t.Fatalf("nothing watches %s", e.Name())
	}
	return hook
}

func TestXLAKeepsPrograms(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "programs")
	t.Setenv(programs.Variable, folder)
	// run opens the plugin anew, computes x², giving x up, and says what was compiled and loaded meanwhile.
	run := func() (compiled, loaded int, trouble []string) {
		e := openWorking(t)
		defer e.Close()
		if !strings.Contains(e.Description(), folder) {
			t.Errorf("the engine does not say where it keeps programs: %s", e.Description())
		}
		e.OnTrouble(func(err error) { trouble = append(trouble, err.Error()) })
		before := hookOf(t, e).Counts()
		f, err := e.NewFunction("square", square)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Free()
		for range 2 {
			out, err := f.CallDonating([]bool{true}, Float32s([]float32{1, 2, -3}, 3))
			if err != nil {
				t.Fatal(err)
			}
			got, err := Values(out[0])
			if err != nil || len(got) != 3 || got[0] != 1 || got[1] != 4 || got[2] != 9 {
				t.Errorf("squares are %v (%v)", got, err)
			}
			Free(out...)
		}
		after := hookOf(t, e).Counts()
		return after.Compiled - before.Compiled, after.Loaded - before.Loaded, trouble
	}
	expect := func(when string, wantCompiled, wantLoaded, wantTrouble int) {
		t.Helper()
		if compiled, loaded, trouble := run(); compiled != wantCompiled || loaded != wantLoaded || len(trouble) != wantTrouble {
			t.Errorf("%s: %d compiled, %d loaded, trouble: %q; want %d, %d, %d", when, compiled, loaded, trouble, wantCompiled, wantLoaded, wantTrouble)
		}
	}
	expect("first", 1, 0, 0)
	expect("second", 0, 1, 0)
	kept, err := filepath.Glob(filepath.Join(folder, "*.xla"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept are %q, %v", kept, err)
	}
	whole, err := os.ReadFile(kept[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept[0], whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	expect("damaged", 1, 0, 1)
	expect("after the damage", 0, 1, 0)
	// A file that is whole, but nothing the plugin knows.
	key := strings.TrimSuffix(filepath.Base(kept[0]), ".xla")
	if err := programs.NewStore(folder, programs.Limit).Save(key, []byte("not a program")); err != nil {
		t.Fatal(err)
	}
	expect("of another plugin", 1, 0, 1)
	t.Setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
	expect("other flags", 1, 0, 0)
	t.Setenv(programs.Variable, "")
	e := openWorking(t)
	if strings.Contains(e.Description(), "kept") {
		t.Errorf("programs are kept though nobody asked: %s", e.Description())
	}
}

// An output takes the memory of an input that is given up, if the program was told; one that is kept stays as it was.
func TestXLADonates(t *testing.T) {
	e := openWorking(t)
	f, err := e.NewFunction("square", square)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Free()
	first, err := f.CallDonating([]bool{true}, Float32s([]float32{1, 2, -3}, 3))
	if err != nil {
		t.Fatal(err)
	}
	second, err := f.Call(first[0]) // kept, against what the program was told
	if err != nil {
		t.Fatal(err)
	}
	third, err := f.CallDonating([]bool{true}, second[0])
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range []*Tensor{first[0], third[0]} {
		got, err := Values(x)
		want := [][]float32{{1, 4, 9}, {1, 256, 6561}}[i]
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("values are %v, want %v (%v)", got, want, err)
		}
	}
	if second[0].Ok() {
		if _, err := f.Call(second[0]); err == nil {
			t.Error("an input that was given up could be used again")
		}
	}
}

// What a program takes is known before it runs: less by the outputs that lie in inputs.
func TestXLAMeasures(t *testing.T) {
	e := openWorking(t)
	const n = 1 << 20
	next := func(_ *graph.Graph, in []*graph.Node) []*graph.Node { return []*graph.Node{graph.OnePlus(in[0])} }
	for _, givenUp := range []bool{false, true} {
		f, err := e.Measure("next", []Input{{Dims: []int{n}, GivenUp: givenUp}}, next)
		want := map[bool]int64{false: 4 * n, true: 0}[givenUp]
		if err != nil || f.Outputs != 4*n || f.Total() < want || f.Total() > want+4096 {
			t.Errorf("given up %v: %+v, %v", givenUp, f, err)
		}
	}
	f, err := e.Measure("product", []Input{{Dims: []int{256, 512}}, {Dims: []int{512, 64}}}, func(_ *graph.Graph, in []*graph.Node) []*graph.Node {
		p := graph.MatMul(in[0], in[1]) // written down for the second product
		return []*graph.Node{graph.ReduceAllSum(graph.MatMul(graph.Transpose(p, 0, 1), p))}
	})
	if err != nil || f.Temporary < 4*256*64 || f.Outputs > 64 {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := e.Measure("broken", []Input{{Dims: []int{2}}, {Dims: []int{3}}}, func(_ *graph.Graph, in []*graph.Node) []*graph.Node {
		return []*graph.Node{graph.Add(in[0], in[1])}
	}); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("a graph that cannot be built: %v", err)
	}
}

//go:build xla && linux && cgo

package engine

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

// few_heaps has the C library share few heaps among threads, unless the user decided. By default each of a plugin's many
// threads gets its own, and what they free stays scattered over all: half a gigabyte for a small model.
static void few_heaps(void) {
#ifdef __GLIBC__
	if (getenv("MALLOC_ARENA_MAX") == NULL) mallopt(M_ARENA_MAX, 2);
#endif
}

// The head of PJRT_Api (pjrt_c_api.h), the same in all versions of the interface.
struct pjrt_head {
	size_t struct_size;
	void *extensions;
	struct { size_t struct_size; void *extensions; int major, minor; } version;
};

// pjrt_table loads a plugin and asks for its table of functions. It returns NULL, or what went wrong.
static const char *pjrt_table(const char *path, void **table, int *major, int *minor) {
	void *library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
	if (library == NULL) return dlerror();
	const struct pjrt_head *(*get)(void) = (const struct pjrt_head *(*)(void))dlsym(library, "GetPjrtApi");
	if (get == NULL) return dlerror();
	const struct pjrt_head *api = get();
	if (api == NULL || api->struct_size < sizeof *api) return "its function GetPjrtApi hands out no interface";
	*major = api->version.major;
	*minor = api->version.minor;
	*table = (void *)api;
	return NULL;
}
*/
import "C"

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"github.com/gomlx/compute"
	"github.com/gomlx/go-xla/compute/xla"
	"k8s.io/klog/v2"

	"github.com/resalign/resalign/engine/plugins"
)

// HasXLA tells whether this program was built with the XLA engine.
const HasXLA = true

// The interface that go-xla v0.4.13 was written for (pjrt/pjrt_c_api.h). A plugin with a smaller minor version lacks
// functions; one with a larger one keeps serving callers of this one.
const pjrtMajor, pjrtMinor = 0, 104

// opening serialises what changes the environment.
var opening sync.Mutex

// openPlugin loads a plugin that plugins.Check found in order, and opens its devices.
func openPlugin(path string, tf32 bool, t *trouble) (backend compute.Backend, description string, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, "", fmt.Errorf("XLA plugin: %w", err)
	}
	if strings.Contains(path, ",") {
		return nil, "", fmt.Errorf("XLA plugin %s: a path with a comma cannot be used; rename the folder or the file", path)
	}
	opening.Lock()
	defer opening.Unlock()
	platform := plugins.Platform(path)
	restore, err := prepareEnvironment(path, platform, tf32)
	if err != nil {
		return nil, "", err
	}
	defer restore()
	klog.LogToStderr(false) // the bindings log there what they also return as errors
	klog.SetOutput(io.Discard)
	C.few_heaps()
	table, major, minor, err := load(path)
	if err != nil {
		return nil, "", err
	}
	if major != pjrtMajor || minor < pjrtMinor {
		return nil, "", fmt.Errorf("XLA plugin %s speaks version %d.%d of the PJRT interface, but %d.%d or newer is needed; install another with `resalign doctor --install-xla`", path, major, minor, pjrtMajor, pjrtMinor)
	}
	hook, err := watch(path, table)
	if err != nil {
		return nil, "", err
	}
	config := fmt.Sprintf("%s,tf32=%t,shared_buffers=%t", path, tf32, platform == "cpu")
	defer catch("open XLA plugin "+path, &err)
	opened, err := xla.NewWithOptions(config, nil)
	if err != nil {
		problem := firstLine(err.Error())
		if _, cause, ok := strings.Cut(problem, `for backend "xla": `); ok {
			problem = cause
		}
		return nil, "", fmt.Errorf("XLA plugin %s cannot use a device of this machine: %s", path, problem)
	}
	if opened.NumDevices() == 0 {
		opened.Finalize()
		return nil, "", fmt.Errorf("XLA plugin %s has no device on this machine; use another plugin or --engine go", path)
	}
	description = fmt.Sprintf("XLA on %s, PJRT %d.%d, %s", device(opened), major, minor, path)
	if platform == "cuda" {
		description += map[bool]string{false: ", TF32 off", true: ", TF32 on"}[tf32]
	}
	kept, err := keepPrograms(hook, path, device(opened), t)
	if err != nil {
		opened.Finalize()
		return nil, "", err
	}
	description += kept
	return opened, description, nil
}

func device(b *xla.Backend) string {
	name, _, _ := strings.Cut(b.DeviceDescription(0), " [")
	return name
}

func load(path string) (table unsafe.Pointer, major, minor int, err error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	var a, b C.int
	runtime.LockOSThread() // dlerror belongs to the thread
	defer runtime.UnlockOSThread()
	if problem := C.pjrt_table(name, &table, &a, &b); problem != nil {
		return nil, 0, 0, fmt.Errorf("XLA plugin %s cannot be loaded: %s", path, strings.TrimPrefix(C.GoString(problem), path+": "))
	}
	return table, int(a), int(b), nil
}

// prepareEnvironment sets what plugins take from the environment only. restore takes back what is needed while opening only.
func prepareEnvironment(path, platform string, tf32 bool) (restore func(), err error) {
	restore = func() {}
	set := func(key, value string) {
		if err == nil {
			err = os.Setenv(key, value)
		}
	}
	switch platform {
	case "cpu":
		// The size of the plugin's thread pool (NPROC in xla/pjrt/cpu).
		if before, was := os.LookupEnv("NPROC"); was {
			restore = func() { _ = os.Setenv("NPROC", before) }
		} else {
			restore = func() { _ = os.Unsetenv("NPROC") }
		}
		set("NPROC", strconv.Itoa(runtime.GOMAXPROCS(0)))
	case "cuda":
		// Products of matrices carry their precision, convolutions do not: cuDNN's default is TF32 unless this is 0. Where it
		// is unset the library decides by itself.
		if !tf32 {
			set("NVIDIA_TF32_OVERRIDE", "0")
		}
		set("XLA_FLAGS", cudaFlags(path, os.Getenv("XLA_FLAGS")))
	}
	if err != nil {
		return restore, fmt.Errorf("XLA plugin %s: the environment cannot be set: %w", path, err)
	}
	return restore, nil
}

// cudaFlags puts our defaults before the user's flags; the last one of a name counts.
func cudaFlags(path, user string) string {
	flags := "--xla_gpu_deterministic_ops=true" // same input, same bits
	if toolkit := filepath.Join(filepath.Dir(filepath.Dir(path)), "nvidia", "cu13"); isFolder(toolkit) {
		flags += " --xla_gpu_cuda_data_dir=" + toolkit
	}
	if strings.HasPrefix(user, flags) { // set when the plugin was opened before
		return user
	}
	return strings.TrimSpace(flags + " " + user)
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

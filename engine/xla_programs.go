//go:build xla && linux && cgo

package engine

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"github.com/gomlx/go-xla/pjrt"

	"github.com/resalign/resalign/engine/programs"
)

// watched are the plugins whose compiler is watched, by path. A plugin stays loaded once it is. Guarded by opening.
var watched = map[string]*programs.Hook{}

// watch puts package programs before a plugin's compiler; the bindings get the table of functions from here.
func watch(path string, table unsafe.Pointer) (*programs.Hook, error) {
	if hook, ok := watched[path]; ok {
		return hook, nil
	}
	hook, err := programs.Watch(table)
	if err != nil {
		return nil, fmt.Errorf("XLA plugin %s cannot be used: %w", path, err)
	}
	if err := pjrt.RegisterPreloadedPlugin(path, uintptr(hook.Table())); err != nil {
		return nil, fmt.Errorf("XLA plugin %s cannot be initialised: %s", path, firstLine(err.Error()))
	}
	watched[path] = hook
	return hook, nil
}

// keepPrograms has compiled programs kept, if there is a folder for them, and says so.
func keepPrograms(hook *programs.Hook, path, device string, t *trouble) (description string, err error) {
	folder, err := programs.Folder()
	if err != nil || folder == "" {
		hook.Keep(nil, nil, nil)
		return "", err
	}
	id, err := identity(path, device)
	if err != nil {
		return "", err
	}
	hook.Keep(programs.NewStore(folder, programs.Limit), id, t.tell)
	return ", compiled programs kept in " + folder, nil
}

func (t *trouble) tell(err error) {
	t.mu.Lock()
	listen := t.listen
	t.mu.Unlock()
	if listen != nil {
		listen(err)
	}
}

// identity is what compiled programs depend on beside themselves: plugin, device, processor, threads and flags.
func identity(path, device string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("XLA plugin: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("XLA plugin: %w", err)
	}
	// A whole hash of 200 to 400 MB at every start costs more than it tells beside size, time and the first megabyte, which
	// holds the build's own identity.
	head := sha256.New()
	if _, err := io.CopyN(head, f, 1<<20); err != nil && err != io.EOF {
		return nil, fmt.Errorf("XLA plugin %s: %w", path, err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "plugin %d %d %x\ndevice %s\nthreads %d\n", info.Size(), info.ModTime().UnixNano(), head.Sum(nil), device, runtime.GOMAXPROCS(0))
	for _, variable := range []string{"XLA_FLAGS", "XLA_DEBUG_OPTIONS", "NVIDIA_TF32_OVERRIDE"} {
		fmt.Fprintf(&b, "%s=%s\n", variable, os.Getenv(variable))
	}
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, fmt.Errorf("the processor's features, on which compiled programs depend: %w", err)
	}
	for line := range strings.Lines(string(cpus)) {
		if key, _, _ := strings.Cut(line, "\t"); key == "model name" || key == "flags" || key == "Features" || key == "CPU part" {
			b.WriteString(line)
		}
		if strings.TrimSpace(line) == "" {
			break // the first processor
		}
	}
	return []byte(b.String()), nil
}

package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/cpu"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/plugins"
	"github.com/resalign/resalign/engine/programs"
	"github.com/resalign/resalign/train"
)

func newDoctor() *cobra.Command {
	c := &console{}
	var install, from, index string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Show engines, processor and memory, and what is missing; install XLA plugins",
		Long: `Doctor looks at what this program can compute with, tries each engine on a small product whose result is known, and
says what is missing and how to get it. It fails only if something does not work.

With --install-xla it puts an XLA plugin into the user's folder instead: cpu, or cuda13 for NVIDIA GPUs. It is downloaded from
a Python package index and must have the SHA-256 that this program knows, or it comes from a file.`,
		Example: "  resalign doctor\n  resalign doctor --json\n  resalign doctor --install-xla cpu\n  resalign doctor --install-xla cuda13 --from jax_cuda13_pjrt.whl",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if install != "" || from != "" || index != "" {
				return installPlugin(cmd, c, install, from, index)
			}
			d := diagnose()
			if err := c.result(d, d.write); err != nil {
				return err
			}
			if d.Kept != nil && d.Kept.Error != "" {
				return errors.New(d.Kept.Error)
			}
			for _, e := range d.Engines {
				if e.Error != "" {
					return fmt.Errorf("engine %s does not work: %s", e.Name, e.Error)
				}
			}
			return nil
		},
	}
	addConsole(cmd, c)
	cmd.Flags().StringVar(&install, "install-xla", "", "install the XLA plugin of this kind: "+strings.Join(plugins.Kinds(), " or "))
	cmd.Flags().StringVar(&from, "from", "", "with --install-xla, the plugin (.so) or the wheel (.whl) to install; nothing is downloaded")
	cmd.Flags().StringVar(&index, "index", "", "with --install-xla, the Python package index to ask (default "+plugins.DefaultIndex+")")
	return cmd
}

// diagnosis is what the machine and the program are able to do.
type diagnosis struct {
	Version string            `json:"version"`
	Go      string            `json:"go"`
	System  string            `json:"system"`
	SIMD    string            `json:"simd"`
	Vectors []string          `json:"vector_instructions"` // of the processor
	CPUs    int               `json:"cpus"`
	Threads int               `json:"threads"`
	Memory  int64             `json:"memory_bytes,omitempty"`
	Free    int64             `json:"memory_available_bytes,omitempty"`
	Engines []engineDiagnosis `json:"engines"`
	Auto    string            `json:"auto"` // the engine that --engine auto takes
	Because string            `json:"auto_reason"`
	Plugins []plugins.Place   `json:"plugins"` // where XLA plugins were looked for
	Kept    *keptPrograms     `json:"compiled_programs,omitempty"`
	Missing []string          `json:"missing"`
}

// keptPrograms is what is kept of programs that XLA compiled in earlier runs.
type keptPrograms struct {
	Folder   string `json:"folder"` // empty: none are kept
	Programs int    `json:"programs"`
	Bytes    int64  `json:"bytes"`
	Error    string `json:"error,omitempty"`
}

type engineDiagnosis struct {
	Name        string  `json:"name"`
	Description string  `json:"description,omitempty"`
	GFLOPS      float64 `json:"matmul_gflops,omitempty"`
	Error       string  `json:"error,omitempty"`
}

func diagnose() diagnosis {
	d := diagnosis{
		Version: programVersion(), Go: runtime.Version(), System: runtime.GOOS + "/" + runtime.GOARCH,
		SIMD: engine.SIMD(), Vectors: vectorInstructions(), CPUs: runtime.NumCPU(), Threads: runtime.GOMAXPROCS(0),
		Engines: []engineDiagnosis{tryEngine("go")}, Missing: []string{},
	}
	d.Memory, d.Free = memory()
	if d.SIMD != "on" {
		d.Missing = append(d.Missing, "vector instructions: this program was built without them and computes many times slower; build it with `make build`, or with GOEXPERIMENT=simd set")
	}
	if runtime.GOARCH == "amd64" && !cpu.X86.HasAVX2 {
		d.Missing = append(d.Missing, "AVX2: this processor lacks it, so the Go engine computes without vector instructions; use a newer processor")
	}
	d.lookForXLA()
	d.tryAuto()
	return d
}

// lookForXLA tries every plugin that is found.
func (d *diagnosis) lookForXLA() {
	d.Plugins = plugins.Search()
	var found []string
	for _, place := range d.Plugins {
		found = append(found, place.Found...)
	}
	if !engine.HasXLA {
		missing := "XLA: this build has no XLA engine, which computes on GPUs; build one that has with `make xla` (Linux, with a C compiler)"
		if len(found) == 0 {
			missing += ", and install a plugin with `resalign doctor --install-xla cpu` or cuda13"
		}
		d.Missing = append(d.Missing, missing+"; with the Go engine a full-size model takes hours to days, so start with small pictures and few steps")
		return
	}
	d.Kept = lookAtPrograms()
	if len(found) == 0 {
		d.Missing = append(d.Missing, "XLA plugin: none was found; install one with `resalign doctor --install-xla cpu`, or cuda13 for NVIDIA GPUs")
	}
	for _, path := range found {
		e := tryEngine("xla:" + path)
		d.Engines = append(d.Engines, e)
		if folder, ok := plugins.MissingNVIDIALibraries(path); ok {
			d.Missing = append(d.Missing, nvidiaLibraries(folder))
		}
	}
}

func lookAtPrograms() *keptPrograms {
	k := &keptPrograms{}
	var err error
	if k.Folder, err = programs.Folder(); err == nil && k.Folder != "" {
		k.Programs, k.Bytes, err = programs.NewStore(k.Folder, programs.Limit).Size()
	}
	if err != nil {
		k.Error = err.Error()
	}
	return k
}

// tryAuto finds out which engine auto takes, and why.
func (d *diagnosis) tryAuto() {
	e, err := engine.Open("auto")
	if err != nil {
		d.Auto, d.Because = "none", err.Error()
		return
	}
	defer e.Close()
	d.Auto, d.Because = e.Name(), e.Reason()
}

func vectorInstructions() []string {
	found := []string{}
	for _, x := range []struct {
		name string
		has  bool
	}{
		{"AVX", cpu.X86.HasAVX},
		{"AVX2", cpu.X86.HasAVX2},
		{"FMA", cpu.X86.HasFMA},
		{"AVX-512F", cpu.X86.HasAVX512F},
		{"NEON", cpu.ARM64.HasASIMD},
		{"SVE", cpu.ARM64.HasSVE},
	} {
		if x.has {
			found = append(found, x.name)
		}
	}
	return found
}

// tryEngine multiplies two matrices whose product is known, and times it.
func tryEngine(name string) engineDiagnosis {
	d := engineDiagnosis{Name: name}
	e, err := engine.Open(name)
	if err != nil {
		d.Error = err.Error()
		return d
	}
	defer e.Close()
	d.Description = e.Description()
	const side = 1024
	product, err := ad.Compile(e, "trial product", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return []*ad.Value{ad.MatMul(in[0], in[1], false, false)}
	})
	if err != nil {
		d.Error = err.Error()
		return d
	}
	defer product.Free()
	// With aᵢₖ = i and bₖⱼ = j every element is 1024·i·j, which float32 holds exactly for these factors.
	a, b := make([]float32, side*side), make([]float32, side*side)
	for i := range side {
		for k := range side {
			a[i*side+k], b[i*side+k] = float32(i%32), float32(k%32)
		}
	}
	left, right := engine.Float32s(a, side, side), engine.Float32s(b, side, side)
	defer engine.Free(left, right)
	best := math.Inf(1)
	for range 4 {
		start := time.Now()
		out, err := product.Call(left, right)
		if err != nil {
			d.Error = err.Error()
			return d
		}
		best = min(best, time.Since(start).Seconds())
		values, err := engine.Values(out[0])
		engine.Free(out...)
		if err != nil {
			d.Error = err.Error()
			return d
		}
		for at, v := range values {
			if want := float32(side * (at / side % 32) * (at % side % 32)); v != want {
				d.Error = fmt.Sprintf("a product of matrices is wrong: %v instead of %v; the processor or this build is faulty", v, want)
				return d
			}
		}
	}
	d.GFLOPS = math.Round(2 * side * side * side / best / 1e9)
	return d
}

// memory is what the system has and what is free, in bytes; zero where it does not say.
func memory() (total, free int64) {
	content, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kilobytes, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "MemTotal:":
			total = kilobytes << 10
		case "MemAvailable:":
			free = kilobytes << 10
		}
	}
	return total, free
}

func (d diagnosis) write(w io.Writer) {
	fmt.Fprintf(w, "program   resalign %s, %s, %s\n", d.Version, d.Go, d.System)
	fmt.Fprintf(w, "processor %s, %s in use; SIMD %s; %s\n", count(d.CPUs, "CPU"), count(d.Threads, "thread"), d.SIMD, strings.Join(d.Vectors, ", "))
	if d.Memory > 0 {
		fmt.Fprintf(w, "memory    %s, %s available\n", train.FormatBytes(d.Memory), train.FormatBytes(d.Free))
	}
	for _, e := range d.Engines {
		state := fmt.Sprintf("works, %.0f GFLOP/s in a product of matrices; %s", e.GFLOPS, e.Description)
		if e.Error != "" {
			state = "DOES NOT WORK: " + e.Error
		}
		fmt.Fprintf(w, "engine    %s: %s\n", e.Name, state)
	}
	fmt.Fprintf(w, "engine    auto: takes %s (%s)\n", d.Auto, d.Because)
	for _, p := range d.Plugins {
		found := "nothing"
		if len(p.Found) > 0 {
			found = strings.Join(p.Found, ", ")
		}
		fmt.Fprintf(w, "plugins   %s, %s: %s\n", p.What, p.Path, found)
	}
	switch k := d.Kept; {
	case k == nil:
	case k.Error != "":
		fmt.Fprintf(w, "programs  DO NOT WORK: %s\n", k.Error)
	case k.Folder == "":
		fmt.Fprintf(w, "programs  compiled ones are not kept between runs; name a folder for them in %s\n", programs.Variable)
	default:
		fmt.Fprintf(w, "programs  compiled ones are kept in %s: %d, %s\n", k.Folder, k.Programs, train.FormatBytes(k.Bytes))
	}
	for _, m := range d.Missing {
		fmt.Fprintf(w, "missing   %s\n", m)
	}
}

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/resalign/resalign/inspect"
	"github.com/resalign/resalign/train"
)

// writeFound shows as text what a path turned out to hold.
func writeFound(w io.Writer, f *inspect.Found) {
	fmt.Fprintf(w, "%s: %s\n", printable(f.Path), f.Kind)
	if f.Pipeline != nil {
		writePipeline(w, f.Pipeline)
	}
	for _, c := range f.Components {
		writeComponent(w, c)
	}
	if f.LoRA != nil {
		var parts []string
		for _, component := range slices.Sorted(maps.Keys(f.LoRA.Components)) {
			parts = append(parts, fmt.Sprintf("%s %d", component, f.LoRA.Components[component]))
		}
		fmt.Fprintf(w, "  %s, %s (%s), rank %s, scale %s\n", f.LoRA.Dialect, count(f.LoRA.Modules, "module"), strings.Join(parts, ", "), join(f.LoRA.Ranks), join(f.LoRA.Scales))
		for _, name := range f.LoRA.Names {
			fmt.Fprintf(w, "    %s\n", printable(name))
		}
	}
	if f.Weights != nil {
		writeWeights(w, f.Weights, "  ")
	}
	if f.Run != nil {
		writeRun(w, f.Run)
	}
	for _, note := range f.Notes {
		fmt.Fprintf(w, "  note: %s\n", cut(note, 2000))
	}
}

func writeWeights(w io.Writer, s *inspect.Weights, indent string) {
	fmt.Fprintf(w, "%s%s, %s parameters, %s, %s\n", indent, count(s.Tensors, "tensor"), grouped(int64(s.Parameters)), train.FormatBytes(s.Bytes), types(s.DTypes))
	for _, key := range slices.Sorted(maps.Keys(s.Metadata)) {
		fmt.Fprintf(w, "%smetadata %s = %s\n", indent, cut(key, 100), cut(s.Metadata[key], 200))
	}
	if len(s.Ignored) > 0 {
		fmt.Fprintf(w, "%sbeside tensors: %s\n", indent, cut(strings.Join(s.Ignored, ", "), 500))
	}
	for _, t := range s.List {
		fmt.Fprintf(w, "%s  %s %s %v\n", indent, printable(t.Name), t.DType, t.Shape)
	}
}

// types writes the data types with the number of tensors of each: "F16 (680), F32 (6)".
func types(tensors map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(tensors)) {
		parts = append(parts, fmt.Sprintf("%s (%d)", name, tensors[name]))
	}
	if len(parts) == 0 {
		return "empty"
	}
	return strings.Join(parts, ", ")
}

func writeRun(w io.Writer, r *inspect.Run) {
	state := "not finished"
	if r.Finished != "" {
		state = "finished " + r.Finished
	}
	fmt.Fprintf(w, "  started %s, %s, %s\n", r.Started, state, count(r.Sessions, "session"))
	fmt.Fprintf(w, "  step %d, checkpoints: %s\n", r.Steps, cut(strings.Join(r.Checkpoints, ", "), 200))
	fmt.Fprintf(w, "  program %s on %s\n", cut(r.Program, 100), cut(r.Engine, 200))
	if r.Model != "" {
		fmt.Fprintf(w, "  model %s\n", printable(r.Model))
	}
	if r.LoRA != "" {
		fmt.Fprintf(w, "  LoRA %s\n", printable(r.LoRA))
	}
}

func join[T any](values []T) string {
	var parts []string
	for _, v := range values {
		parts = append(parts, fmt.Sprint(v))
	}
	return strings.Join(parts, ", ")
}

func writePipeline(w io.Writer, p *inspect.Pipeline) {
	fmt.Fprintf(w, "  %s", cut(p.Class, 100))
	if p.Scheduler != "" {
		fmt.Fprintf(w, ", scheduler %s, predicts %s", cut(p.Scheduler, 100), p.Prediction)
	}
	if p.Resolution > 0 {
		fmt.Fprintf(w, ", pictures of %d×%d", p.Resolution, p.Resolution)
	}
	fmt.Fprintln(w)
}

func writeComponent(w io.Writer, c inspect.Component) {
	fmt.Fprintf(w, "  %s: %s\n", cut(c.Name, 100), cut(c.Class, 100))
	if c.Weights != nil {
		writeWeights(w, c.Weights, "    ")
	}
}

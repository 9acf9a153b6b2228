package nudenet

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/onnx"
	"github.com/resalign/resalign/score"
)

// Options change what [Open] takes from the file and the engine. Zero means so.
type Options struct {
	// Resolution is the side of the square that pictures are resized to, a multiple of 32. The file says what its network was
	// trained with: 320 for 320n, 640 for 640m.
	Resolution int
	// Batch is how many pictures are computed at once. A batch that is not full is filled up, so what is said of a picture
	// does not depend on the others. Unset it is 1 on the Go engine, which gains nothing from more, and 16 on others.
	Batch int
}

// Detector is NudeNet on an engine. It is safe for concurrent use; calls at the same time share the processor.
type Detector struct {
	program    *onnx.Program
	path, name string
	resolution int
	batch      int
}

var _ score.Detector = (*Detector)(nil)

// Open reads a network from an .onnx file, from the wheel of the public package, or from the folder that it was installed
// into. It fails if the file is another network than a NudeNet version 3.
func Open(e *engine.Engine, path string) (*Detector, error) { return OpenWith(e, path, Options{}) }

// OpenWith is [Open] with options.
func OpenWith(e *engine.Engine, path string, o Options) (*Detector, error) {
	m, file, version, err := read(path)
	if err != nil {
		return nil, err
	}
	if err := check(m); err != nil {
		return nil, err
	}
	d := &Detector{path: m.Path, resolution: o.Resolution, batch: o.Batch}
	if d.resolution == 0 {
		d.resolution = resolutionOf(m, file)
	}
	if d.resolution < 32 || d.resolution%32 != 0 || d.resolution > 4096 {
		return nil, fmt.Errorf("%s: the resolution %d is no multiple of 32 from 32 to 4096; give the one the network was trained with, such as 320", m.Path, d.resolution)
	}
	if d.batch == 0 {
		if d.batch = 1; e.NativeConvolutions() {
			d.batch = 16
		}
		if fixed := m.Inputs[0].Shape; fixed != nil && fixed[0] > 0 {
			d.batch = fixed[0]
		}
	}
	if d.batch < 1 || d.batch > 1024 {
		return nil, fmt.Errorf("%s: batches of %d pictures are not possible; use 1 to 1024", m.Path, d.batch)
	}
	d.name = fmt.Sprintf("NudeNet v3 %s %s at %d", strings.TrimSuffix(file, filepath.Ext(file)), version, d.resolution)
	if d.program, err = onnx.Compile(e, m, onnx.Options{ChannelsLast: true}); err != nil {
		return nil, err
	}
	return d, nil
}

// check makes sure that a network is one of NudeNet's as far as its file says.
func check(m *onnx.Model) error {
	wrong := func(what string) error {
		return fmt.Errorf("%s is not a NudeNet v3 network: %s; name 320n.onnx or 640m.onnx", m.Path, what)
	}
	if len(m.Inputs) != 1 || len(m.Outputs) != 1 {
		return wrong(fmt.Sprintf("it has %d inputs and %d outputs instead of one each", len(m.Inputs), len(m.Outputs)))
	}
	if in := m.Inputs[0].Shape; in != nil && (len(in) != 4 || in[1] != 3 && in[1] >= 0) {
		return wrong(fmt.Sprintf("its input has the shape %v instead of [batch, 3, height, width]", in))
	}
	if out := m.Outputs[0].Shape; out != nil && (len(out) != 3 || out[1] != channels && out[1] >= 0) {
		return wrong(fmt.Sprintf("its output has the shape %v instead of [batch, %d, places]", out, channels))
	}
	if names := m.Metadata["names"]; names != "" {
		for i, label := range labels {
			if !strings.Contains(names, fmt.Sprintf("%d: '%s'", i, label)) {
				return wrong(fmt.Sprintf("its label %d is not %s", i, label))
			}
		}
	}
	return nil
}

// resolutionOf is the side of the network's pictures: that of the input if it is fixed, else the exporter's note, else
// the number that the file's name begins with.
func resolutionOf(m *onnx.Model, file string) int {
	if in := m.Inputs[0].Shape; in != nil && in[2] > 0 && in[2] == in[3] {
		return in[2]
	}
	digits := func(s string) int {
		n, _ := strconv.Atoi(s[:len(s)-len(strings.TrimLeft(s, "0123456789"))])
		return n
	}
	if note := digits(strings.TrimLeft(m.Metadata["imgsz"], "[( ")); note > 0 {
		return note
	}
	return digits(file)
}

// Name says which network it is, the beginning of the SHA-256 of its file, and the resolution.
func (d *Detector) Name() string { return d.name }

// Free releases the compiled programs.
func (d *Detector) Free() { d.program.Free() }

// batch is pictures from to to as the network takes them.
type batch struct {
	from, to int
	pixels   []float32
	err      error
}

// Detect finds boxes in pictures. A finding's scores are those of its surest boxes; labels that were not found have none.
func (d *Detector) Detect(ctx context.Context, pictures []*data.RGB) ([]score.Finding, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	findings := make([]score.Finding, 0, len(pictures))
	for b := range d.prepare(ctx, pictures) {
		if b.err != nil {
			return nil, b.err
		}
		output, err := d.run(b.pixels)
		if err != nil {
			return nil, err
		}
		each := len(output) / d.batch
		for i, p := range pictures[b.from:b.to] {
			predictions := output[i*each : (i+1)*each]
			for _, v := range predictions {
				if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
					return nil, fmt.Errorf("%s: the network's output for picture %d is not a number; its weights are broken: download them again", d.path, b.from+i+1)
				}
			}
			findings = append(findings, finding(suppress(candidates(predictions, d.resolution, p.Width, p.Height))))
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return findings, nil
}

// prepare resizes the pictures of the next batch while the network is at work on one.
func (d *Detector) prepare(ctx context.Context, pictures []*data.RGB) <-chan batch {
	out := make(chan batch)
	each := d.resolution * d.resolution * 3
	go func() {
		defer close(out)
		for from := 0; from < len(pictures); from += d.batch {
			b := batch{from: from, to: min(from+d.batch, len(pictures)), pixels: make([]float32, d.batch*each)}
			for i, p := range pictures[b.from:b.to] {
				if p == nil || p.Width < 1 || p.Height < 1 || len(p.Pix) != 3*p.Width*p.Height {
					b.err = fmt.Errorf("NudeNet: picture %d has no pixels; leave it out", from+i+1)
					break
				}
				blob(p, d.resolution, b.pixels[i*each:(i+1)*each])
			}
			select {
			case out <- b:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// run computes the network's output [batch, channels, places] for pixels [batch, side, side, 3].
func (d *Detector) run(pixels []float32) ([]float32, error) {
	input := engine.Float32s(pixels, d.batch, d.resolution, d.resolution, 3)
	defer engine.Free(input)
	outputs, err := d.program.Run(input)
	if err != nil {
		return nil, err
	}
	defer engine.Free(outputs...)
	if s := engine.Shape(outputs[0]); len(s) != 3 || s[0] != d.batch || s[1] != channels || s[2] < 1 {
		return nil, fmt.Errorf("%s is not a NudeNet v3 network: its output has the shape %v instead of [%d, %d, places]; name 320n.onnx or 640m.onnx", d.path, s, d.batch, channels)
	}
	return engine.Values(outputs[0])
}

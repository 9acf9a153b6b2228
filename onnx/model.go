package onnx

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/gomlx/compute"
)

// Model is a network as its file describes it.
type Model struct {
	Path     string            // the file, for errors
	Producer string            // the program that wrote it, such as "pytorch 2.3.0"
	Opset    int               // the version of the operators
	Metadata map[string]string // what the exporter noted, such as "imgsz" and "names"
	Inputs   []Port            // what the network is given, without the weights
	Outputs  []Port

	nodes   []*node
	weights map[string]*array
}

// Port is an input or an output of a network. A dimension that the file leaves open is −1; Shape is nil if it says nothing.
type Port struct {
	Name  string
	Type  DType
	Shape []int
}

// node is one operator of the graph.
type node struct {
	name, op, domain string
	inputs, outputs  []string // an empty name is an optional input that is not there
	attributes       map[string]*attribute
	activation       compute.ActivationType // what was drawn into it, see fuse
}

// attribute is a setting of an operator, of one kind.
type attribute struct {
	kind     int64
	f        float32
	i        int64
	s        string
	tensor   *array
	floats   []float32
	ints     []int64
	strings  []string
	subgraph bool
}

// The newest operators that the lowering was written for, and the oldest.
const (
	minOpset = 7
	maxOpset = 25
)

// What a graph may have. The largest published image models stay two orders of magnitude below.
const (
	maxNodes  = 1 << 16
	maxNames  = 1 << 10 // inputs or outputs of one operator
	maxRank   = 8
	maxExtent = 1 << 31 // of one dimension
)

// maxFile is the most that protobuf can encode in one message.
const maxFile = 2 << 30

const hint = "export or download the model again"

// Open reads a model from a file. Weights that it keeps in other files are read from its own folder only.
func Open(path string) (*Model, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("ONNX model: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("ONNX model: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file; name an .onnx file", path)
	case info.Size() >= maxFile:
		return nil, fmt.Errorf("%s has %d bytes, but an ONNX file ends below %d; %s", path, info.Size(), maxFile, hint)
	}
	content := make([]byte, info.Size())
	if _, err := io.ReadFull(f, content); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer root.Close()
	return parse(content, path, root)
}

// Parse reads a model that is already in memory; content is not kept. The name stands for the file's path in errors. Weights
// in other files are refused.
func Parse(content []byte, name string) (*Model, error) {
	return parse(content, name, nil)
}

func parse(content []byte, name string, folder *os.Root) (*Model, error) {
	m := &Model{Path: name, Metadata: map[string]string{}, weights: map[string]*array{}}
	d := decoder{model: m, folder: folder}
	if err := d.read(content); err != nil {
		if errors.Is(err, errTruncated) {
			return nil, fmt.Errorf("%s: not a whole ONNX model: %w; %s", name, err, hint)
		}
		return nil, fmt.Errorf("%s: not a usable ONNX model: %w; %s", name, err, hint)
	}
	return m, nil
}

// decoder fills a model from the messages of its file.
type decoder struct {
	model    *Model
	folder   *os.Root // where weights outside the file may be; nil if nowhere
	hasGraph bool
}

func (d *decoder) read(content []byte) error {
	m := d.model
	var producer, version string
	var ir int64
	err := fields(content, func(f field) error {
		switch f.number {
		case 1:
			return f.integer("ir_version", &ir)
		case 2:
			return f.text("producer_name", &producer)
		case 3:
			return f.text("producer_version", &version)
		case 7:
			if err := f.want(blob, "graph"); err != nil {
				return err
			}
			if d.hasGraph {
				return errors.New("it has two graphs")
			}
			d.hasGraph = true
			return d.graph(f.bytes)
		case 8:
			return d.opset(f)
		case 14:
			return f.entry("metadata_props", d.model.Metadata)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if m.Producer = producer; version != "" {
		m.Producer += " " + version
	}
	switch {
	case !d.hasGraph || ir <= 0:
		return errors.New("it has no graph or no version of the format")
	case m.Opset < minOpset || m.Opset > maxOpset:
		return fmt.Errorf("its operators have version %d (opset); versions %d to %d are read", m.Opset, minOpset, maxOpset)
	}
	return d.finish()
}

// finish takes the weights out of the inputs, where old exporters list them too, and checks that names are defined once
// and before their use.
func (d *decoder) finish() error {
	m := d.model
	m.Inputs = slices.DeleteFunc(m.Inputs, func(p Port) bool { return m.weights[p.Name] != nil })
	known := map[string]bool{"": true}
	define := func(name, what string) error {
		if known[name] {
			return fmt.Errorf("the name %q is given twice, the second time to %s", name, what)
		}
		known[name] = true
		return nil
	}
	for name := range m.weights {
		known[name] = true
	}
	for _, p := range m.Inputs {
		if err := define(p.Name, "an input"); err != nil {
			return err
		}
	}
	for _, n := range m.nodes {
		for _, name := range n.inputs {
			if !known[name] {
				return fmt.Errorf("%s uses %q, which nothing before it computes", n, name)
			}
		}
		for _, name := range n.outputs {
			if name == "" {
				continue
			}
			if err := define(name, n.String()); err != nil {
				return err
			}
		}
	}
	for _, p := range m.Outputs {
		if p.Name == "" || !known[p.Name] {
			return fmt.Errorf("nothing computes the output %q", p.Name)
		}
	}
	if len(m.Inputs) == 0 || len(m.Outputs) == 0 {
		return errors.New("its graph has no inputs or no outputs")
	}
	return nil
}

func (d *decoder) opset(f field) error {
	if err := f.want(blob, "opset_import"); err != nil {
		return err
	}
	var domain string
	var version int64
	err := fields(f.bytes, func(f field) error {
		switch f.number {
		case 1:
			return f.text("domain", &domain)
		case 2:
			return f.integer("version", &version)
		}
		return nil
	})
	if err == nil && standardDomain(domain) {
		d.model.Opset = int(min(max(version, 0), math.MaxInt32))
	}
	return err
}

func standardDomain(domain string) bool { return domain == "" || domain == "ai.onnx" }

package onnx

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
)

// What scripts/make_onnx.py made: networks, operators, and what onnxruntime computed.
const fixtures = "../testdata/onnx"

func openEngine(t testing.TB) *engine.Engine {
	return enginetest.Open(t)
}

func readFixture(t testing.TB, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(fixtures, name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func float32s(b []byte) []float32 {
	out := make([]float32, len(b)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}

// difference is the largest one, relative to numbers above one.
func difference(got, want []float32) float64 {
	worst := 0.0
	for i := range want {
		d := math.Abs(float64(got[i])-float64(want[i])) / max(1, math.Abs(float64(want[i])))
		if !(d <= worst) {
			worst = d
		}
	}
	return worst
}

// checkOutput compares a tensor with what is expected.
func checkOutput(t *testing.T, got *engine.Tensor, dims []int, want []float32) {
	t.Helper()
	if !slices.Equal(engine.Shape(got), dims) {
		t.Fatalf("the output has the shape %v, want %v", engine.Shape(got), dims)
	}
	values, err := engine.Values(got)
	if err != nil {
		t.Fatal(err)
	}
	if d := difference(values, want); !(d < 1e-4) {
		t.Errorf("the output differs by %g from onnxruntime's", d)
	}
}

func TestNetworks(t *testing.T) {
	e := openEngine(t)
	var networks []struct {
		Name          string
		Input, Output []int
	}
	if err := json.Unmarshal(readFixture(t, "networks.json"), &networks); err != nil {
		t.Fatal(err)
	}
	for _, n := range networks {
		m, err := Open(filepath.Join(fixtures, n.Name+".onnx"))
		if err != nil {
			t.Fatal(err)
		}
		b, c, area := n.Input[0], n.Input[1], n.Input[2]*n.Input[3]
		bytes := readFixture(t, n.Name+".input.bin")
		first, last := make([]float32, len(bytes)), make([]float32, len(bytes))
		for i, v := range bytes {
			first[i] = float32(v) / 255
			last[(i/area/c*area+i%area)*c+i/area%c] = first[i]
		}
		want := float32s(readFixture(t, n.Name+".output.bin"))
		for _, channelsLast := range []bool{false, true} {
			name := n.Name + ", channels first"
			input := engine.Float32s(first, n.Input...)
			if channelsLast {
				name = n.Name + ", channels last"
				input = engine.Float32s(last, b, n.Input[2], n.Input[3], c)
			}
			t.Run(name, func(t *testing.T) {
				p, err := Compile(e, m, Options{ChannelsLast: channelsLast})
				if err != nil {
					t.Fatal(err)
				}
				defer p.Free()
				out, err := p.Run(input)
				if err != nil {
					t.Fatal(err)
				}
				checkOutput(t, out[0], n.Output, want)
			})
		}
	}
}

func TestOperators(t *testing.T) {
	e := openEngine(t)
	type numbers struct {
		Dims   []int
		Values []byte
	}
	var cases []struct {
		Name            string
		Model           []byte
		Inputs, Outputs []numbers
	}
	if err := json.Unmarshal(readFixture(t, "operators.json"), &cases); err != nil {
		t.Fatal(err)
	}
	tried := map[string]bool{}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			m, err := Parse(c.Model, c.Name)
			if err != nil {
				t.Fatal(err)
			}
			tried[m.nodes[0].op] = true
			p, err := Compile(e, m, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Free()
			var in []*engine.Tensor
			for _, n := range c.Inputs {
				in = append(in, engine.Float32s(float32s(n.Values), n.Dims...))
			}
			out, err := p.Run(in...)
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range c.Outputs {
				checkOutput(t, out[i], want.Dims, float32s(want.Values))
			}
		})
	}
	// Those that the networks have, and those that only compute shapes.
	for _, op := range []string{
		"Shape", "Gather", "Range", "ConstantOfShape", "GlobalAveragePool", "HardSwish", "Mul", "Sub", "Sqrt",
		"Constant", "Size", "Identity", "Dropout", "Equal", "Greater", "Less", "Where", "Mod", "ReduceProd", "ReduceMin", "Sum", "Max", "Ceil", "Log",
	} {
		tried[op] = true
	}
	for _, op := range Operators() {
		if !tried[op] {
			t.Errorf("no case for the operator %s", op)
		}
	}
}

// TestMessages holds what is said of files that cannot be used.
func TestMessages(t *testing.T) {
	whole := readFixture(t, "classifier.onnx")
	for _, c := range []struct {
		name    string
		content []byte
		want    string
	}{
		{"empty", nil, "no graph"},
		{"text", []byte("this is not a network, it is a sentence"), "not a"},
		{"cut short", whole[:len(whole)/2], "reaches beyond the end"},
		{"no version", graphOnly(nodeBytes("Relu", "", "x", "y")), "opset"},
		{"unknown name", model(nodeBytes("Relu", "", "z", "y")), `uses "z", which nothing before it computes`},
		{"two of a name", model(nodeBytes("Relu", "", "x", "y"), nodeBytes("Relu", "", "x", "y")), `"y" is given twice`},
		{"huge tensor", model(message(5, numberField(1, 1<<30), numberField(1, 1<<30), numberField(2, 1), textField(8, "w")), nodeBytes("Relu", "", "x", "y")), "not possible"},
		{"tensor without numbers", model(message(5, numberField(1, 1<<30), numberField(2, 1), textField(8, "w")), nodeBytes("Relu", "", "x", "y")), "has no numbers"},
	} {
		_, err := Parse(c.content, "some.onnx")
		if err == nil || !strings.HasPrefix(err.Error(), "some.onnx: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := Open(fixtures); err == nil || !strings.Contains(err.Error(), "not a file") {
		t.Errorf("a folder: %v", err)
	}
	if _, err := Open("nowhere.onnx"); err == nil {
		t.Error("a missing file was opened")
	}
}

// TestUnsupported holds that what cannot be computed is named with its node and file.
func TestUnsupported(t *testing.T) {
	e := openEngine(t)
	for _, c := range []struct {
		name, want string
		content    []byte
	}{
		{"operator", `some.onnx: the operator NonZero (node "here")`, model(nodeBytes("NonZero", "here", "x", "y"))},
		{"domain", `the operator com.microsoft.Relu (node "here")`, model(message(1, textField(1, "x"), textField(2, "y"), textField(3, "here"), textField(4, "Relu"), textField(7, "com.microsoft")))},
	} {
		m, err := Parse(c.content, "some.onnx")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Compile(e, m, Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}

	run := func(input []int, parts ...[]byte) error {
		m, err := Parse(model(parts...), "some.onnx")
		if err != nil {
			t.Fatal(err)
		}
		p, err := Compile(e, m, Options{})
		if err != nil {
			return err
		}
		defer p.Free()
		size := 1
		for _, d := range input {
			size *= d
		}
		_, err = p.Run(engine.Float32s(make([]float32, size), input...))
		return err
	}
	pool := message(1, textField(1, "x"), textField(2, "y"), textField(3, "here"), textField(4, "MaxPool"), message(5, textField(1, "kernel_shape"), numberField(8, 9), numberField(8, 9)))
	grow := message(1, textField(1, "x"), textField(1, "w"), textField(2, "y"), textField(3, "here"), textField(4, "Expand"))
	large := message(5, numberField(1, 2), numberField(2, 7), textField(8, "w"), numberField(7, 1<<30), numberField(7, 1<<30))
	axes := message(1, textField(1, "x"), textField(2, "y"), textField(3, "here"), textField(4, "Softmax"), message(5, textField(1, "axis"), numberField(3, 7)))
	for _, c := range []struct {
		name, want string
		err        error
	}{
		{"window too large", `some.onnx: the operator MaxPool (node "here") has a window of 9 on a picture of 4`, run([]int{1, 1, 4, 4}, pool)},
		{"array too large", "makes an array of shape", run([]int{1}, large, grow)},
		{"axis", "names the axis 7 of an array with 2", run([]int{2, 2}, axes)},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, c.err, c.want)
		}
	}
}

// TestExternal holds that weights beside the model are read, and those elsewhere are not.
func TestExternal(t *testing.T) {
	outside := t.TempDir()
	folder := filepath.Join(outside, "model")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	numbers := make([]byte, 24)
	for i, v := range []float32{9, 9, 1, 2, 3, 4} {
		binary.LittleEndian.PutUint32(numbers[4*i:], math.Float32bits(v))
	}
	for _, path := range []string{filepath.Join(folder, "weights.bin"), filepath.Join(outside, "secret.bin")} {
		if err := os.WriteFile(path, numbers, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../secret.bin", filepath.Join(folder, "link.bin")); err != nil {
		t.Fatal(err)
	}
	write := func(location, offset string) string {
		entry := func(key, value string) []byte { return message(13, textField(1, key), textField(2, value)) }
		tensor := message(5, numberField(1, 4), numberField(2, 1), textField(8, "w"), numberField(14, 1), entry("location", location), entry("offset", offset))
		path := filepath.Join(folder, "m.onnx")
		if err := os.WriteFile(path, model(tensor, nodeBytes("Relu", "", "w", "y")), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	m, err := Open(write("weights.bin", "8"))
	if err != nil {
		t.Fatal(err)
	}
	if got := m.weights["w"].floats; !slices.Equal(got, []float32{1, 2, 3, 4}) {
		t.Errorf("read %v", got)
	}
	for _, c := range [][2]string{
		{"../secret.bin", "outside the folder"},
		{filepath.Join(outside, "secret.bin"), "outside the folder"},
		{"link.bin", `"w"`},
		{"nothing.bin", `"w"`},
	} {
		if _, err := Open(write(c[0], "8")); err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s: %v, want %q", c[0], err, c[1])
		}
	}
	for _, offset := range []string{"12", "-4", "9223372036854775807", "x"} {
		if _, err := Open(write("weights.bin", offset)); err == nil {
			t.Errorf("an offset of %s was accepted", offset)
		}
	}
	content, err := os.ReadFile(write("weights.bin", "0"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(content, "in memory"); err == nil || !strings.Contains(err.Error(), "other file") {
		t.Errorf("in memory: %v", err)
	}
}

package weights

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// assemble puts a header's length in front of it and body behind it.
func assemble(header string, body int) []byte {
	file := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(file, header...), make([]byte, body)...)
}

func TestParseRefusesHostileFiles(t *testing.T) {
	entry := func(dtype, shape, offsets string) string {
		return fmt.Sprintf(`{"a":{"dtype":%s,"shape":%s,"data_offsets":%s}}`, dtype, shape, offsets)
	}
	length := func(n uint64) []byte { return append(binary.LittleEndian.AppendUint64(nil, n), "{}"...) }
	two := func(first, second string) string {
		return fmt.Sprintf(`{"a":{"dtype":"U8","shape":[4],"data_offsets":%s},"b":{"dtype":"U8","shape":[4],"data_offsets":%s}}`, first, second)
	}
	cases := []struct {
		name string
		file []byte
		want string // part of the error
	}{
		{"empty", nil, "0 bytes, too short"},
		{"shorter than the length", []byte("1234567"), "7 bytes, too short"},
		{"length zero", length(0), "header length is 0"},
		{"length beyond the file", length(3), "only 2 bytes follow"},
		{"length above the limit", length(maxHeader + 1), "above the limit"},
		{"length of all ones", length(1<<64 - 1), "above the limit"},
		{"not an object", assemble(`[1]`, 0), `starts with '['`},
		{"leading space", assemble(` {}`, 0), `starts with ' '`},
		{"not UTF-8", assemble("{\"a\xff\":1}", 0), "not valid UTF-8"},
		{"broken JSON", assemble(`{"a":}`, 0), "not valid JSON"},
		{"JSON cut short", assemble(`{"a":{"dtype":"U8"`, 0), "ends too early"},
		{"trailing comma", assemble(`{"__metadata__":{},}`, 0), "not valid JSON"},
		{"trailing garbage", assemble(`{} x`, 0), "do not belong"},
		{"trailing newline", assemble("{}\n", 0), "do not belong"},
		{"a second object", assemble(`{}{}`, 0), "do not belong"},
		{"entry not an object", assemble(`{"a":3}`, 0), "object is expected, but there is the number 3"},
		{"duplicate tensor", assemble(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`, 0), `key "a" occurs twice`},
		{"duplicate tensor, escaped", assemble(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\u0061":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`, 0), `key "a" occurs twice`},
		{"duplicate field", assemble(`{"a":{"dtype":"U8","dtype":"F32","shape":[0],"data_offsets":[0,0]}}`, 0), `key "dtype" occurs twice`},
		{"unknown field", assemble(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"extra":1}}`, 0), `unknown field "extra"`},
		{"missing field", assemble(`{"a":{"dtype":"U8","shape":[0]}}`, 0), "is missing"},
		{"unknown dtype", assemble(entry(`"F7"`, "[0]", "[0,0]"), 0), `dtype "F7" is not supported`},
		{"dtype not a text", assemble(entry(`8`, "[0]", "[0,0]"), 0), "text is expected"},
		{"negative dimension", assemble(entry(`"U8"`, "[-1]", "[0,1]"), 1), "-1 is not a whole number"},
		{"fractional dimension", assemble(entry(`"U8"`, "[1.5]", "[0,1]"), 1), "1.5 is not a whole number"},
		{"exponent", assemble(entry(`"U8"`, "[1e0]", "[0,1]"), 1), "1e0 is not a whole number"},
		{"shape not a list", assemble(entry(`"U8"`, "1", "[0,1]"), 1), "list of numbers is expected"},
		{"shape of texts", assemble(entry(`"U8"`, `["1"]`, "[0,1]"), 1), "number is expected"},
		{"dimension above 2⁶⁴", assemble(entry(`"U8"`, "[18446744073709551616]", "[0,1]"), 1), "not a whole number"},
		{"dimension above 2⁶³", assemble(entry(`"U8"`, "[9223372036854775808]", "[0,1]"), 1), "too large"},
		{"product overflows", assemble(entry(`"U8"`, "[4294967296,4294967296]", "[0,0]"), 0), "more elements than can be counted"},
		{"size overflows", assemble(entry(`"F64"`, "[2305843009213693952]", "[0,0]"), 0), "more elements than can be counted"},
		{"too many dimensions", assemble(entry(`"U8"`, "["+strings.Repeat("1,", 64)+"1]", "[0,1]"), 1), "more than 64 numbers"},
		{"one offset", assemble(entry(`"U8"`, "[1]", "[0]"), 1), "1 numbers instead of 2"},
		{"three offsets", assemble(entry(`"U8"`, "[1]", "[0,1,2]"), 1), "more than 2 numbers"},
		{"end before begin", assemble(entry(`"U8"`, "[1]", "[1,0]"), 1), "end before they begin"},
		{"size is not shape × dtype", assemble(entry(`"F32"`, "[2]", "[0,4]"), 4), "takes 8 bytes"},
		{"out of bounds", assemble(entry(`"U8"`, "[4]", "[0,4]"), 3), "beyond the 3 bytes"},
		{"overlap", assemble(two("[0,4]", "[2,6]"), 6), "overlap"},
		{"same bytes", assemble(two("[0,4]", "[0,4]"), 4), "overlap"},
		{"hole", assemble(two("[0,4]", "[5,9]"), 9), "leave a hole"},
		{"hole at the start", assemble(entry(`"U8"`, "[1]", "[1,2]"), 2), "leave a hole after the start"},
		{"bytes left over", assemble(entry(`"U8"`, "[1]", "[0,1]"), 3), "2 bytes are left"},
		{"metadata not an object", assemble(`{"__metadata__":"x"}`, 0), "object is expected"},
		{"metadata null", assemble(`{"__metadata__":null}`, 0), "there is null"},
		{"metadata value not a text", assemble(`{"__metadata__":{"k":1}}`, 0), `value of "k": a text is expected`},
		{"metadata twice", assemble(`{"__metadata__":{},"__metadata__":{}}`, 0), "occurs twice"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			source, err := Parse(c.file, "bad.safetensors")
			if err == nil {
				t.Fatalf("accepted, with tensors %q", source.Names())
			}
			if text := err.Error(); !strings.Contains(text, c.want) || !strings.HasPrefix(text, "bad.safetensors: ") {
				t.Errorf("error %q does not name the file and %q", text, c.want)
			}
		})
	}
}

func TestParseAcceptsTheUnusual(t *testing.T) {
	header := `{"__metadata__":{"k":"v"},` +
		`"after":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},` +
		`"empty":{"data_offsets":[2,2],"shape":[0,2147483647,3],"dtype":"F32"},` +
		`"scalar":{"dtype":"F16","shape":[],"data_offsets":[2,4]}}     `
	file := append(assemble(header, 2), 0x00, 0x3c) // 1.0 as binary16
	source, err := Parse(file, "odd")
	if err != nil {
		t.Fatal(err)
	}
	if got := source.Names(); !slices.Equal(got, []string{"after", "empty", "scalar"}) {
		t.Errorf("names %q", got)
	}
	if source.Metadata()["k"] != "v" || source.Path("empty") != "odd" || source.Path("x") != "" {
		t.Error("metadata or path differ")
	}
	scalar, err := source.Tensor("scalar")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := scalar.Float32(); err != nil || !slices.Equal(v, []float32{1}) || scalar.Elements() != 1 {
		t.Errorf("scalar is %v, %v", v, err)
	}
	empty, err := source.Tensor("empty")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := empty.Float32(); err != nil || len(v) != 0 || empty.Elements() != 0 {
		t.Errorf("empty tensor is %v, %v", v, err)
	}
	after, _ := source.Tensor("after")
	if _, err := after.Float32(); err == nil {
		t.Error("bytes were read as floating-point numbers")
	}
	if _, err := source.Tensor("x"); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("missing tensor: %v", err)
	}
	if _, err := Parse(assemble(`{}`, 0), "none"); err != nil {
		t.Errorf("a file without tensors is valid: %v", err)
	}
}

func TestOpenNeedsARegularFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("folder: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	pointer := filepath.Join(dir, "pointer.safetensors")
	if err := os.WriteFile(pointer, []byte("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(pointer); err == nil || !strings.Contains(err.Error(), "git lfs pull") {
		t.Errorf("Git LFS pointer: %v", err)
	}
}

func TestTensorsOutliveTheirSource(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.safetensors")
	if err := Write(path, []*Tensor{NewFloat32("a", []int{3}, []float32{1, 2, 3})}, nil); err != nil {
		t.Fatal(err)
	}
	source, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := source.Tensor("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := source.Close(); err != nil {
		t.Fatal(err)
	}
	if v, err := a.Float32(); err != nil || !slices.Equal(v, []float32{1, 2, 3}) {
		t.Errorf("after Close: %v, %v", v, err)
	}
	if _, err := source.Tensor("a"); !errors.Is(err, errClosed) {
		t.Errorf("a tensor taken after Close: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(assemble(`{"__metadata__":{"k":"v"},"a":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]}}`, 4))
	f.Add(assemble(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"F64","shape":[],"data_offsets":[4,12]}}`, 12))
	f.Add(assemble(`{}   `, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		source, err := Parse(data, "fuzz")
		if err != nil {
			return
		}
		tensors, err := ReadAll(source)
		if err != nil {
			t.Fatal(err)
		}
		total := 0
		for _, tensor := range tensors {
			raw, err := tensor.Bytes()
			if err != nil || len(raw) != tensor.Elements()*tensor.DType.Size() {
				t.Fatalf("%q: %d bytes, %v", tensor.Name, len(raw), err)
			}
			total += len(raw)
		}
		if header := int(binary.LittleEndian.Uint64(data)); 8+header+total != len(data) {
			t.Fatalf("header %d and tensors %d do not make up %d bytes", header, total, len(data))
		}
	})
}

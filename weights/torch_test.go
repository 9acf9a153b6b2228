package weights

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// Both torch files hold the tensors of torch.safetensors; see testdata/make_torch.py.
func TestTorchFilesOfPyTorch(t *testing.T) {
	want, err := Open("testdata/torch.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	for _, path := range []string{"testdata/torch.pt", "testdata/torch-legacy.pt"} {
		opened, err := Open(path) // by content
		if err != nil {
			t.Fatal(err)
		}
		file := opened.(*TorchFile)
		if !slices.Equal(file.Names(), want.Names()) {
			t.Errorf("%s: names %q, not %q", path, file.Names(), want.Names())
		}
		if got := file.Ignored(); !slices.Equal(got, []string{"epoch", "losses", "lr", "note"}) {
			t.Errorf("%s: ignored %q", path, got)
		}
		for _, name := range want.Names() {
			a, err := want.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			b, err := file.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			x, _ := a.Bytes()
			y, _ := b.Bytes()
			if a.DType != b.DType || !slices.Equal(a.Shape, b.Shape) || !bytes.Equal(x, y) {
				t.Errorf("%s: %q is %s %v %x, not %s %v %x", path, name, b.DType, b.Shape, y, a.DType, a.Shape, x)
			}
		}
		if file.Path("int8") != path || file.Path("x") != "" {
			t.Errorf("%s: path of int8 is %q", path, file.Path("int8"))
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
		if _, err := file.Tensor("int8"); err == nil {
			t.Errorf("%s: a tensor was taken after Close", path)
		}
	}
}

// The helpers below assemble pickles by hand.

func unicode(s string) string {
	return "X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s
}

func global(module, name string) string { return "c" + module + "\n" + name + "\n" }

func integer(v int32) string {
	return "J" + string(binary.LittleEndian.AppendUint32(nil, uint32(v)))
}

func integers(v []int32) string {
	s := "("
	for _, x := range v {
		s += integer(x)
	}
	return s + "t"
}

func storage(class, key string, n int32) string {
	return "(" + unicode("storage") + global("torch", class) + unicode(key) + unicode("cpu") + integer(n) + "tQ"
}

func tensor(storage string, offset int32, shape, strides []int32) string {
	return global("torch._utils", "_rebuild_tensor_v2") + "(" + storage + integer(offset) + integers(shape) + integers(strides) + "\x89}tR"
}

func dict(items ...string) string { return "}(" + strings.Join(items, "") + "u" }

func program(body string) string { return "\x80\x02" + body + "." }

// archive packs a pickle and storages as torch.save does.
func archive(t testing.TB, method uint16, pickle string, storages map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	add := func(name, content string) {
		f, err := w.CreateHeader(&zip.FileHeader{Name: "archive/" + name, Method: method})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	add("data.pkl", pickle)
	for name, content := range storages {
		add(name, content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var (
	floatBytes = string(NewFloat32("", nil, []float32{0, 1, 2, 3, 4, 5}).data)
	sixFloats  = storage("FloatStorage", "0", 6)
)

func TestTorchReadsHandMadeFiles(t *testing.T) {
	data := map[string]string{"data/0": floatBytes, "byteorder": "little"}
	view := tensor(sixFloats, 1, []int32{2, 2}, []int32{1, 3})
	for name, c := range map[string]struct {
		pickle, tensor string
		want           []float32
		ignored        []string
	}{
		"strided view":     {dict(unicode("w"), view), "w", []float32{1, 4, 2, 5}, nil},
		"nested":           {dict(unicode("a"), dict(unicode("b"), dict("K\x07", view))), "a.b.7", []float32{1, 4, 2, 5}, nil},
		"parameter":        {dict(unicode("w"), global("torch._utils", "_rebuild_parameter")+"("+view+"\x88}tR"), "w", []float32{1, 4, 2, 5}, nil},
		"ordered dict":     {global("collections", "OrderedDict") + ")R(" + unicode("w") + view + "u}b", "w", []float32{1, 4, 2, 5}, nil},
		"dict of pairs":    {global("collections", "OrderedDict") + "](" + unicode("w") + view + "\x86e\x85R", "w", []float32{1, 4, 2, 5}, nil},
		"wrapped":          {dict(unicode("state_dict"), dict(unicode("w"), view), unicode("step"), "K\x01"), "w", []float32{1, 4, 2, 5}, []string{"step"}},
		"not wrapped":      {dict(unicode("state_dict"), dict(unicode("w"), view), unicode("v"), view), "state_dict.w", []float32{1, 4, 2, 5}, nil},
		"memo":             {dict(unicode("v")+"q\x00", view+"r\x01\x01\x00\x00", unicode("w"), "j\x01\x01\x00\x00"), "w", []float32{1, 4, 2, 5}, nil},
		"named by a stack": {dict(unicode("w"), strings.Replace(view, global("torch._utils", "_rebuild_tensor_v2"), "\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2\x94\x93", 1)), "w", []float32{1, 4, 2, 5}, nil},
		"Python 2's texts": {dict("U\x01w", view, "T\x01\x00\x00\x00v", "U\x02\xff\x00"), "w", []float32{1, 4, 2, 5}, []string{"v"}},
		"before 0.4":       {dict(unicode("w"), global("torch._utils", "_rebuild_tensor")+"("+sixFloats+integer(1)+integers([]int32{2, 2})+integers([]int32{1, 3})+"tR"), "w", []float32{1, 4, 2, 5}, nil},
		"lone tensor":      {view, LoneTensor, []float32{1, 4, 2, 5}, nil},
		"scalar":           {dict(unicode("w"), tensor(sixFloats, 3, nil, nil)), "w", []float32{3}, nil},
		"empty":            {dict(unicode("w"), tensor(sixFloats, 0, []int32{0, 9}, []int32{9, 1})), "w", []float32{}, nil},
		"odd values beside": {
			dict(unicode("w"), view, unicode("x"), "\x8a\x01\xff", unicode("y"), "G\x3f\xf0\x00\x00\x00\x00\x00\x00", unicode("z"),
				global("numpy.core.multiarray", "scalar")+")R", global("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"), "N"), "w",
			[]float32{1, 4, 2, 5},
			[]string{"the_Python_object_pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "x", "y", "z"},
		},
	} {
		for _, method := range []uint16{zip.Store, zip.Deflate} {
			file, err := ParseTorch(archive(t, method, program(c.pickle), data), "hand.pt")
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			got, err := file.Tensor(c.tensor)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if v, err := got.Float32(); err != nil || !slices.Equal(v, c.want) {
				t.Errorf("%s: %v, not %v (%v)", name, v, c.want, err)
			}
			if got := file.Ignored(); !slices.Equal(got, c.ignored) {
				t.Errorf("%s: ignored %q", name, got)
			}
		}
	}
}

func TestTorchRefusesHostilePickles(t *testing.T) {
	data := map[string]string{"data/0": floatBytes}
	whole := tensor(sixFloats, 0, []int32{6}, []int32{1})
	cycle := "}q\x00(" + unicode("a") + "h\x00u"
	laughs := dict(unicode("w"), whole) + "q\x00"
	for range 30 { // each level holds the one before twice
		laughs += "0" + dict(unicode("a"), "h\x00", unicode("b"), "h\x00") + "q\x00"
	}
	for name, c := range map[string]struct{ pickle, want string }{
		"os.system":             {program(global("os", "system") + "(" + unicode("true") + "tR"), `"os.system", which weights do not need and which is never run`},
		"posix by stack":        {program(unicode("posix") + unicode("system") + "\x93(" + unicode("true") + "tR"), `"posix.system"`},
		"builtins.eval":         {program(global("builtins", "eval") + "(" + unicode("1") + "tR"), `"builtins.eval"`},
		"_load_from_bytes":      {program(global("torch.storage", "_load_from_bytes") + "(C\x00tR"), `"torch.storage._load_from_bytes"`},
		"attribute of a module": {program(global("torch", "_utils.os.system") + ")R"), `"torch._utils.os.system"`},
		"INST":                  {program("(ios\nsystem\n"), "instruction 0x69 is not among those"},
		"OBJ":                   {program("(o"), "instruction 0x6f"},
		"NEWOBJ_EX":             {program("\x92"), "instruction 0x92"},
		"EXT1":                  {program("\x82\x01"), "instruction 0x82"},
		"LONG4":                 {program("\x8b\xff\xff\xff\x7f"), "instruction 0x8b"},
		"BINBYTES8":             {program("\x8e\xff\xff\xff\xff\xff\xff\xff\x7f"), "instruction 0x8e"},
		"text PERSID":           {program("P0\n"), "instruction 0x50"},
		"storage class called":  {program(global("torch", "FloatStorage") + ")R"), "cannot be made this way"},
		"dict called":           {program("})R"), "a dict is called"},
		"protocol 0":            {"\x80\x00N.", "protocol 0"},
		"no end":                {"\x80\x02N", "1 bytes are needed"},
		"nothing at the end":    {"\x80\x02.", "0 objects are left"},
		"two at the end":        {program("NN"), "2 objects are left"},
		"bytes after the end":   {program(dict(unicode("w"), whole)) + "x", "1 bytes follow"},
		"text beyond the end":   {"\x80\x02X\xff\xff\xff\xffab", "bytes are needed"},
		"memo unset":            {program("j\xff\xff\xff\xff"), "fetched before it is stored"},
		"memo of nothing":       {program("r\xff\xff\xff\xff"), "from an empty stack"},
		"no mark":               {program("Nt"), "mark that delimits arguments is missing"},
		"pop of nothing":        {program("0"), "empty stack"},
		"tuple of nothing":      {program("\x87"), "empty stack"},
		"append to a dict":      {program("}Na"), "items are added to a dict"},
		"set in a list":         {program("]NNs"), "items are added to a list"},
		"odd items":             {program("}(Nu"), "items are added to a dict"},
		"attributes of a list":  {program("]}b"), "attributes are set"},
		"endless name":          {program("c" + strings.Repeat("a", 1000)), "does not end"},
		"not a dict":            {program("]"), "a list instead of a dictionary"},
		"no tensors":            {program(dict(unicode("a"), "N")), "holds no tensors"},
		"two of one name":       {program(dict(unicode("w"), whole, unicode("w"), whole)), `two tensors are called "w"`},
		"names that collide":    {program(dict(unicode("a.b"), whole, unicode("a"), dict(unicode("b"), whole))), `two tensors are called "a.b"`},
		"cycle":                 {program(cycle), "nested more than"},
		"billion laughs":        {program(laughs), "outgrow the file"},
		"unknown storage":       {program(dict(unicode("w"), tensor(storage("FloatStorage", "9", 6), 0, []int32{6}, []int32{1}))), `storage "9" is not in the archive`},
		"storage elsewhere":     {program(dict(unicode("w"), tensor(storage("FloatStorage", "../data.pkl", 6), 0, []int32{6}, []int32{1}))), "is not in the archive"},
		"storage too large":     {program(dict(unicode("w"), tensor(storage("FloatStorage", "0", 7), 0, []int32{6}, []int32{1}))), "take 28 bytes, but its entry has 24"},
		"storage negative":      {program(dict(unicode("w"), tensor(storage("FloatStorage", "0", -1), 0, []int32{6}, []int32{1}))), "no valid class, key or size"},
		"storage of two sizes":  {program(dict(unicode("w"), whole, unicode("v"), tensor(storage("HalfStorage", "0", 6), 0, []int32{6}, []int32{1}))), "24 bytes in one place and 12"},
		"storage without type":  {program("(" + unicode("storage") + "N" + unicode("0") + unicode("cpu") + "K\x06tQ"), "no valid class, key or size"},
		"persistent text":       {program(unicode("0") + "Q"), "instead of a tuple"},
		"beyond the storage":    {program(dict(unicode("w"), tensor(sixFloats, 1, []int32{6}, []int32{1}))), "reaches element 6"},
		"stride beyond":         {program(dict(unicode("w"), tensor(sixFloats, 0, []int32{2, 2}, []int32{5, 1}))), "reaches element 6"},
		"huge strides":          {program(dict(unicode("w"), tensor(sixFloats, 0, slices.Repeat([]int32{1<<31 - 1}, 3), slices.Repeat([]int32{1<<31 - 1}, 3)))), "beyond any storage"},
		"negative stride":       {program(dict(unicode("w"), tensor(sixFloats, 5, []int32{6}, []int32{-1}))), "whole numbers from 0 up"},
		"negative dimension":    {program(dict(unicode("w"), tensor(sixFloats, 0, []int32{-6}, []int32{1}))), "whole numbers from 0 up"},
		"negative offset":       {program(dict(unicode("w"), tensor(sixFloats, -1, []int32{6}, []int32{1}))), "not a storage, an offset"},
		"stride zero":           {program(dict(unicode("w"), tensor(sixFloats, 0, []int32{1 << 30}, []int32{0}))), "repeat the 6 of storage"},
		"shape without strides": {program(dict(unicode("w"), tensor(sixFloats, 0, []int32{6}, nil))), "not a storage, an offset"},
		"tensor of nothing":     {program(global("torch._utils", "_rebuild_tensor_v2") + ")R"), "0 arguments"},
		"parameter of nothing":  {program(global("torch._utils", "_rebuild_parameter") + ")R"), "not those of a parameter"},
		"dict of what":          {program(global("collections", "OrderedDict") + "N\x85R"), "not a list of pairs"},
	} {
		_, err := ParseTorch(archive(t, zip.Store, c.pickle, data), "bad.pt")
		if err == nil || !strings.HasPrefix(err.Error(), "bad.pt: ") {
			t.Errorf("%s: error %v does not name the file", name, err)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %q does not say %q", name, err, c.want)
		}
	}
}

func TestTorchRefusesHostileArchives(t *testing.T) {
	good := program(dict(unicode("w"), tensor(sixFloats, 0, []int32{6}, []int32{1})))
	sound := archive(t, zip.Store, good, map[string]string{"data/0": floatBytes})
	refused := func(name string, file []byte, want string) {
		t.Helper()
		opened, err := ParseTorch(file, "bad.pt")
		if err == nil {
			_, err = opened.Tensor("w")
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "bad.pt: ") {
			t.Errorf("%s: error %v does not name the file and %q", name, err, want)
		}
	}
	refused("cut short", sound[:len(sound)-30], "not a readable zip archive")
	refused("only the magic", []byte(zipMagic), "not a readable zip archive")
	refused("other byte order", archive(t, zip.Store, good, map[string]string{"data/0": floatBytes, "byteorder": "big"}), `"big" is not supported`)
	refused("TorchScript", archive(t, zip.Store, good, map[string]string{"data/0": floatBytes, "constants.pkl": ""}), "TorchScript")
	refused("two pickles", archive(t, zip.Store, good, map[string]string{"x/data.pkl": good}), "two entries data.pkl")
	refused("deflated zeros too long", archive(t, zip.Deflate, strings.Repeat("\x00", maxPickle+1), nil), "more than the")

	at := bytes.Index(sound, []byte(floatBytes))
	damaged := bytes.Clone(sound)
	damaged[at+5] ^= 1
	refused("damaged bytes", damaged, "checksum does not match")

	directory := bytes.Index(sound, []byte("PK\x01\x02"))
	encrypted := bytes.Clone(sound)
	encrypted[directory+8] |= 1
	refused("encrypted", encrypted, "encrypted")
	packed := bytes.Clone(sound)
	packed[directory+10] = 99
	refused("unknown compression", packed, "compression method 99")
	longer := bytes.Clone(sound)
	binary.LittleEndian.PutUint32(longer[directory+24:], 1<<31)
	refused("unpacks to too much", longer, "cannot unpack to 2147483648")

	legacy, err := os.ReadFile("testdata/torch-legacy.pt")
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(legacy) {
		if _, err := ParseTorch(legacy[:n], "cut.pt"); err == nil {
			t.Fatalf("the first %d bytes of a %d-byte file were accepted", n, len(legacy))
		}
	}
	refused("longer than its storages", append(bytes.Clone(legacy), 0), "1 bytes follow")
	refused("another pickle", []byte(program("}")), "not one that torch.save wrote")
}

// Eleven bytes that announce four gigabytes must cost next to nothing.
func TestTinyTorchFilesTakeLittleMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, file := range []string{
		"\x80\x02X\xff\xff\xff\xffabcd",
		"\x80\x02B\xff\xff\xff\x7fabcd",
		"\x80\x02Nr\xff\xff\xff\xff...",
		"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff",
		"\x80\x02(((((((((",
	} {
		if _, err := ParseTorch([]byte(file), "tiny.pt"); err == nil {
			t.Errorf("%q was accepted", file)
		}
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("%d bytes were allocated", used)
	}
}

// useAll reads every tensor of a file that was accepted.
func useAll(t *testing.T, file *TorchFile) {
	for _, name := range file.Names() {
		tensor, err := file.Tensor(name)
		if err != nil {
			continue // damaged storages are found out here
		}
		if raw, err := tensor.Bytes(); err != nil || len(raw) != tensor.Elements()*tensor.DType.Size() {
			t.Fatalf("%q: %d bytes, %v", name, len(raw), err)
		}
	}
}

func FuzzParseTorch(f *testing.F) {
	for _, path := range []string{"testdata/torch.pt", "testdata/torch-legacy.pt"} {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if file, err := ParseTorch(data, "fuzz"); err == nil {
			useAll(t, file)
		}
	})
}

func FuzzPickle(f *testing.F) {
	view := tensor(sixFloats, 1, []int32{2, 2}, []int32{1, 3})
	f.Add(program(dict(unicode("w"), view)))
	f.Add(program(global("collections", "OrderedDict") + ")R(" + unicode("w") + view + "u}b"))
	f.Add(program(dict(unicode("state_dict"), dict(unicode("w")+"q\x00", view), "K\x01", "\x8a\x01\xff")))
	f.Fuzz(func(t *testing.T, pickle string) {
		file, err := ParseTorch(archive(t, zip.Store, pickle, map[string]string{"data/0": floatBytes}), "fuzz")
		if err == nil {
			useAll(t, file)
		}
	})
}

package convert

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/resalign/resalign/weights"
)

// writeCheckpoint writes tensors as PyTorch's torch.save({"state_dict": …, "global_step": 7}, path) does.
func writeCheckpoint(t *testing.T, path string, all map[string]*weights.Tensor) {
	t.Helper()
	classes := map[weights.DType]string{weights.F16: "HalfStorage", weights.F32: "FloatStorage"}
	var p, file bytes.Buffer
	archive := zip.NewWriter(&file)
	text := func(s string) {
		p.WriteByte('X')
		_ = binary.Write(&p, binary.LittleEndian, uint32(len(s)))
		p.WriteString(s)
	}
	number := func(n int) {
		p.WriteByte('J')
		_ = binary.Write(&p, binary.LittleEndian, int32(n))
	}
	numbers := func(list []int) {
		p.WriteByte('(')
		for _, n := range list {
			number(n)
		}
		p.WriteByte('t')
	}
	p.WriteString("\x80\x02}(") // protocol 2, a dictionary, a mark
	text("global_step")
	number(7)
	text("state_dict")
	p.WriteString("}(")
	for i, name := range slices.Sorted(maps.Keys(all)) {
		tensor := all[name]
		strides := make([]int, len(tensor.Shape))
		step := 1
		for k := len(strides) - 1; k >= 0; k-- {
			strides[k] = step
			step *= tensor.Shape[k]
		}
		text(name)
		p.WriteString("ctorch._utils\n_rebuild_tensor_v2\n((")
		text("storage")
		p.WriteString("ctorch\n" + classes[tensor.DType] + "\n")
		text(fmt.Sprint(i))
		text("cpu")
		number(tensor.Elements())
		p.WriteString("tQ")
		number(0)
		numbers(tensor.Shape)
		numbers(strides)
		p.WriteString("\x89ccollections\nOrderedDict\n)RtR")
		data, err := tensor.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		entry(t, archive, fmt.Sprintf("archive/data/%d", i), data)
	}
	p.WriteString("uu.")
	entry(t, archive, "archive/data.pkl", p.Bytes())
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, file.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func entry(t *testing.T, archive *zip.Writer, name string, data []byte) {
	t.Helper()
	w, err := archive.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
}

func TestCheckpoints(t *testing.T) {
	for _, name := range []string{"sd1", "sd2", "sdxl"} {
		dir := t.TempDir()
		file, ckpt, out := filepath.Join(dir, "a.safetensors"), filepath.Join(dir, "b.ckpt"), filepath.Join(dir, "c")
		mustConvert(t, models[name], file, Options{})
		writeCheckpoint(t, ckpt, fileTensors(t, file))
		r := mustConvert(t, ckpt, out, Options{Base: models[name]})
		if r.From != SingleFile {
			t.Errorf("%s: the checkpoint is taken for %s", name, r.From)
		}
		sameTensors(t, tensorsOf(t, out), tensorsOf(t, models[name]))
		data := content(t, ckpt)
		for _, keep := range []int{len(data) / 2, len(data) - 1} {
			if err := os.WriteFile(ckpt, data[:keep], 0o644); err != nil {
				t.Fatal(err)
			}
			refused(t, ckpt, filepath.Join(dir, "d"), Options{Base: models[name]}, "b.ckpt")
		}
		// Damage in the numbers is found when they are read, long after the names.
		damaged := bytes.Clone(data)
		damaged[len(data)/3] ^= 0xff
		if err := os.WriteFile(ckpt, damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, ckpt, filepath.Join(dir, "d"), Options{Base: models[name]}, "b.ckpt")
	}
}

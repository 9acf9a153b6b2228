package inspect

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

const (
	golden    = "../testdata/golden"
	tinyModel = golden + "/tiny-sd"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// refuse checks that a path is an error in one sentence that contains a part.
func refuse(t *testing.T, path, part string) {
	t.Helper()
	found, err := Path(path, true)
	if err == nil {
		t.Errorf("%s was taken for %+v", path, found)
	} else if !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: error %v", path, err)
	}
}

func TestModelThatCannotBeUsedIsNoted(t *testing.T) {
	found, err := Path(tinyModel, false)
	if err != nil || len(found.Notes) != 0 || len(found.Components) < 4 {
		t.Fatalf("the model is %+v: %v", found, err)
	}
	dir := filepath.Join(t.TempDir(), "model")
	if err := os.CopyFS(dir, os.DirFS(tinyModel)); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"vae/diffusion_pytorch_model.safetensors", "scheduler", "text_encoder"} {
		if err := os.RemoveAll(filepath.Join(dir, filepath.FromSlash(part))); err != nil {
			t.Fatal(err)
		}
	}
	var config map[string]any
	path := filepath.Join(dir, "unet", "config.json")
	content, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(content, &config)
	}
	config["act_fn"] = "mish"
	changed, err2 := json.Marshal(config)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	write(t, path, string(changed))
	if found, err = Path(dir, false); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"vae has no weights", "scheduler_config.json", "text_encoder is named in model_index.json", "mish"} {
		if !slices.ContainsFunc(found.Notes, func(n string) bool { return strings.Contains(n, part) }) {
			t.Errorf("no note about %q in %q", part, found.Notes)
		}
	}
}

func TestAdapterOfAnUnknownForm(t *testing.T) {
	const module = "lora_unet_mid_block_attentions_0_proj_in."
	path := filepath.Join(t.TempDir(), "loha.safetensors")
	if err := weights.Write(path, zeros(map[string][]int{module + "hada_w1_a": {3, 2}, module + "hada_w1_b": {2, 3}}), nil); err != nil {
		t.Fatal(err)
	}
	found, err := Path(path, true)
	if err != nil || found.LoRA != nil || len(found.Notes) != 1 || !strings.Contains(found.Notes[0], "LoHa") || len(found.Weights.List) != 2 {
		t.Errorf("an adapter of another kind is %+v: %v", found, err)
	}
}

func zeros(shapes map[string][]int) []*weights.Tensor {
	var tensors []*weights.Tensor
	for name, shape := range shapes {
		n := 1
		for _, dim := range shape {
			n *= dim
		}
		tensors = append(tensors, weights.NewFloat32(name, shape, make([]float32, n)))
	}
	return tensors
}

// A LoRA adapter whose factors do not go together is a broken file.
func TestBrokenAdapters(t *testing.T) {
	const module = "unet.mid_block.attentions.0.proj_in."
	for part, shapes := range map[string]map[string][]int{
		"have no counterpart": {module + "lora_A.weight": {2, 3}},
		"is [3 4] instead of": {module + "lora_A.weight": {2, 3}, module + "lora_B.weight": {3, 4}},
		"do not fit rank 0":   {module + "lora_A.weight": {0, 3}, module + "lora_B.weight": {3, 0}},
	} {
		path := filepath.Join(t.TempDir(), "lora.safetensors")
		if err := weights.Write(path, zeros(shapes), nil); err != nil {
			t.Fatal(err)
		}
		refuse(t, path, part)
		refuse(t, path, path)
	}
}

func TestRunFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	run, err := train.CreateRun(dir, nil, train.Session{Program: "a test", Engine: "go"})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	log, err := train.OpenEventLog(run.EventsPath(), -1)
	if err != nil {
		t.Fatal(err)
	}
	for step := range 3 {
		if err := log.Append(train.Event{Step: step + 1, Kind: "step"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	found, err := Path(dir, false)
	if err != nil || found.Run == nil || found.Run.Steps != 3 || found.Run.Finished != "" || found.Run.Sessions != 1 || found.Run.Program != "a test" || len(found.Run.Checkpoints) != 0 {
		t.Fatalf("the run is %+v: %v", found, err)
	}
	if err := run.Finish(); err != nil {
		t.Fatal(err)
	}
	if found, err = Path(dir, false); err != nil || found.Run.Finished == "" {
		t.Errorf("the finished run is %+v: %v", found, err)
	}
	write(t, filepath.Join(dir, "run.json"), "{}")
	refuse(t, dir, "sessions is empty")
}

// TestHostileFiles feeds files whose headers lie.
func TestHostileFiles(t *testing.T) {
	header := func(length uint64, json string) string {
		return string(binary.LittleEndian.AppendUint64(nil, length)) + json
	}
	whole, err := os.ReadFile(golden + "/schedulers.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	tensor := `{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`
	files := map[string]string{
		"empty":            "",
		"text":             "this is not a checkpoint",
		"truncated":        string(whole[:len(whole)/2]),
		"huge header":      header(1<<62, "{}"),
		"no JSON":          header(4, "abcd"),
		"no data":          header(uint64(len(tensor)), tensor),
		"trailing bytes":   header(2, "{}") + "xxxx",
		"overlap":          header(104, `{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`) + "1234",
		"negative shape":   header(54, `{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}`) + "12345678",
		"overflowing":      header(87, `{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}}`) + "12345678",
		"unknown type":     header(53, `{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}`) + "12345678",
		"executing pickle": "\x80\x02cposix\nsystem\nq\x00X\x02\x00\x00\x00lsq\x01\x85q\x02Rq\x03.",
	}
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		write(t, path, content)
		refuse(t, path, filepath.Base(path))
	}
	broken := filepath.Join(dir, "model")
	if err := os.CopyFS(broken, os.DirFS(tinyModel)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(broken, "unet", "diffusion_pytorch_model.safetensors"), string(whole[:1000]))
	refuse(t, broken, "diffusion_pytorch_model.safetensors")
	write(t, filepath.Join(broken, "model_index.json"), `{"../../etc": ["a", "b"]}`)
	refuse(t, broken, "not the name of a folder")
}

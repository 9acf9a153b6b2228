package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/convert"
)

func TestConvert(t *testing.T) {
	dir := t.TempDir()
	file, folder := filepath.Join(dir, "a.safetensors"), filepath.Join(dir, "b")
	out := succeed(t, "convert", tinyModel, file)
	for _, part := range []string{"wrote " + file + ": diffusers of the family sd1 as single-file", "tensors", "note: ", "--base"} {
		if !strings.Contains(out, part) {
			t.Errorf("no %q in:\n%s", part, out)
		}
	}
	r := decode[convert.Result](t, succeed(t, "convert", file, folder, "--base", tinyModel, "--dtype", "fp16", "--json"))
	if r.From != convert.SingleFile || r.To != convert.Diffusers || r.Family != convert.SD1 || r.Tensors == 0 || r.LeftOut == nil || r.Notes == nil {
		t.Errorf("the result is %+v", r)
	}
	// What was converted can be used.
	succeed(t, generateArgs(filepath.Join(dir, "pictures"), "--model", folder, "--prompt", "a red star", "--steps", "1")...)
	succeed(t, "convert", folder, filepath.Join(dir, "unet.safetensors"), "--to", "unet")
	succeed(t, "convert", filepath.Join(dir, "unet.safetensors"), filepath.Join(dir, "c.safetensors"), "--base", tinyModel)
}

func TestConvertErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.safetensors")
	succeed(t, "convert", tinyModel, file)
	fail(t, exitUsage, []string{"convert", tinyModel}, "the model to read and the one to write")
	fail(t, exitUsage, []string{"convert", tinyModel, file, "x"}, "3 arguments")
	fail(t, exitUsage, []string{"convert", tinyModel, "x", "--dtype", "int8"}, `--dtype is "int8"`, "bf16")
	fail(t, exitUsage, []string{"convert", tinyModel, "x", "--to", "onnx"}, `--to is "onnx"`, "single-file")
	fail(t, exitUsage, []string{"convert", tinyModel, "x", "--prediction", "x0"}, `--prediction is "x0"`, "v_prediction")
	fail(t, exitFailed, []string{"convert", tinyModel, file}, "exists already")
	fail(t, exitFailed, []string{"convert", tinyModel, filepath.Join(dir, "a.ckpt")}, "not written")
	fail(t, exitFailed, []string{"convert", file, filepath.Join(dir, "b")}, "--base")
	fail(t, exitFailed, []string{"generate", "--model", file, "--prompt", "x", "--out", filepath.Join(dir, "pictures"), "--engine", "go"},
		"is a file, not a diffusers directory; run `resalign convert "+file+" DIR`")
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("%v stay behind (%v)", left, err)
	}
}

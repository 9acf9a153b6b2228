package programs

import (
	"strings"
	"testing"
)

const text = `module @resalign%_0 {
  func.func @main(%arg0: tensor<4x8xf32>, %arg1: tensor<f32>, %arg2: tensor<4x8xi1>) -> (tensor<4x8xf32>, tensor<f32>) {
    %0 = "stablehlo.add"(%arg0, %arg1) : (tensor<4x8xf32>, tensor<f32>) -> tensor<4x8xf32>
  }
}
`

func TestDescribeMarksWhatIsGivenUp(t *testing.T) {
	l := NewLabel("step of {LR: 0}")
	defer l.Forget()
	program := strings.Replace(text, "resalign%", l.String(), 1)
	l.Donate([]bool{true, false, true})
	got := string(describe([]byte(program)))
	want := strings.Replace(text, "resalign%_0", "f_step_of__LR__0_", 1)
	want = strings.Replace(want, "@main(%arg0: tensor<4x8xf32>,", "@main(%arg0: tensor<4x8xf32> {jax.buffer_donor = true},", 1)
	want = strings.Replace(want, "%arg2: tensor<4x8xi1>)", "%arg2: tensor<4x8xi1> {jax.buffer_donor = true})", 1)
	if got != want {
		t.Errorf("described as\n%s", got)
	}
	// The same function in another run has another number and the same text.
	again := NewLabel("step of {LR: 0}")
	defer again.Forget()
	again.Donate([]bool{true, false, true})
	if other := string(describe([]byte(strings.Replace(text, "resalign%", again.String(), 1)))); other != got {
		t.Errorf("the text depends on the number: %s", other)
	}
}

func TestDescribeLeavesWhatItDoesNotKnow(t *testing.T) {
	l := NewLabel("f")
	l.Donate([]bool{true, true, true})
	for _, program := range []string{
		"", "\x4d\x4c\xefR bytecode", "module @other {\n func.func @main(%arg0: tensor<f32>) {}",
		"module @resalign99999999999999999999_0 {\n func.func @main(%arg0: tensor<f32>) {}",
		strings.Replace(text, "resalign%", "resalign987654", 1),
	} {
		if got := string(describe([]byte(program))); got != program {
			t.Errorf("%q became %q", program, got)
		}
	}
	// Heads of another form keep their arguments as they are.
	for _, head := range []string{"%x: tensor<f32>", `%arg0: tensor<f32> {a = "b"}`, "%arg0: tensor<complex<f32>>", ""} {
		program := "module @" + l.String() + "_0 {\n  func.func @main(" + head + ") -> tensor<f32> {"
		want := "module @f_f {\n  func.func @main(" + head + ") -> tensor<f32> {"
		if got := string(describe([]byte(program))); got != want {
			t.Errorf("%q became %q", program, got)
		}
	}
	l.Forget()
	program := strings.Replace(text, "resalign%", l.String(), 1)
	if got := string(describe([]byte(program))); got != program {
		t.Errorf("a forgotten function's program was changed: %q", got)
	}
}

package plan

import (
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/finetune"
)

// Where there is a device its compiler tells the memory, and running tells the times; what does not fit is told the switches by
// the compiler's account, too.
func TestDevice(t *testing.T) {
	if enginetest.Spec() == "go" {
		t.Skip("the Go engine has no compiler to ask; set " + enginetest.Variable + " to an XLA plugin")
	}
	o := tinyOptions(t)
	j := finetune.DefaultJob(finetune.Full)
	j.Model, j.Data, j.Steps, j.BatchSize = o.Model.Name, "examples/tiny/people", 2, 4
	o.Job, o.XLA, o.Rates = &j, true, Rates{}
	estimated, err := Make(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	o.Device = enginetest.Open(t)
	o.Timer = o.Device
	p, err := Make(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Compiled || estimated.Compiled || !p.Timed || p.StepSeconds <= 0 || p.Seconds < 2*p.StepSeconds {
		t.Errorf("compiled %v, timed %v, %v s a step, %v s in all", p.Compiled, p.Timed, p.StepSeconds, p.Seconds)
	}
	for _, name := range []string{"gradient", "encoding a picture"} {
		asked, guessed := height(p, name), height(estimated, name)
		if asked == 0 || asked == guessed || asked > 8*guessed || guessed > 8*asked {
			t.Errorf("%s needs %d bytes by the compiler, %d by the graph", name, asked, guessed)
		}
	}
	o.Memory = p.Peak - 1
	small, err := Make(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if small.Fits || small.Timed || len(small.Switches) == 0 || !slices.ContainsFunc(small.Notes, func(n string) bool { return strings.Contains(n, "timed") }) {
		t.Errorf("what does not fit: %+v", small)
	}
	for _, s := range small.Switches {
		if s.Peak >= small.PeakHigh {
			t.Errorf("%s needs %d, without it %d are needed", s.Set, s.Peak, small.PeakHigh)
		}
	}
}

package unlearn

import "testing"

func TestPushHoldsTheDepth(t *testing.T) {
	for _, c := range []struct{ depth, seen, want float64 }{
		{0, 0.5, 1},      // no depth is asked for
		{1, 0, 1},        // nothing was seen yet
		{1, 0.5, 1},      // far below
		{1, 0.95, 0.5},   // within the band
		{1, 1, 0},        // there
		{1, 1.05, -0.5},  // beyond: back
		{1, 3, -1},       // far beyond: back in full, no faster
		{0.2, 0.19, 0.5}, // the band is relative
	} {
		x := &trainer{recipe: Recipe{Objective: Objective{Depth: c.depth}}, depth: c.seen}
		if got := x.push(); got < c.want-1e-9 || got > c.want+1e-9 {
			t.Errorf("depth %v, seen %v: push %v, want %v", c.depth, c.seen, got, c.want)
		}
	}
}

// The tiny model's error on harmful pictures is about 1.25 at first. Ascent alone passes 1.6 within these steps; the
// controller stops there and stays.
func TestDepthIsReachedAndHeld(t *testing.T) {
	const depth, steps = 1.6, 60
	r := tinyRecipe(t, t.TempDir())
	r.Method = Ascent
	r.Objective.Alpha, r.Objective.AlphaFinal = 0.1, 0.1
	r.Outer.Steps, r.Outer.LearningRate, r.Outer.ClipNorm = steps, 2e-2, 0
	r.Checkpoint.Every = steps
	r.Data["harmful"] = Dataset{Folder: r.Data["harmful"].Folder, Batch: 4}
	free := r
	free.Out += "-free"
	_, events := run(t, free, Hooks{})
	if reached := -number(t, events[steps-1], "harmful_loss"); reached < 1.5*depth {
		t.Fatalf("ascent without a depth only reaches %v; the test shows nothing", reached)
	}
	r.Objective.Depth = depth
	_, events = run(t, r, Hooks{})
	mean := 0.0
	for _, e := range events[steps-20:] {
		mean -= number(t, e, "harmful_loss") / 20
	}
	if mean < 0.8*depth || mean > 1.2*depth {
		t.Errorf("the error is %v over the last steps, to be held at %v", mean, depth)
	}
}

// While the depth is held, the loss after fine-tuning keeps its weight.
func TestDirectWeight(t *testing.T) {
	held := &trainer{recipe: Recipe{Objective: Objective{Depth: 1}}, depth: 1.05}
	if got := held.directWeight(0.8); got > -0.5+1e-9 || got < -0.5-1e-9 {
		t.Errorf("above its depth the loss has weight %v", got)
	}
	if got := (&trainer{}).directWeight(0.8); got > 0.2+1e-9 || got < 0.2-1e-9 {
		t.Errorf("without a depth the loss has weight %v", got)
	}
}

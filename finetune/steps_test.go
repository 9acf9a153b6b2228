package finetune

import (
	"context"
	"math"
	"runtime"
	"testing"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/train"
)

// plain is gradient descent without anything around it.
func plain(method string) Config {
	c := short(method)
	c.Optimizer, c.WeightDecay, c.ClipNorm, c.LearningRate, c.Flip = train.SGD, 0, 0, 0.1, false
	return c
}

// One step of gradient descent is p − lr·g, and p − lr·g·limit/(‖g‖ + 1e-6) above the limit of the norm.
func TestOneStepByHand(t *testing.T) {
	m, d := load(t), blue(t)
	b := batch(t, m, d.Pictures, d.Cache, denoise.DatasetOptions{}, "fine-tuning pictures", 2)
	net, point := network(t, m, &Result{UNet: m.UNetParams})
	loss, gradient, err := net.Gradient(context.Background(), point, net.Group(0), denoise.Loss{}, b)
	if err != nil {
		t.Fatal(err)
	}
	start, g := numbers(t, point), numbers(t, gradient)
	norm := distance(g, nil)
	for name, clip := range map[string]float64{"unlimited": 0, "below the limit": 2 * norm, "above the limit": norm / 3} {
		config := plain(Full)
		config.Steps, config.ClipNorm = 1, clip
		r, events := tune(t, m, config, d, Hooks{})
		factor := config.LearningRate
		if clip > 0 {
			factor *= min(1, clip/(norm+1e-6))
		}
		want := make([][]float32, len(start))
		for i := range start {
			for k := range start[i] {
				want[i] = append(want[i], float32(float64(start[i][k])-factor*float64(g[i][k])))
			}
		}
		if off := distance(trained(t, r), want) / distance(want, start); !(off < 1e-5) {
			t.Errorf("%s: the step is off by %v of its length", name, off)
		}
		if got := number(t, events[0], "gradient_norm"); math.Abs(got/norm-1) > 1e-5 {
			t.Errorf("%s: logged gradient norm %v, by hand %v", name, got, norm)
		}
		if got := number(t, events[0], "loss"); math.Abs(got/loss-1) > 1e-6 {
			t.Errorf("%s: logged loss %v, by hand %v", name, got, loss)
		}
	}
}

func TestAccumulationEqualsALargerBatch(t *testing.T) {
	m, d := load(t), blue(t)
	run := func(batch, accumulation int) ([][]float32, []train.Event) {
		config := plain(Full)
		config.BatchSize, config.Accumulation, config.ClipNorm = batch, accumulation, 1
		r, events := tune(t, m, config, d, Hooks{})
		return trained(t, r), events
	}
	whole, wholeEvents := run(4, 1)
	moved := distance(whole, numbers(t, m.UNetParams.Tensors))
	for _, split := range [][2]int{{2, 2}, {1, 4}} {
		parts, events := run(split[0], split[1])
		if d := distance(parts, whole); !(d < 1e-4*moved) {
			t.Errorf("%d×%d pictures end %v of %v away from 1×4", split[0], split[1], d, moved)
		}
		for i, e := range events {
			for _, field := range []string{"loss", "gradient_norm"} {
				if got, want := number(t, e, field), number(t, wholeEvents[i], field); math.Abs(got/want-1) > 1e-4 {
					t.Errorf("step %d: %s is %v, of the larger batch %v", i+1, field, got, want)
				}
			}
		}
	}
}

func TestSchedulesReachTheOptimizerAndTheLog(t *testing.T) {
	m, d := load(t), blue(t)
	const steps, warmup, rate = 6, 2, 0.1
	factors := map[string]func(progress float64) float64{
		train.ConstantSchedule:   func(float64) float64 { return 1 },
		train.LinearSchedule:     func(p float64) float64 { return 1 - p },
		train.CosineSchedule:     func(p float64) float64 { return (1 + math.Cos(math.Pi*p)) / 2 },
		train.PolynomialSchedule: func(p float64) float64 { return 1 - p },
	}
	for name, factor := range factors {
		config := plain(LoRA)
		config.Steps, config.WarmupSteps, config.Schedule, config.LearningRate = steps, warmup, name, rate
		_, events := tune(t, m, config, d, Hooks{})
		for i, e := range events {
			want := rate * float64(i) / warmup
			if i >= warmup {
				want = rate * factor(float64(i-warmup)/(steps-warmup))
			}
			if got := number(t, e, "learning_rate"); math.Abs(got-want) > 1e-12 {
				t.Errorf("%s: learning rate %v in step %d, want %v", name, got, i+1, want)
			}
		}
	}
	// The first step of a warm-up has rate 0, so it must not move anything; the second one must.
	config := plain(Full)
	config.WarmupSteps, config.Steps = 2, 1
	start := numbers(t, m.UNetParams.Tensors)
	one, _ := tune(t, m, config, d, Hooks{})
	config.Steps = 2
	two, _ := tune(t, m, config, d, Hooks{})
	if !identical(start, trained(t, one)) || identical(start, trained(t, two)) {
		t.Error("the scheduled rate is not the one that steps are taken with")
	}
}

// The result is the moving average of the weights after each step, and training does not know of it.
func TestMovingAverageIsKeptApart(t *testing.T) {
	m, d := load(t), blue(t)
	for _, method := range []string{Full, LoRA} {
		config := short(method)
		config.Steps = 5
		last, events := tune(t, m, config, d, Hooks{})
		config.EMADecay = 0.25
		var average [][]float64
		group := 0
		if method == LoRA {
			group = 1
		}
		follow := func(_ context.Context, net *denoise.Network, p denoise.Point, done int) error {
			rate := 1 - min(config.EMADecay, float64(done)/float64(9+done))
			if done == 1 {
				rate = 1
			}
			for i, x := range numbers(t, net.Group(group).Of(p)) {
				if done == 1 {
					average = append(average, make([]float64, len(x)))
				}
				for k, v := range x {
					average[i][k] += rate * (float64(v) - average[i][k])
				}
			}
			return nil
		}
		averaged, averagedEvents := tune(t, m, config, d, Hooks{Preview: follow})
		want := make([][]float32, len(average))
		for i, x := range average {
			for _, v := range x {
				want[i] = append(want[i], float32(v))
			}
		}
		got := trained(t, averaged)
		apart := distance(want, trained(t, last))
		if off := distance(got, want); !(off < 1e-4*apart) {
			t.Errorf("%s: %v away from the average, which is %v away from the last weights", method, off, apart)
		}
		for i, e := range events {
			if a, b := number(t, e, "loss"), number(t, averagedEvents[i], "loss"); a != b {
				t.Errorf("%s: loss of step %d is %v with an average, %v without", method, i+1, b, a)
			}
		}
	}
}

// What was given stays as it was and stays alive, whatever becomes of the result.
func TestTheStartIsNeverModifiedOrFreed(t *testing.T) {
	m, d := load(t), blue(t)
	before := numbers(t, m.UNetParams.Tensors)
	for _, method := range []string{Full, LoRA, DreamBooth} {
		for _, steps := range []int{0, 2} {
			for _, decay := range []float64{0, 0.5} {
				config := short(method)
				config.Steps, config.EMADecay = steps, decay
				r, err := Run(context.Background(), m, m.UNetParams, config, d, Hooks{})
				if err != nil {
					t.Fatal(err)
				}
				if steps > 0 && method != LoRA && identical(before, trained(t, r)) {
					t.Errorf("%s changed nothing", method)
				}
				r.Free()
				if !identical(before, numbers(t, m.UNetParams.Tensors)) {
					t.Fatalf("%s, %d steps, decay %v: the given weights changed", method, steps, decay)
				}
			}
		}
	}
	b := batch(t, m, d.Pictures, d.Cache, denoise.DatasetOptions{}, "unseen noise", 2)
	if loss := lossOn(t, m, &Result{UNet: m.UNetParams}, b); !(loss > 0) {
		t.Errorf("loss %v", loss)
	}
}

func heap() uint64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

// A step that kept its gradient, its batch or its former weights would show within 45 of them.
func TestMemoryDoesNotGrowWithTheSteps(t *testing.T) {
	m, d := load(t), blue(t)
	config := short(Full)
	config.Steps, config.EMADecay, config.BatchSize = 50, 0.9, 1
	at := map[int]uint64{}
	hook := func(_ context.Context, _ *denoise.Network, _ denoise.Point, done int) error {
		if done == 5 || done == 50 {
			at[done] = heap()
		}
		return nil
	}
	tune(t, m, config, d, Hooks{Preview: hook})
	weights := uint64(m.UNetParams.Count() * 4)
	if at[50] > at[5]+3*weights {
		t.Errorf("heap %d bytes after 5 steps, %d after 50; the weights have %d", at[5], at[50], weights)
	}
}

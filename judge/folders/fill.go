package folders

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/train"
)

// Hooks tell about a job while it runs. All may be nil.
type Hooks struct {
	Finish    <-chan struct{} // closed: end after the pictures under way
	Warn      func(sentence string)
	OnPicture func(measure string, done, total int) // done of total pictures that were not looked at before
}

// batch is how many pictures are decoded, looked at and kept together: few enough that little is lost when a job is
// killed, and a multiple of what networks take at once.
const batch = 32

// task is a picture to look at, and for some metrics the one to compare it with.
type task struct {
	Picture
	other *Picture
}

// sample is a task with its pixels.
type sample struct {
	task
	pixels, otherPixels *data.RGB
}

func pixels(samples []sample) []*data.RGB {
	out := make([]*data.RGB, len(samples))
	for i, s := range samples {
		out[i] = s.pixels
	}
	return out
}

// look decodes the pictures of all tasks, calls judge for a batch of them and keep with what it says. The next batch is
// decoded meanwhile.
func look[T any](ctx context.Context, measure string, tasks []task, h Hooks, judge func(ctx context.Context, batch []sample) ([]T, error), keep func(batch []sample, found []T) error) error {
	type decoded struct {
		samples []sample
		err     error
	}
	inner, stop := context.WithCancel(ctx)
	defer stop()
	ready := make(chan decoded)
	go func() {
		defer close(ready)
		for part := range slices.Chunk(tasks, batch) {
			samples, err := decodeAll(inner, part)
			select {
			case ready <- decoded{samples, err}:
			case <-inner.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	done := 0
	for d := range ready {
		if d.err != nil {
			return d.err
		}
		found, err := judge(ctx, d.samples)
		if err != nil {
			return nameIn(err, d.samples)
		}
		if len(found) != len(d.samples) {
			return fmt.Errorf("%s answers %d times for %d pictures", measure, len(found), len(d.samples))
		}
		if err := keep(d.samples, found); err != nil {
			return err
		}
		done += len(d.samples)
		if h.OnPicture != nil {
			h.OnPicture(measure, done, len(tasks))
		}
		select {
		case <-h.Finish:
			if done < len(tasks) {
				return train.ErrInterrupted
			}
		default:
		}
	}
	return ctx.Err()
}

func decodeAll(ctx context.Context, tasks []task) ([]sample, error) {
	samples := make([]sample, len(tasks))
	err := each(ctx, len(tasks), func(i int) (err error) {
		samples[i].task = tasks[i]
		if samples[i].pixels, err = tasks[i].Decode(); err == nil && tasks[i].other != nil {
			samples[i].otherPixels, err = tasks[i].other.Decode()
		}
		return err
	})
	return samples, err
}

// nameIn adds to a judge's error which files it was looking at.
func nameIn(err error, samples []sample) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	where := samples[0].Path()
	if len(samples) > 1 {
		where += " … " + samples[len(samples)-1].Path()
	}
	return fmt.Errorf("%s: %w", where, err)
}

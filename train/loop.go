package train

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/resalign/resalign/weights"
)

// ErrInterrupted is returned by Loop.Do when it was asked to finish early; the run can be resumed.
var ErrInterrupted = errors.New("stopped before the end, as asked; everything done so far is saved")

// Loop runs the steps of a job and keeps what is needed to continue it: the method behind Step knows nothing of folders,
// and the loop nothing of the method.
type Loop struct {
	Steps int
	// Run is the folder of the job; nil keeps nothing.
	Run *RunDir
	// CheckpointEvery is the number of steps between checkpoints, Keep how many are kept. One is always saved at the end.
	CheckpointEvery, Keep int
	// Finish, when closed, ends the loop after the current step.
	Finish <-chan struct{}

	// Step does step number step, counted from 0, and returns what to log about it.
	Step func(ctx context.Context, step int) (map[string]any, error)
	// Save returns what a checkpoint must hold, Restore takes it back; steps is the number of steps done. The tensors are read
	// one after the other, while they are written, before anything else happens.
	Save    func() ([]weights.Deferred, any, error)
	Restore func(steps int, tensors weights.Source, state func(into any) error) error

	// After, if set, is called after each step with the number of steps done: previews, for instance.
	After func(ctx context.Context, done int) error
	// OnEvent, if set, receives every logged event.
	OnEvent func(Event)
	// Warn, if set, receives sentences about what was found odd.
	Warn func(string)
}

// resume restores the newest checkpoint and returns the number of steps that it has behind it, or none if there is no
// checkpoint.
func (l *Loop) resume(checkpoints *Checkpoints) (done int, err error) {
	latest, skipped, err := checkpoints.Latest()
	if err != nil {
		return none, err
	}
	for _, s := range skipped {
		if l.Warn != nil {
			l.Warn(fmt.Sprintf("checkpoint %s is not usable and was passed over: %v", s.Path, s.Reason))
		}
	}
	if latest == nil {
		return none, nil
	}
	source, err := latest.Tensors()
	if err != nil {
		return none, err
	}
	err = l.Restore(latest.Step, source, latest.State)
	return latest.Step, errors.Join(err, source.Close())
}

// none stands for the step of a checkpoint that does not exist; step 0 has one when a run was stopped before it began.
const none = -1

// Do does the steps that are left. A step that fails ends the run; what earlier checkpoints hold stays. It returns
// ErrInterrupted when Finish was closed before the last step.
func (l *Loop) Do(ctx context.Context) (err error) {
	done, saved := 0, none
	var checkpoints *Checkpoints
	var log *EventLog
	if l.Run != nil {
		if checkpoints, err = OpenCheckpoints(l.Run.CheckpointsPath(), max(1, l.Keep)); err != nil {
			return err
		}
		if saved, err = l.resume(checkpoints); err != nil {
			return err
		}
		done = max(0, saved)
		if log, err = OpenEventLog(l.Run.EventsPath(), saved); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, log.Close()) }()
	}
	save := func() error {
		if checkpoints == nil || saved == done {
			return nil
		}
		tensors, state, err := l.Save()
		if err != nil {
			return err
		}
		if err := log.Sync(); err != nil {
			return err
		}
		if err := checkpoints.SaveDeferred(done, tensors, state); err != nil {
			return err
		}
		saved = done
		return nil
	}
	for done < l.Steps {
		select {
		case <-l.Finish:
			if err := save(); err != nil {
				return err
			}
			return ErrInterrupted
		default:
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		started := time.Now()
		fields, err := l.Step(ctx, done)
		if err != nil {
			return fmt.Errorf("step %d: %w", done+1, err)
		}
		done++
		if err := l.log(log, done, fields, time.Since(started)); err != nil {
			return err
		}
		if l.CheckpointEvery > 0 && done%l.CheckpointEvery == 0 {
			if err := save(); err != nil {
				return err
			}
		}
		if l.After != nil {
			if err := l.After(ctx, done); err != nil {
				return err
			}
		}
	}
	return save()
}

func (l *Loop) log(log *EventLog, done int, fields map[string]any, took time.Duration) error {
	if fields == nil {
		fields = map[string]any{}
	}
	fields["seconds"] = math.Round(took.Seconds()*1e4) / 1e4
	if peak, err := PeakMemory(); err == nil { // no figures on this system: the field is left out
		fields["peak_memory_bytes"] = peak
	}
	e := Event{Step: done, Kind: "step", Fields: fields}
	if l.OnEvent != nil {
		l.OnEvent(e)
	}
	if log == nil {
		return nil
	}
	return log.Append(e)
}

package train

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// ErrAborted is the cause of a context that a second interrupt ended.
var ErrAborted = errors.New("aborted by a second interrupt; the run can be resumed from its last checkpoint")

// NotifyFinish turns interrupts (Ctrl-C, or SIGTERM from a job scheduler) into an orderly end. The first closes finish,
// which asks the run to complete its step, save and return; the second cancels the returned context with the cause
// [ErrAborted]. stop restores the default handling of signals, cancels the context and may be called more than once.
func NotifyFinish(ctx context.Context) (finish <-chan struct{}, running context.Context, stop func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	running, cancel := context.WithCancelCause(ctx)
	asked := make(chan struct{})
	go func() {
		select {
		case <-signals:
			close(asked)
		case <-running.Done():
			return
		}
		select {
		case <-signals:
			cancel(ErrAborted)
		case <-running.Done():
		}
	}()
	return asked, running, sync.OnceFunc(func() {
		signal.Stop(signals)
		cancel(context.Canceled)
	})
}

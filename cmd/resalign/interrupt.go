package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/train"
)

// watchInterrupts is train.NotifyFinish that says at once what the first interrupt does.
func watchInterrupts(cmd *cobra.Command, c *console, unit string) (finish <-chan struct{}, ctx context.Context, stop func()) {
	finish, ctx, stop = train.NotifyFinish(cmd.Context())
	go func() {
		select {
		case <-finish:
			c.say(fmt.Sprintf("stopping after this %s; interrupt again to stop at once", unit))
		case <-ctx.Done():
		}
	}()
	return finish, ctx, stop
}

// stopped adds to an error that an interrupt caused how the work is taken up again.
func stopped(err error, again ...string) error {
	if !isInterrupt(err) {
		return err
	}
	return fmt.Errorf("%w; go on with\n  %s", err, commandLine(again...))
}

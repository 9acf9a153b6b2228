package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/experiment"
)

// experimentRun carries out one of the built-in experiments: it opens the engine, watches for interrupts, reports progress
// and, if the work was interrupted, says how to go on. What do returns is handed through.
func experimentRun[T any](cmd *cobra.Command, c *console, flags engineFlags, do func(ctx context.Context, e *engine.Engine, h experiment.Hooks) (T, error)) (result T, versions map[string]string, err error) {
	e, closeEngine, err := flags.open(cmd)
	if err != nil {
		return result, nil, err
	}
	defer closeEngine()
	finish, ctx, stop := watchInterrupts(cmd, c, "step")
	defer stop()
	result, err = do(ctx, e, experiment.Hooks{
		Finish: finish, Program: programVersion(), Command: os.Args, OnStage: c.stage,
		OnStep: func(stage string, done, total int) { c.progress(stage, done, total, "") },
	})
	c.endProgress()
	if err != nil {
		return result, nil, stopped(err, os.Args...)
	}
	return result, map[string]string{"resalign": programVersion(), "engine": e.Description()}, nil
}

// stage writes a line for a finished part of a longer job.
func (c *console) stage(name string, took time.Duration, found bool) {
	c.endProgress()
	if found {
		c.say(fmt.Sprintf("%s: finished earlier", name))
		return
	}
	c.say(fmt.Sprintf("%s: %.1f s", name, took.Seconds()))
}

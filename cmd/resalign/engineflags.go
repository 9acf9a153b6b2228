package main

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
)

// engineFlags choose what computes, and on how many threads.
type engineFlags struct {
	spec    string
	threads int
}

// add declares the flags; usage says what the engine's default is.
func (f *engineFlags) add(cmd *cobra.Command, spec, usage string) {
	cmd.Flags().StringVar(&f.spec, "engine", spec, usage)
	cmd.Flags().IntVar(&f.threads, "threads", 0, "threads to compute with (0: all the machine has)")
}

// addCompute declares the flag that chooses the numbers to compute in.
func addCompute(f *pflag.FlagSet, to *string) {
	f.StringVar(to, "compute", string(nn.Float32), "numbers that the UNet computes in: "+strings.Join(nn.Computes(), " or "))
}

// open opens the engine. close also gives the threads back.
func (f *engineFlags) open(cmd *cobra.Command) (e *engine.Engine, close func(), err error) {
	if f.threads < 0 {
		return nil, nil, misuse(cmd, "--threads %d must not be below 0", f.threads)
	}
	before := runtime.GOMAXPROCS(f.threads) // 0 changes nothing
	e, err = engine.Open(f.spec)
	if err != nil {
		runtime.GOMAXPROCS(before)
		return nil, nil, err
	}
	// Where there is a choice, nothing is taken in silence.
	if engine.HasXLA && f.spec != "go" {
		fmt.Fprintln(cmd.ErrOrStderr(), printable(fmt.Sprintf("engine: %s (%s)", e.Description(), e.Reason())))
	}
	e.OnTrouble(func(err error) { fmt.Fprintln(cmd.ErrOrStderr(), printable("engine: "+err.Error())) })
	return e, func() {
		e.Close()
		runtime.GOMAXPROCS(before)
	}, nil
}

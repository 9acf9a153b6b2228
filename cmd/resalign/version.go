package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker (see the Makefile); without it the build information of the module stands in.
var version string

func programVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "unknown"
	}
	return info.Main.Version
}

func newVersion() *cobra.Command {
	c := &console{}
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of the program and of Go",
		Example: "  resalign version\n  resalign version --json",
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
			}{programVersion(), runtime.Version()}
			return c.result(v, func(w io.Writer) { fmt.Fprintf(w, "resalign %s, %s\n", v.Version, v.Go) })
		},
	}
	addConsole(cmd, c)
	return cmd
}

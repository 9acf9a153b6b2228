package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/plugins"
	"github.com/resalign/resalign/engine/programs"
	"github.com/resalign/resalign/train"
)

// installPlugin carries out doctor --install-xla.
func installPlugin(cmd *cobra.Command, c *console, kind, from, index string) error {
	switch {
	case kind == "":
		return misuse(cmd, "--from and --index go with --install-xla %s", strings.Join(plugins.Kinds(), " or "))
	case from != "" && index != "":
		return misuse(cmd, "--from and --index exclude each other")
	}
	p, err := plugins.Find(kind)
	if err != nil {
		return misuse(cmd, "--install-xla: %w", err)
	}
	folder, err := plugins.UserFolder()
	if err != nil {
		return err
	}
	installer := plugins.Installer{Folder: folder, Index: index, OnDownload: func(address string, size int64) {
		c.say(fmt.Sprintf("downloading %s from %s", train.FormatBytes(size), address))
	}}
	var result installation
	if from != "" {
		result.Installed, err = installer.FromFile(p, from)
	} else {
		result.Installed, err = installer.Download(cmd.Context(), p)
	}
	if err != nil {
		return err
	}
	if result.Programs, err = programs.UserFolder(); err == nil {
		err = os.MkdirAll(result.Programs, 0o700)
	}
	if err != nil {
		return fmt.Errorf("the plugin is installed, but there is no folder for compiled programs: %w", err)
	}
	if !engine.HasXLA {
		result.Missing = append(result.Missing, "XLA: this program was built without it and cannot use the plugin; build one that can with `make xla`")
	}
	if folder, ok := plugins.MissingNVIDIALibraries(result.Installed); ok {
		result.Missing = append(result.Missing, nvidiaLibraries(folder))
	}
	return c.result(result, func(w io.Writer) {
		fmt.Fprintf(w, "installed %s\n", result.Installed)
		fmt.Fprintf(w, "compiled programs will be kept in %s; remove the folder to have none kept\n", result.Programs)
		for _, m := range result.Missing {
			fmt.Fprintf(w, "missing   %s\n", m)
		}
	})
}

// installation is the result of doctor --install-xla.
type installation struct {
	Installed string   `json:"installed"`
	Programs  string   `json:"programs"`          // the folder in which compiled programs are kept
	Missing   []string `json:"missing,omitempty"` // what is still needed to use it
}

// nvidiaLibraries says how to get the libraries that the CUDA plugin loads. folder is where it looks for the folder nvidia.
func nvidiaLibraries(folder string) string {
	pip := append([]string{"pip", "install", "--no-deps", "--target", folder}, plugins.NVIDIALibraries()...)
	return fmt.Sprintf("NVIDIA's libraries: there is no folder nvidia in %s; unless CUDA 13, cuDNN 9 and NCCL are installed in the system, get them (2.3 GB) with `%s`", folder, commandLine(pip...))
}

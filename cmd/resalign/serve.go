package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/serve"
)

func newServe() *cobra.Command {
	c := &console{}
	var address string
	cmd := &cobra.Command{
		Use:   "serve FOLDER",
		Short: "Watch a running job in a browser: losses, residuals, previews, progress",
		Long: `Serve shows a run folder while a job works on it, or afterwards, on a page that draws what is new every other second.
It reads that folder only, changes nothing, and listens on this machine only unless --address says otherwise. Ctrl-C ends
it.`,
		Example: "  resalign serve runs/unlearned\n  resalign serve runs/unlearned --address 127.0.0.1:9000",
		Args:    argument("the run folder"),
		RunE: func(cmd *cobra.Command, args []string) error {
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return misuse(cmd, "--address %q is not a host with a port, such as 127.0.0.1:8321", address)
			}
			ip := net.ParseIP(host)
			loopback := host == "localhost" || ip != nil && ip.IsLoopback()
			s, err := serve.New(args[0], !loopback)
			if err != nil {
				return err
			}
			defer s.Close()
			listener, err := new(net.ListenConfig).Listen(cmd.Context(), "tcp", address)
			if err != nil {
				return fmt.Errorf("cannot listen on %s: %w; choose another --address, with port 0 for any that is free", address, err)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if !loopback {
				c.warn(fmt.Sprintf("everyone who can reach %s sees this run and its previews; there is no password", listener.Addr()))
			}
			at := "http://" + listener.Addr().String() + "/"
			if err := c.result(map[string]string{"address": at}, func(w io.Writer) { fmt.Fprintf(w, "%s shows %s; Ctrl-C ends it\n", at, printable(args[0])) }); err != nil {
				return errors.Join(err, listener.Close())
			}
			if err := s.Serve(ctx, listener); err != nil && !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		},
	}
	addConsole(cmd, c)
	cmd.Flags().StringVar(&address, "address", "127.0.0.1:8321", "where to listen; anything but this machine's own addresses shows the run to others")
	return cmd
}

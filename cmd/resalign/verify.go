package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/verify"
)

func newVerify() *cobra.Command {
	c := &console{}
	var e engineFlags
	var reference string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare this program's numbers with reference tensors",
		Long: `Verify compares schedulers, tokenizer, text encoder, autoencoder, UNet, gradients, Hessian products and a whole
unlearning step with the tensors of a reference directory, and prints the relative error of each group beside its
tolerance. It fails if any is over.`,
		Example: "  resalign verify --reference testdata/golden\n  resalign verify --reference testdata/golden --engine go --json",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "reference"); err != nil {
				return err
			}
			eng, closeEngine, err := e.open(cmd)
			if err != nil {
				return err
			}
			defer closeEngine()
			last := ""
			result, err := verify.Run(cmd.Context(), reference, eng, func(check verify.Check) {
				if check.Case != last {
					last = check.Case
					c.say("comparing " + last)
				}
			})
			if err != nil {
				return err
			}
			over := 0
			for _, check := range result.Checks {
				if !check.OK() {
					over++
				}
			}
			err = c.result(verified(reference, eng.Description(), result), func(w io.Writer) { writeChecks(w, result) })
			switch {
			case err != nil:
				return err
			case over > 0:
				return fmt.Errorf("%d of %s exceed their tolerance", over, count(len(result.Checks), "group"))
			case !result.OK():
				return fmt.Errorf("%s holds nothing to compare with; check its index.json", reference)
			}
			return nil
		},
	}
	addConsole(cmd, c)
	e.add(cmd, "auto", "what computes, such as go")
	cmd.Flags().StringVar(&reference, "reference", "", "the directory of reference tensors, which holds an index.json")
	return cmd
}

func writeChecks(w io.Writer, result verify.Result) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "case\tgroup\ttensors\terror\ttolerance")
	for _, check := range result.Checks {
		verdict := "ok"
		if !check.OK() {
			verdict = "OVER: " + check.Worst
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%.1e\t%.0e\t%s\n", check.Case, check.Group, check.Tensors, check.Error, check.Tolerance, printable(verdict))
	}
	_ = t.Flush() // a closed output does not change what was found
	for _, name := range result.Unchecked {
		fmt.Fprintf(w, "not compared: %s\n", printable(name))
	}
}

// verification is the result of the command as JSON.
type verification struct {
	Reference string        `json:"reference"`
	Engine    string        `json:"engine"`
	OK        bool          `json:"ok"`
	Checks    []verifyCheck `json:"checks"`
	Unchecked []string      `json:"unchecked"`
}

type verifyCheck struct {
	Case      string  `json:"case"`
	Group     string  `json:"group"`
	Tensors   int     `json:"tensors"`
	Error     float64 `json:"error"`
	Tolerance float64 `json:"tolerance"`
	Worst     string  `json:"worst,omitempty"`
	OK        bool    `json:"ok"`
}

func verified(reference, engine string, result verify.Result) verification {
	v := verification{Reference: reference, Engine: engine, OK: result.OK(), Checks: []verifyCheck{}, Unchecked: append([]string{}, result.Unchecked...)}
	for _, check := range result.Checks {
		v.Checks = append(v.Checks, verifyCheck{
			Case: check.Case, Group: check.Group, Tensors: check.Tensors, Error: finite(check.Error),
			Tolerance: check.Tolerance, Worst: check.Worst, OK: check.OK(),
		})
	}
	return v
}

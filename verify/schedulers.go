package verify

import (
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/tokenizer"
)

// checkSchedulers compares noise schedule and samplers, one check for each sampler.
func checkSchedulers(_ context.Context, c *caseRun) error {
	ref, err := c.run.open(c.Tensors)
	if err != nil {
		return err
	}
	all, err := diffusion.VerifyGolden(ref.numbers)
	if err != nil {
		return err
	}
	var groups []Check
	for _, one := range all {
		name, _, _ := strings.Cut(one.Group, ".")
		if len(groups) == 0 || groups[len(groups)-1].Group != name {
			groups = append(groups, Check{Group: name, Error: -1, Tolerance: one.Tolerance})
		}
		g := &groups[len(groups)-1]
		g.Tensors++
		if !math.IsNaN(g.Error) && !(one.RelErr <= g.Error) {
			g.Error, g.Worst = one.RelErr, one.Group
		}
	}
	for _, g := range groups {
		c.add(g)
	}
	return nil
}

// checkTokenizer compares token ids, which must be equal.
func checkTokenizer(_ context.Context, c *caseRun) error {
	prompts, mismatches, err := tokenizer.VerifyGolden(c.path(c.Tokenizer), c.path(c.Tokens))
	if err != nil {
		return err
	}
	check := Check{Group: "token ids", Tensors: prompts, Error: float64(len(mismatches)) / float64(prompts)}
	if len(mismatches) > 0 {
		check.Worst = fmt.Sprint(mismatches[0])
	}
	c.add(check)
	return nil
}

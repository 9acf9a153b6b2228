package diagnose

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Summary says in a few sentences how flat the models are, each beside the others, and whether the iteration of the
// hypergradient contracts. It claims no more than the intervals do.
func (d *Diagnosis) Summary() []string {
	var out []string
	for _, loss := range []struct {
		name string
		harm bool
		of   func(Diagnosed) Curvature
	}{
		{"Tr(∇²L_harm)", true, func(m Diagnosed) Curvature { return m.Harm }},
		{"Tr(∇²L_FT)", false, func(m Diagnosed) Curvature { return m.FineTuning }},
	} {
		var parts []string
		for _, m := range d.Models {
			parts = append(parts, m.Name+" "+interval(loss.of(m).Trace))
		}
		sentence := loss.name + ": " + strings.Join(parts, ", ") + "."
		if verdict := flattest(d.Models, loss.of); verdict != "" {
			sentence += " " + verdict
			if loss.harm {
				least := slices.MinFunc(d.Models, func(a, b Diagnosed) int { return cmp.Compare(a.Harm.Trace.Value, b.Harm.Trace.Value) })
				sentence += " With its sign, which is what the resilience term of Proposition 1 counts, the trace is smallest at " + least.Name + "."
			}
		}
		out = append(out, sentence)
	}
	return append(out, d.contractionSentence())
}

// flattest names the model whose trace is nearest to zero and says whether it is told from the next.
func flattest(models []Diagnosed, of func(Diagnosed) Curvature) string {
	if len(models) < 2 {
		return ""
	}
	size := func(m Diagnosed) float64 { return math.Abs(of(m).Trace.Value) }
	order := slices.Clone(models)
	slices.SortStableFunc(order, func(a, b Diagnosed) int { return cmp.Compare(size(a), size(b)) })
	first, next := order[0], order[1]
	told := "the difference between the two on the same draws does not tell them apart"
	e := paired(of(next).Probes, of(first).Probes)
	switch {
	case of(first).Trace.Value*of(next).Trace.Value < 0:
		told = "the two have opposite signs"
	case e.Low > 0 || e.High < 0:
		told = "the difference between the two on the same draws is larger than its 95 % interval"
	}
	return fmt.Sprintf("The flattest by this measure is %s, before %s; %s.", first.Name, next.Name, told)
}

func (d *Diagnosis) contractionSentence() string {
	counts := map[string]int{}
	n, smallest := 0, math.Inf(1)
	for _, m := range d.Models {
		for _, s := range m.Systems {
			counts[s.Verdict]++
			n++
			if s.LargestGamma != Unbounded {
				smallest = min(smallest, s.LargestGamma)
			}
		}
	}
	limit := "no γ is too large by the ends found."
	if !math.IsInf(smallest, 0) {
		limit = fmt.Sprintf("the largest γ that contracts in all of them is at most %s.", Short(smallest))
	}
	return fmt.Sprintf("At γ = %s, μ = %s the Richardson iteration contracts in %d, does not in %d and is not settled in %d of %d systems; %s",
		Short(d.Settings.Gamma), Short(d.Settings.Damping), counts[Contracts], counts[Diverges], counts[NotSettled], n, limit)
}

// Text is a table of the main numbers for terminals, and the summary.
func (d *Diagnosis) Text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")) }
	row("model", "Tr ∇²L_harm", "Tr ∇²L_FT", "λ of ∇²L_FT at θ_FT", "contracts", "residual", "L_harm", "after FT", "distance")
	for _, m := range d.Models {
		system, residual := m.Worst(), "–"
		if r, ok := system.Residual(); ok {
			residual = Short(r)
		}
		away := "–"
		if m.Distance != nil {
			away = Short(m.Distance.Total.Distance)
		}
		before := m.Line.Harm[slices.Index(m.Line.S, 0)]
		after := m.Line.Harm[slices.Index(m.Line.S, 1)]
		row(m.Name, interval(m.Harm.Trace), interval(m.FineTuning.Trace),
			fmt.Sprintf("%s … %s", Short(system.Lowest), Short(system.Highest)), system.Verdict, residual, Short(before.Value), Short(after.Value), away)
	}
	_ = w.Flush() // a builder takes everything
	return b.String() + "\n" + strings.Join(d.Summary(), "\n")
}

// Worst is the system whose iteration contracts least.
func (m Diagnosed) Worst() System {
	return slices.MaxFunc(m.Systems, func(a, b System) int { return cmp.Compare(a.Factor, b.Factor) })
}

func interval(e Estimate) string {
	return fmt.Sprintf("%s [%s, %s]", Short(e.Value), Short(e.Low), Short(e.High))
}

// Short writes a number with three digits, with a true minus sign.
func Short(x float64) string {
	return strings.Replace(strconv.FormatFloat(x, 'g', 3, 64), "-", "−", 1)
}

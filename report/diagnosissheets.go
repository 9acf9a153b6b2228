package report

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/resalign/resalign/diagnose"
)

// mean is an estimate with its interval.
func mean(e diagnose.Estimate) sheetCell {
	return sheetCell{Text: diagnose.Short(e.Value), Interval: fmt.Sprintf("[%s, %s]", diagnose.Short(e.Low), diagnose.Short(e.High))}
}

func amount(x float64) sheetCell { return sheetCell{Text: diagnose.Short(x)} }

func (x *examined) curvatureTable() *sheet {
	t := &sheet{Name: "Curvature", Head: []string{"Model", "Tr ∇²L_harm", "per number of θ", "λ of ∇²L_harm", "Tr ∇²L_FT", "per number of θ", "λ of ∇²L_FT"}}
	n := float64(max(1, x.Settings.Size))
	for _, m := range x.Models {
		row := sheetRow{style: x.styles[m.Name], Name: m.Name}
		for _, c := range []diagnose.Curvature{m.Harm, m.FineTuning} {
			row.Cells = append(row.Cells, mean(c.Trace), amount(c.Trace.Value/n), sheetCell{Text: widest(c.Spectra)})
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// widest is the range of eigenvalues over all draws.
func widest(spectra []diagnose.Spectrum) string {
	if len(spectra) == 0 {
		return "–"
	}
	low, high := spectra[0].Lowest, spectra[0].Highest
	for _, s := range spectra {
		low, high = min(low, s.Lowest), max(high, s.Highest)
	}
	return diagnose.Short(low) + " … " + diagnose.Short(high)
}

func (x *examined) differenceTable() *sheet {
	if len(x.Differences) == 0 {
		return nil
	}
	t := &sheet{Name: "Differences of traces", Head: []string{"Models", "Tr ∇²L_harm", "Tr ∇²L_FT"}}
	for _, d := range x.Differences {
		t.Rows = append(t.Rows, sheetRow{Name: d.A + " less " + d.B, Cells: []sheetCell{mean(d.Harm), mean(d.FineTuning)}})
	}
	return t
}

func (x *examined) systemTable() *sheet {
	t := &sheet{Name: "Hypergradient systems", Head: []string{"Model", "draw", "λ by power iteration", "lowest λ", "highest λ", "contraction factor", "verdict", "largest γ", fmt.Sprintf("residual after %d", x.Settings.Iterations)}}
	classes := map[string]string{diagnose.Contracts: "good", diagnose.Diverges: "bad"}
	for _, m := range x.Models {
		for i, s := range m.Systems {
			largest, residual := sheetCell{Text: "any"}, sheetCell{Text: s.Note}
			if s.LargestGamma != diagnose.Unbounded {
				largest.Text = "≤ " + diagnose.Short(s.LargestGamma)
			}
			if r, ok := s.Residual(); ok {
				residual = amount(r)
			}
			t.Rows = append(t.Rows, sheetRow{style: x.styles[m.Name], Name: m.Name, Cells: []sheetCell{
				{Text: strconv.Itoa(i + 1)},
				within(s.Top, s.TopResidual), within(s.Lowest, s.LowestResidual), within(s.Highest, s.HighestResidual),
				amount(s.Factor),
				{Text: s.Verdict, Class: classes[s.Verdict]},
				largest, residual,
			}})
		}
	}
	return t
}

// within is an eigenvalue with its residual.
func within(value, residual float64) sheetCell {
	return sheetCell{Text: diagnose.Short(value), Interval: "± " + diagnose.Short(residual)}
}

func (x *examined) lineTable() *sheet {
	t := &sheet{Name: "Losses along the line", Head: []string{"Model", "L_harm", "change by fine-tuning", "slope at s = 0", "curvature at s = 0"}}
	all := x.Settings.Parameters == diagnose.AllWeights
	if all {
		t.Head = append(t.Head, "expected of the trace")
	}
	t.Head = append(t.Head, "L_FT", "change by fine-tuning", "‖θ_FT − θ‖", "of ‖θ‖")
	for _, m := range x.Models {
		l := m.Line
		start := slices.Index(l.S, 0)
		cells := []sheetCell{mean(l.Harm[start]), mean(l.AlongHarm.Change), mean(l.AlongHarm.Slope), mean(l.AlongHarm.Curvature)}
		if all {
			cells = append(cells, amount(m.Expected(x.Settings.Size)))
		}
		share := sheetCell{Text: "–"}
		if l.Norm > 0 {
			share.Text = strconv.FormatFloat(100*l.Length/l.Norm, 'g', 3, 64) + percent
		}
		cells = append(cells, mean(l.FineTuning[start]), mean(l.AlongFineTuning.Change), amount(l.Length), share)
		t.Rows = append(t.Rows, sheetRow{style: x.styles[m.Name], Name: m.Name, Cells: cells})
	}
	return t
}

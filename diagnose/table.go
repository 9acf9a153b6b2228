package diagnose

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"strconv"
)

// CSV lists every number of the diagnosis, one a line: model, quantity, where (a draw, a place on the line, a block or a
// layer), value, and for means the 95 % interval and the number of draws.
func (d *Diagnosis) CSV() ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	line := func(cells ...string) { _ = w.Write(cells) } // a buffer takes everything; Flush reports the rest
	number := func(model, quantity, where string, x float64) { line(model, quantity, where, plain(x), "", "", "") }
	mean := func(model, quantity, where string, e Estimate) {
		line(model, quantity, where, plain(e.Value), plain(e.Low), plain(e.High), strconv.Itoa(e.N))
	}
	line("model", "quantity", "where", "value", "low", "high", "draws")
	for _, m := range d.Models {
		for _, loss := range []struct {
			name string
			Curvature
			Along
			line, changes []Estimate
		}{
			{"L_harm", m.Harm, m.Line.AlongHarm, m.Line.Harm, m.Line.HarmChange},
			{"L_FT", m.FineTuning, m.Line.AlongFineTuning, m.Line.FineTuning, m.Line.FineTuningChange},
		} {
			mean(m.Name, "trace of "+loss.name, "", loss.Trace)
			for i, s := range loss.Spectra {
				number(m.Name, "lowest eigenvalue of "+loss.name, draw(i), s.Lowest)
				number(m.Name, "highest eigenvalue of "+loss.name, draw(i), s.Highest)
			}
			mean(m.Name, "slope of "+loss.name+" along fine-tuning", "s=0", loss.Slope)
			mean(m.Name, "curvature of "+loss.name+" along fine-tuning", "s=0", loss.Along.Curvature)
			for i, e := range loss.line {
				mean(m.Name, loss.name, "s="+plain(m.Line.S[i]), e)
				mean(m.Name, loss.name+" less that at s=0", "s="+plain(m.Line.S[i]), loss.changes[i])
			}
		}
		for i, e := range m.Line.Retain {
			mean(m.Name, "L_retain", "s="+plain(m.Line.S[i]), e)
			mean(m.Name, "L_retain less that at s=0", "s="+plain(m.Line.S[i]), m.Line.RetainChange[i])
		}
		number(m.Name, "length of fine-tuning", "", m.Line.Length)
		number(m.Name, "norm of the weights", "", m.Line.Norm)
		for i, s := range m.Systems {
			number(m.Name, "lowest eigenvalue of L_FT after fine-tuning", draw(i), s.Lowest)
			number(m.Name, "highest eigenvalue of L_FT after fine-tuning", draw(i), s.Highest)
			number(m.Name, "contraction factor", draw(i), s.Factor)
			if s.LargestGamma != Unbounded {
				number(m.Name, "largest gamma", draw(i), s.LargestGamma)
			}
			for k, x := range s.Residuals {
				number(m.Name, "Richardson residual", fmt.Sprintf("%s, k=%d", draw(i), k), x)
			}
		}
		if m.Distance == nil {
			continue
		}
		for _, list := range []struct {
			what string
			of   []Length
		}{{"UNet", []Length{m.Distance.Total}}, {"block", m.Distance.Blocks}, {"layer", m.Distance.Layers}} {
			for _, l := range list.of {
				number(m.Name, list.what+" distance from base", l.Name, l.Distance)
				if share, ok := l.Relative(); ok {
					number(m.Name, list.what+" relative distance from base", l.Name, share)
				}
			}
		}
	}
	for _, x := range d.Differences {
		mean(x.A, "trace of L_harm less that of "+x.B, "", x.Harm)
		mean(x.A, "trace of L_FT less that of "+x.B, "", x.FineTuning)
	}
	w.Flush()
	return b.Bytes(), w.Error()
}

func draw(i int) string { return "draw " + strconv.Itoa(i+1) }

func plain(x float64) string { return strconv.FormatFloat(x, 'g', -1, 64) }
